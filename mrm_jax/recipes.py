"""Named methods as pure edits of a config, and the text after the colon of `--config FILE:TEXT`.

`[recipe][,key=value]...`, say `dacs,mrm=true,encoder=mit_b2`. A recipe sets what the method's paper
sets and leaves the rest of the config alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from mrm_jax.config import TEACHER_METHODS, Config, Decoder, Encoder
from mrm_jax.errors import UsageError
from mrm_jax.options import nearest
from mrm_jax.registry import ENCODER_KINDS
from mrm_jax.variants import DECODERS, ENCODERS, decoder_beside

T = TypeVar("T")


def source_only(config: Config) -> Config:
    """Training on the labelled source alone: the baseline."""
    return replace(config, method=replace(config.method, kind="source_only"))


def source_augmented(config: Config) -> Config:
    """source_only plus a pass on the strongly augmented source: what augmentation alone gives."""
    return replace(config, method=replace(config.method, kind="source_only", augmented_source=True))


def target_only(config: Config) -> Config:
    """Training on the labelled target: the oracle, an upper bound."""
    return replace(config, method=replace(config.method, kind="target_only"))


def dacs(config: Config) -> Config:
    """Self-training on class-mixed pictures (Tranheden et al., WACV 2021)."""
    method = replace(config.method, kind="dacs", ema_decay=0.99, threshold=0.968)
    return replace(config, method=method)


def daformer(config: Config) -> Config:
    """dacs with a slower teacher, rare class sampling and the distance to pretrained features
    (Hoyer et al., CVPR 2022)."""
    config = dacs(config)
    method = config.method
    distance = replace(method.feature_distance, weight=0.005)
    method = replace(method, kind="daformer", ema_decay=0.999, feature_distance=distance)
    rare = replace(config.data.rare_class, enabled=True)
    return replace(config, method=method, data=replace(config.data, rare_class=rare))


def hrda(config: Config) -> Config:
    """daformer at twice the resolution, seen as context and detail (Hoyer et al., ECCV 2022).

    Twice: pictures that are fitted into a box get one of twice the sides, crops grow with them, and
    evaluation slides a window of the crop's size by half of it. Other data stay as they are.
    """
    config = with_hrda(daformer(config), "true")
    data = config.data
    larger = {
        name: replace(domain, resize=(2 * domain.resize[0], 2 * domain.resize[1]))
        for name in ("source", "target", "evaluation")
        if (domain := getattr(data, name)).resize is not None
    }
    if "source" not in larger:
        return replace(config, method=replace(config.method, kind="hrda"))
    crop = (2 * data.crop[0], 2 * data.crop[1])
    rare = replace(data.rare_class, crop_share=4 * data.rare_class.crop_share)
    window = replace(
        config.evaluation, mode="slide", window=crop, stride=(crop[0] // 2, crop[1] // 2)
    )
    return replace(
        config,
        data=replace(data, crop=crop, rare_class=rare, **larger),
        method=replace(config.method, kind="hrda"),
        evaluation=window,
    )


def mic(config: Config) -> Config:
    """hrda with one more pass on pictures with blocks hidden (Hoyer et al., CVPR 2023)."""
    return with_mic(hrda(config), "true")


def vfm(config: Config) -> Config:
    """Self-training of a DINOv2 that sees pictures with tokens hidden, under a light head (Englert
    et al., CVPRW 2024), as its released code does; docs/methods.md has every number.

    Data that are fitted into boxes get short sides twice the boxes', and crops and windows twice
    the crop's (1024 px for 512); other data stay as they are. A DINOv2 stays as large as it is; any
    other encoder becomes the base one.
    """
    config = _with_long_boxes(dacs(config))
    data, model, method = config.data, config.model, config.method
    encoder = model.encoder if model.encoder.kind == "dinov2" else ENCODERS["dinov2_b14"]
    encoder = replace(encoder, resize="1.1")
    single = replace(model.multires, enabled=False)
    batch = 8
    decoder_rate = 5e-5 * math.sqrt(batch)
    optimizer = replace(
        config.optimizer,
        learning_rate=0.1 * decoder_rate,
        decoder_multiplier=10.0,
        weight_decay=0.01,
        decay_encoder_norms=True,
        warmup=0.0375,
        warmup_start=1e-3,
        warmup_shape="linear",
    )
    mic = replace(method.mic, ratio=0.7, hide="tokens")
    # MRM is no part of it; a third of the decoder's rate, as in MRM's paper.
    mrm = replace(method.mrm, learning_rate=decoder_rate / 3)
    rare = replace(data.rare_class, enabled=True, temperature=0.05, tries=20)
    return replace(
        config,
        data=replace(data, scale=(0.9, 1.1), rare_class=rare),
        model=replace(model, encoder=encoder, decoder=DECODERS["vit_light"], multires=single),
        method=replace(method, kind="mic", ema_decay=0.999, teacher_flip=True, mic=mic, mrm=mrm),
        optimizer=optimizer,
        train=replace(config.train, batch=batch),
    )


def _with_long_boxes(config: Config) -> Config:
    """Crops, windows and boxes of `vfm`, whose long side never binds."""
    data, boxes = config.data, {}
    for name in ("source", "target", "evaluation"):
        if (domain := getattr(data, name)).resize is not None:
            short = 2 * min(domain.resize)
            boxes[name] = replace(domain, resize=(4 * short, short))
    if "source" not in boxes:
        return config
    crop = (2 * data.crop[0], 2 * data.crop[1])
    rare = replace(data.rare_class, crop_share=4 * data.rare_class.crop_share)
    window = {"window": crop, "stride": data.crop, "blend": "probabilities"}
    return replace(
        config,
        data=replace(data, crop=crop, rare_class=rare, **boxes),
        evaluation=replace(config.evaluation, mode="slide", **window),
    )


RECIPES: dict[str, Callable[[Config], Config]] = {
    "source_only": source_only,
    "source_augmented": source_augmented,
    "target_only": target_only,
    "dacs": dacs,
    "daformer": daformer,
    "hrda": hrda,
    "mic": mic,
    "vfm": vfm,
}


SMALL = "small"
"""After encoder=: not an encoder alone, but all that `small` sets."""


def small(config: Config) -> Config:
    """A network that learns from random numbers on a CPU in minutes: a MiT of five narrow blocks,
    a decoder and a Rebuilder that suit it, and the rates of a network that is not pretrained."""
    encoder = Encoder(
        dims=(16, 32, 48, 64),
        depths=(1, 1, 2, 1),
        heads=(1, 2, 3, 4),
        sr_ratios=(8, 4, 2, 2),
        strides=(4, 2, 2, 1),
        drop_path=0.0,
    )
    decoder = Decoder(channels=32, dilations=(1, 4))
    rate = 2e-3  # higher than a pretrained network's, and nearly one for all parts
    # The Rebuilder learns at 10/3 of the encoder's rate, as in the paper (2e-4 to 6e-5).
    mrm = replace(config.method.mrm, dim=64, depth=2, heads=4, learning_rate=10 * rate / 3)
    return replace(
        config,
        model=replace(config.model, encoder=encoder, decoder=decoder),
        method=replace(config.method, mrm=mrm),
        optimizer=replace(config.optimizer, learning_rate=rate, decoder_multiplier=2.0),
    )


def with_mrm(config: Config, value: str) -> Config:
    """Turns Masked Representation Modeling on or off."""
    mrm = replace(config.method.mrm, enabled=_switch("mrm", value))
    return replace(config, method=replace(config.method, mrm=mrm))


def with_encoder(config: Config, value: str) -> Config:
    """Replaces the encoder by a named one, and a named decoder by the same one as published with
    it; `small`: the network and its rates, too.

    How an encoder of the same family is run stays (`EncoderKind.kept`). Weights belong to the
    encoder that they were named for: they stay where it is that one, and go with it where it is
    another.
    """
    encoder = named(value, {**ENCODERS, SMALL: None}, "encoder")
    if encoder is None:
        return small(config)
    model = config.model
    if encoder.kind == model.encoder.kind:
        kept = {name: getattr(model.encoder, name) for name in ENCODER_KINDS[encoder.kind].kept}
        encoder = replace(encoder, **kept)
    if encoder == replace(model.encoder, weights=None):
        return config
    suited = {decoder_beside(n, model.encoder): decoder_beside(n, encoder) for n in DECODERS}
    decoder = suited.get(model.decoder, model.decoder)
    return replace(config, model=replace(model, encoder=encoder, decoder=decoder))


def with_decoder(config: Config, value: str) -> Config:
    """Replaces the decoder by a named one, as it is published with the encoder."""
    named(value, DECODERS, "decoder")
    decoder = decoder_beside(value, config.model.encoder)
    return replace(config, model=replace(config.model, decoder=decoder))


def with_hrda(config: Config, value: str) -> Config:
    """Turns HRDA's two resolutions on or off."""
    multires = replace(config.model.multires, enabled=_switch("hrda", value))
    return replace(config, model=replace(config.model, multires=multires))


