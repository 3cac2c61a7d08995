"""Our networks for the stored cases: sizes from tensors and sidecar, weights by `import_torch`.

Everything is built by the functions that training uses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from golden import Case

from mrm_jax import config
from mrm_jax.convert import describe, export_torch, import_torch, trace
from mrm_jax.models.build import (
    build_decoder,
    build_encoder,
    build_rebuilder,
    build_segmentor,
    feature_spec,
)
from mrm_jax.models.layers import fold_moments
from mrm_jax.types import FeatureSpec
from mrm_jax.variants import DECODERS, ENCODERS

State = Mapping[str, np.ndarray]
Runner = Callable[[State], dict[str, Any]]
"""From the weights of a case to our outputs, under the names that the case stores them with."""

# All presets of the reference (mit_b0 to mit_b5) have these heads; sidecars without a full
# config say that theirs is a preset.
PRESET_HEADS = (1, 2, 5, 8)


def nhwc(x: np.ndarray) -> np.ndarray:
    """The reference's maps in our layout."""
    return np.moveaxis(x, 1, -1)


def nchw(x: jax.Array) -> jax.Array:
    """Our maps in the reference's layout."""
    return jnp.moveaxis(x, -1, 1)


def encoder_config(shown: Mapping[str, Any], stored: Any) -> config.Encoder:
    """`shown` by the tensors, `stored` in the sidecar: mmseg's or Hugging Face's, or a text."""
    if shown["layout"].startswith("resnet"):
        return resnet_config(shown, stored)
    stored = stored if isinstance(stored, dict) else {}
    heads = stored.get("num_heads") or stored.get("num_attention_heads") or PRESET_HEADS
    eps = re.search(r"eps=([\d.e-]+)", str(stored.get("norm_layer", "")))
    return config.Encoder(
        dims=shown["dims"],
        depths=shown["depths"],
        heads=tuple(heads),
        sr_ratios=shown["sr_ratios"],
        strides=tuple(stored.get("strides", config.Encoder().strides)),
        mlp_ratios=tuple(w // c for w, c in zip(shown["mlp_widths"], shown["dims"], strict=True)),
        norm_eps=float(eps.group(1)) if eps else config.Encoder().norm_eps,
    )


def resnet_config(shown: Mapping[str, Any], stored: Any) -> config.Encoder:
    """As `encoder_config`. The reference counts the first stride from behind the stem."""
    recipe = ENCODERS["resnet50"]

    def numbers(name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(stored, dict):
            return tuple(stored.get(name, default))
        found = re.search(rf"{name} \(([\d, ]+)\)", str(stored))
        return tuple(int(x) for x in found[1].split(",")) if found else default

    first, *others = numbers("strides", (1, *recipe.strides[1:]))
    return replace(
        recipe,
        dims=shown["dims"],
        depths=shown["depths"],
        strides=(4 * first, *others),
        dilations=numbers("dilations", recipe.dilations),
        stem="v1c" if shown["layout"] == "resnet_v1c" else "7x7",
    )


def decoder_config(shown: Mapping[str, Any], stored: Mapping[str, Any]) -> config.Decoder:
    """As `encoder_config`, for any head."""
    if shown["layout"].startswith("deeplab"):
        kind, *normed = shown["layout"].split("_")
        recipe, dilations = DECODERS[kind], stored.get("dilations")
        return replace(
            recipe,
            channels=shown.get("channels", recipe.channels),
            low_channels=shown.get("low_channels", recipe.low_channels),
            dilations=recipe.dilations if dilations is None else tuple(dilations),
            norm=bool(normed),
        )
    fusion = stored.get("decoder_params", {}).get("fusion_cfg", {})
    kind = "segformer" if shown["layout"] == "segformer" else "daformer"
    return config.Decoder(
        kind=kind,
        channels=shown["channels"],
        fusion="conv1" if shown["layout"] == "daformer_conv1" else "aspp",
        dilations=tuple(fusion.get("dilations", config.Decoder().dilations)),
    )


def segmentor_config(state: State, kind: str, stored: Mapping[str, Any]) -> config.Model:
    """The model of a whole network; `stored` is mmseg's `model` dictionary."""
    shown = describe(state, kind)
    return config.Model(
        encoder=encoder_config(shown["encoder"], stored["backbone"]),
        decoder=decoder_config(shown["decoder"], stored["decode_head"]),
        multires=multires_config(shown, stored),
    )


def model_of_names(names: Sequence[str]) -> tuple[config.Model, frozenset[str]]:
    """A small model whose parameters have these names, and the names that no parameter of ours has
    (an import drops them by a rule). ValueError where no layout has the names."""
    shown = trace(dict.fromkeys(names, np.zeros(())), "segmentor")
    found, decoder = shown.found["encoder"], shown.found["decoder"]
    if found["layout"].startswith("resnet"):
        stem = "v1c" if found["layout"] == "resnet_v1c" else "7x7"
        encoder = replace(ENCODERS["resnet50"], depths=found["depths"], stem=stem)
    else:
        reduced = [f"backbone.block{s}.0.attn.sr.weight" in names for s in (1, 2, 3, 4)]
        ratios = tuple(2 if there else 1 for there in reduced)
        encoder = replace(ENCODERS["mit_b0"], depths=found["depths"], sr_ratios=ratios)
    kind = decoder["layout"].partition("_")[0]
    stored = {"dilations": range(1, decoder["branches"] + 1)} if decoder.get("branches") else {}
    head = decoder_config(
        {**decoder, "channels": 8, "low_channels": 8},
        {**stored, "decoder_params": {"fusion_cfg": stored}} if kind == "daformer" else stored,
    )
    multires = config.MultiRes(enabled="attention" in shown.found, detail=(32, 32))
    return config.Model(encoder, head, multires=multires), frozenset(shown.dropped)


def multires_config(shown: Mapping[str, Any], stored: Mapping[str, Any]) -> config.MultiRes:
    """HRDA's part of a model, where the tensors have its attention head."""
    if "attention" not in shown:
        return config.MultiRes()
    return config.MultiRes(
        enabled=True,
        detail=tuple(stored["hr_crop_size"]),
        offset_multiple=stored["crop_coord_divisible"],
        detail_weight=stored["decode_head"]["hr_loss_weight"],
        attention_channels=shown["attention"].get("channels", 1),  # DeepLabV2 has no width
    )


def run_encoder(case: Case) -> Runner:
    """Outputs `feat*_i` for every input `x*` of a backbone case."""
    shown = describe(case.groups["sd"], "mit")["encoder"]
    module = build_encoder(config.Model(encoder=encoder_config(shown, case.meta["config"])))
    images = {key[1:]: nhwc(x) for key, x in case.groups["in"].items() if key.startswith("x")}

    @jax.jit
    def outputs(variables: Any) -> dict[str, jax.Array]:
        return {
            f"feat{suffix}_{i}": nchw(feature)
            for suffix, image in images.items()
            for i, feature in enumerate(module.apply(variables, jnp.asarray(image), "eval"))
        }

    return lambda state: outputs(import_torch(state, "mit"))


def run_resnet(case: Case) -> Runner:
    """Feature maps with running and with batch statistics, and the running statistics
    afterwards."""
    kind = "resnet_v1c" if "stem.0.weight" in case.groups["sd"] else "resnet_torchvision"
    shown = describe(case.groups["sd"], kind)["encoder"]
    module = build_encoder(config.Model(encoder=encoder_config(shown, case.meta["config"])))
    image = jnp.asarray(nhwc(case.groups["in"]["x"]))

    @jax.jit
    def outputs(variables: Any) -> tuple[dict[str, jax.Array], Any]:
        still = module.apply(variables, image, "eval")
        train, found = module.apply(variables, image, "train", mutable=["moments"])
        stats = fold_moments(variables["batch_stats"], found["moments"])
        named = {f"eval_feat_{i}": nchw(feature) for i, feature in enumerate(still)}
        return named | {f"train_feat_{i}": nchw(feature) for i, feature in enumerate(train)}, stats

    def run(state: State) -> dict[str, Any]:
        variables = import_torch(state, kind)
        maps, stats = outputs(variables)
        found = {}
        for name in case.groups["out"]:
            if match := re.fullmatch(r"((?:eval|train)_feat_\d+)(?:_every(\d+))?", name):
                found[name] = _sampled(maps[match[1]], match[2], None)
        return found | _after_train(case, kind, variables["params"], stats)

    return run


def _after_train(case: Case, kind: str, params: Any, stats: Any) -> dict[str, np.ndarray]:
    """The running statistics after a forward in training, where the case has them."""
    after = export_torch({"params": params, "batch_stats": stats}, kind)
    names = [key for key in case.groups["out"] if key.startswith("after_train_")]
    return {name: after[name.removeprefix("after_train_")] for name in names}


def run_decoder(case: Case) -> Runner:
    """Logits with running and with batch statistics, and the running statistics afterwards."""
    shown = describe(case.groups["sd"], "decoder")["decoder"]
    module = build_decoder(decoder_config(shown, case.meta["config"]), shown["num_classes"])
    features = _features(case)

    @jax.jit
    def outputs(variables: Any) -> tuple[dict[str, jax.Array], Any]:
        logits = module.apply(variables, features, "eval")
        train, found = module.apply(variables, features, "pseudo", mutable=["moments"])
        # DeepLabV2 has no BatchNorm.
        stats = fold_moments(variables["batch_stats"], found.get("moments", {}))
        return {"logits": nchw(logits), "logits_train_bn": nchw(train)}, stats

    def run(state: State) -> dict[str, Any]:
        variables = import_torch(state, "decoder")
        found, stats = outputs(variables)
        found = {name: value for name, value in found.items() if name in case.groups["out"]}
        return found | _after_train(case, "decoder", variables["params"], stats)

    return run


def rebuilder(case: Case) -> nn.Module:
    """The Rebuilder of a case. The stored mask is drawn on its grid and rebuilds at cells of 0."""
    stored, shown = case.meta["config"], describe(case.groups["sd"], "rebuilder")["rebuilder"]
    first, grid = case.groups["in"]["feat_0"], case.groups["in"]["mask"].shape[2:]
    mrm = config.MRM(
        grid=(grid[0], grid[1]),
        dim=shown["embed_dim"],
        depth=shown["depth"],
        heads=stored["num_heads"],
    )
    if shown["layout"] == "single":
        spec = FeatureSpec((shown["channels"],) * 4, (4, 8, 8, 8), 8)
        crop, kind = (first.shape[2] * 8, first.shape[3] * 8), "deeplabv2"
    else:
        spec = feature_spec(config.Encoder(dims=shown["channels"]))
        crop, kind = (
            (first.shape[2] * spec.strides[0], first.shape[3] * spec.strides[0]),
            "daformer",
        )
    module = build_rebuilder(mrm, spec, kind, crop)
    return module.clone(mlp_ratio=shown["mlp_width"] // shown["embed_dim"])


def run_rebuilder(case: Case) -> Runner:
    """Rebuilt maps and, where the case has cotangents, the gradients."""
    module, given = rebuilder(case), case.groups["in"]
    features, mask = _features(case), jnp.asarray(given["mask"][:, 0])
    count = len(features)
    # A decoder of one stage reads the last of four; the module's other maps pass through.
    pad = len(module.spec.channels) - count

    def forward(params: Any, maps: Any) -> Any:
        all_maps = (maps[0],) * pad + tuple(maps)
        return module.apply({"params": params}, all_maps, mask, 0.5)[pad:]

    @jax.jit
    def outputs(params: Any) -> Any:
        if "cotangent_0" not in given:
            return forward(params, features), (), ()
        cotangents = tuple(jnp.asarray(nhwc(given[f"cotangent_{i}"])) for i in range(count))
        rebuilt, pull = jax.vjp(forward, params, features)
        return rebuilt, *pull(cotangents)

    def run(state: State) -> dict[str, Any]:
        rebuilt, params_grad, maps_grad = outputs(import_torch(state, "rebuilder")["params"])
        found = {f"grad_feat_{i}": nchw(gradient) for i, gradient in enumerate(maps_grad)}
        for name in case.groups["out"]:
            if match := re.fullmatch(r"rebuilt_(\d+)(?:_every(\d+)|(_mean_abs))?", name):
                found[name] = _sampled(nchw(rebuilt[int(match[1])]), match[2], match[3])
        if "grad_l2_per_param" in case.groups["out"]:
            named = export_torch({"params": params_grad, "batch_stats": {}}, "rebuilder")
            found["grad_l2_per_param"] = _norms(case, named)
        return found

    return run


def run_segformer(case: Case) -> Runner:
    """A whole Hugging Face network, which normalises with eps 1e-5 everywhere."""
    shown = describe(case.groups["sd"], "hf_segformer")
    encoder = config.Encoder(
        **{
            **vars(encoder_config(shown["encoder"], case.meta["config"])),
            "norm_eps": 1e-5,
            "embed_norm_eps": 1e-5,
        }
    )
    decoder = decoder_config(shown["decoder"], {})
    model = config.Model(encoder=encoder, decoder=decoder)
    module = build_segmentor(model, shown["decoder"]["num_classes"])
    image = jnp.asarray(nhwc(case.groups["in"]["x"]))

    @jax.jit
    def outputs(variables: Any) -> dict[str, jax.Array]:
        found = module.apply(variables, image, mode="eval")
        hidden = {f"hidden_{i}": nchw(feature) for i, feature in enumerate(found.features)}
        return {"logits": nchw(found.logits["main"]), **hidden}

    return lambda state: outputs(import_torch(state, "hf_segformer"))


def _features(case: Case) -> tuple[jax.Array, ...]:
    names = sorted(key for key in case.groups["in"] if re.fullmatch(r"feat_\d+", key))
    return tuple(jnp.asarray(nhwc(case.groups["in"][name])) for name in names)


def _sampled(x: jax.Array, every: str | None, mean: str | None) -> jax.Array:
    step = int(every or 1)
    return jnp.abs(x).mean() if mean else x[:, ::step, ::step, ::step]


def _norms(case: Case, gradients: State) -> np.ndarray:
    """L2 norm of the gradient of each parameter; NaN for the position table, which is none."""
    return np.array([
        np.linalg.norm(gradients[name].astype(np.float64)) if name in gradients else np.nan
        for name in case.meta["param_order"]
    ])  # fmt: skip
