"""Named methods as pure edits of a config, and the text after the colon of `--config FILE:TEXT`.

`[recipe][,key=value]...`, say `dacs,mrm=true,encoder=mit_b2`. A recipe sets what the method's paper
sets and leaves the rest of the config alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from mrm_jax.config import MIT_VARIANTS, Config, Decoder, UsageError
from mrm_jax.options import nearest

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


RECIPES: dict[str, Callable[[Config], Config]] = {
    "source_only": source_only,
    "source_augmented": source_augmented,
    "target_only": target_only,
    "dacs": dacs,
}

DECODERS = {
    "daformer": Decoder(),
    "daformer_conv1": Decoder(fusion="conv1"),
    "segformer": Decoder(kind="segformer", channels=768),
}


def with_mrm(config: Config, value: str) -> Config:
    """Turns Masked Representation Modeling on or off."""
    if value not in ("true", "false"):
        raise UsageError(f"mrm={value} in --config: write mrm=true or mrm=false.")
    mrm = replace(config.method.mrm, enabled=value == "true")
    return replace(config, method=replace(config.method, mrm=mrm))


def with_encoder(config: Config, value: str) -> Config:
    """Replaces the encoder by a named one."""
    encoder = _named(value, MIT_VARIANTS, "encoder")
    return replace(config, model=replace(config.model, encoder=encoder))


def with_decoder(config: Config, value: str) -> Config:
    """Replaces the decoder by a named one."""
    decoder = _named(value, DECODERS, "decoder")
    return replace(config, model=replace(config.model, decoder=decoder))


def with_crop(config: Config, value: str) -> Config:
    """Sets the training crop: `512` or `512x1024` (height x width, px)."""
    sides = value.split("x")
    if len(sides) > 2 or not all(side.isdigit() for side in sides):
        raise UsageError(f"crop={value} in --config: write crop=512 or crop=512x1024.")
    crop = (int(sides[0]), int(sides[-1]))
    return replace(config, data=replace(config.data, crop=crop))


KEYS: dict[str, Callable[[Config, str], Config]] = {
    "mrm": with_mrm,
    "encoder": with_encoder,
    "decoder": with_decoder,
    "crop": with_crop,
}


def _named(name: str, table: dict[str, T], what: str) -> T:
    if name not in table:
        hint = nearest(name, table)
        raise UsageError(f"'{name}' is no {what}; there are {', '.join(table)}.{hint}")
    return table[name]


def apply(config: Config, text: str | None, default: str = "") -> Config:
    """`config` edited by the text after the colon; an empty text means `default`.

    Raises UsageError naming the unknown word and the nearest right one.
    """
    words = [word.strip() for word in (text or default).split(",") if word.strip()]
    for position, word in enumerate(words):
        key, equals, value = word.partition("=")
        if equals:
            config = _named(key, KEYS, "key of --config")(config, value)
        elif position == 0:
            config = _named(word, RECIPES, "recipe")(config)
        else:
            raise UsageError(f"'{word}' in --config: after the recipe come key=value pairs.")
    return config