def with_mic(config: Config, value: str) -> Config:
    """Adds MIC's masked pass to a method with a teacher, or leaves one without it as it is."""
    if not _switch("mic", value):
        if config.method.kind == "mic":
            raise UsageError(
                "mic=false in --config takes back the recipe mic",
                "name hrda instead.",
                field="--config",
                value="mic=false",
            )
        return config
    if config.method.kind not in TEACHER_METHODS:
        raise UsageError(
            f"mic=true in --config needs a teacher, and {config.method.kind} has none.",
            f"Use one of {', '.join(TEACHER_METHODS)}.",
            field="--config",
            value="mic=true",
        )
    return replace(config, method=replace(config.method, kind="mic"))


def with_crop(config: Config, value: str) -> Config:
    """Sets the training crop: `512` or `512x1024` (height x width, px)."""
    sides = value.split("x")
    if len(sides) > 2 or not all(side.isdigit() for side in sides):
        raise UsageError(
            f"crop={value} in --config:",
            "write crop=512 or crop=512x1024.",
            field="--config",
            value=f"crop={value}",
        )
    crop, evaluation = (int(sides[0]), int(sides[-1])), config.evaluation
    if evaluation.mode == "slide" and evaluation.window == config.data.crop:
        # HRDA evaluates on windows of the size it is trained on.
        half = (max(crop[0] // 2, 1), max(crop[1] // 2, 1))
        evaluation = replace(evaluation, window=crop, stride=half)
    return replace(config, data=replace(config.data, crop=crop), evaluation=evaluation)


KEYS: dict[str, Callable[[Config, str], Config]] = {
    "mrm": with_mrm,
    "encoder": with_encoder,
    "decoder": with_decoder,
    "hrda": with_hrda,
    "mic": with_mic,
    "crop": with_crop,
}


def _switch(name: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise UsageError(
            f"{name}={value} in --config:",
            f"write {name}=true or {name}=false.",
            field="--config",
            value=f"{name}={value}",
        )
    return value == "true"


def named(name: str, table: Mapping[str, T], what: str) -> T:
    """The entry `name` of `table`. Raises UsageError, which calls it a `what`, for another name."""
    if name not in table:
        hint = nearest(name, table)
        raise UsageError(
            f"'{name}' is no {what}; there are {', '.join(table)}.{hint}",
            field="--config",
            value=name,
        )
    return table[name]


def apply(config: Config, text: str | None, default: str = "") -> Config:
    """`config` edited by the text after the colon; an empty text means `default`.

    Raises UsageError naming the unknown word and the nearest right one.
    """
    words = [word.strip() for word in (text or default).split(",") if word.strip()]
    for position, word in enumerate(words):
        key, equals, value = word.partition("=")
        if equals:
            config = named(key, KEYS, "key of --config")(config, value)
        elif position == 0:
            config = named(word, RECIPES, "recipe")(config)
        else:
            raise UsageError(
                f"'{word}' in --config: after the recipe come key=value pairs.",
                field="--config",
                value=word,
            )
    return config
