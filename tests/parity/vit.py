"""DINOv2 and VFM-UDA's network for the stored cases, as `networks` does it for the others: what the
tensors show by the functions that `convert` uses, the rest from the sidecar."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden import Case
from networks import nchw, nhwc

from mrm_jax import config
from mrm_jax.convert import describe, detect, import_torch
from mrm_jax.convert.network import model_of
from mrm_jax.models.build import build_decoder, build_encoder, build_segmentor
from mrm_jax.models.dinov2 import ViTBlock
from mrm_jax.ops.layer_norm import layer_norm

State = Mapping[str, np.ndarray]
Runner = Callable[[State, Any], dict[str, jax.Array]]
"""From the weights of a case and a dtype to our outputs, under the names that it stores."""


def model(state: State, stored: Mapping[str, Any]) -> config.Model:
    """What the names and shapes show, with the heads, epsilon and filter of the sidecar."""
    found = model_of(describe(state, detect(state)))[0]
    stored = stored.get("encoder", stored)
    heads = stored.get("num_heads") or stored["num_attention_heads"]
    eps = stored.get("layernorm_eps") or stored.get("layer_norm_eps") or found.encoder.norm_eps
    encoder = replace(
        found.encoder,
        heads=(heads,),
        norm_eps=float(eps[0] if isinstance(eps, list) else eps),
    )
    if "interpolate_antialias" in stored:  # Meta's own code, where both may be chosen
        plain = "meta" if stored["interpolate_offset"] else "resize"
        how = "antialias" if stored["interpolate_antialias"] else plain
        encoder = replace(encoder, positions=how)
    return replace(found, encoder=encoder, unroll=False)


def _inputs(case: Case) -> dict[str, np.ndarray]:
    """The pictures by their size, "HxW"."""
    return {k[2:]: nhwc(x) for k, x in case.groups["in"].items() if re.fullmatch(r"x_\d+x\d+", k)}


def _tree(state: State, dtype: Any) -> Any:
    """The variables of a case in `dtype`."""
    found = import_torch(state, detect(state))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), found)


def _all_tokens(module: Any, params: Any, image: jax.Array, hide: Any) -> tuple[Any, Any]:
    """Tokens before the first block, and [blocks, B, N, C] after each of them."""

    def caught(part: Any, method: str) -> bool:
        return method == "_with_prefix" or (isinstance(part, ViTBlock) and method == "__call__")

    _, kept = module.apply(
        {"params": params},
        image,
        "eval",
        hide,
        capture_intermediates=caught,
        mutable=["intermediates"],
    )
    caught_ones = kept["intermediates"]
    return caught_ones["_with_prefix"][0], caught_ones["blocks"]["__call__"][0][0]


def run_encoder(case: Case) -> Runner:
    """Every block's tokens, before and after the final norm, under each library's names."""
    made, images = model(case.groups["sd"], case.meta["config"]), _inputs(case)
    module, prefix = build_encoder(made), 1 + made.encoder.registers
    eps, patch = made.encoder.norm_eps, made.encoder.strides[0]
    mask = case.groups["in"].get("mask")

    def named(params: Any, size: str, image: jax.Array) -> dict[str, jax.Array]:
        batch, rows, columns = len(image), image.shape[1] // patch, image.shape[2] // patch
        hide = None if mask is None else jnp.asarray(mask).reshape(batch, rows, columns)
        start, raw = _all_tokens(module, params, image, hide)
        norm = params["norm"]
        tokens = layer_norm(raw, norm["scale"], norm["bias"], eps)

        def grid(x: jax.Array) -> jax.Array:
            return nchw(x[:, prefix:].reshape(batch, rows, columns, -1))

        last, found = tokens[-1], {"hidden0": start}
        for i, (before, after) in enumerate(zip(raw, tokens, strict=True)):
            found |= {f"hidden{i + 1}": before, f"layer{i}": grid(after), f"cls{i}": after[:, 0]}
            found |= {f"prefix{i}": after[:, :prefix], f"prenorm{i}": grid(before)}
        found |= {"registers": last[:, 1:prefix], "last_hidden_state": last}
        found["forward_features"] = last
        found = {f"{name}_{size}": value for name, value in found.items()}
        if mask is None:
            return found
        return {"patch_tokens": last[:, prefix:], "cls": last[:, 0], "prenorm": raw[-1], **found}

    @jax.jit
    def outputs(params: Any, given: Any) -> dict[str, jax.Array]:
        found = {}
        for size, image in given.items():
            found |= named(params, size, image)
        return _sampled(found, case)

    def run(state: State, dtype: Any) -> dict[str, jax.Array]:
        given = {size: jnp.asarray(image, dtype) for size, image in images.items()}
        return outputs(_tree(state, dtype)["params"], given)

    return run


def _sampled(found: Mapping[str, jax.Array], case: Case) -> dict[str, jax.Array]:
    """What the case stores, of maps that are stored as `_everyN` the same part."""
    kept = {}
    for name in case.groups["out"]:
        plain, _, every = name.partition("_every")
        step = int(every or 1)
        kept[name] = found[plain][:, :, ::step, ::step] if every else found[plain]
    return kept


def run_head(case: Case) -> Runner:
    """Logits, and the maps after the first and the second LayerNorm."""
    shown = describe(case.groups["sd"], "decoder")["decoder"]
    module = build_decoder(config.Decoder("vit_light"), shown["num_classes"])
    (name,) = case.groups["in"]
    tokens = nhwc(case.groups["in"][name])

    @jax.jit
    def outputs(variables: Any, maps: Any) -> dict[str, jax.Array]:
        logits, kept = module.apply(
            variables, maps, "eval", capture_intermediates=True, mutable=["intermediates"]
        )
        norms = {f"upscale{i}": kept["intermediates"][n]["__call__"][0]
                 for i, n in ((1, "norm1"), (4, "norm2"), (6, "norm3"))}  # fmt: skip
        return {k: nchw(v) for k, v in {"logits": logits, **norms}.items()}

    def run(state: State, dtype: Any) -> dict[str, jax.Array]:
        found = outputs(_tree(state, dtype), (jnp.asarray(tokens, dtype),))
        return _sampled(found, case)

    return run


def run_segmentor(case: Case) -> Runner:
    """The network on pictures of whole patches as they are, and as published, with and without
    hidden tokens; there the logits are resized to the picture as every consumer of ours does."""
    from mrm_jax.ops.resize import resize

    made, images = model(case.groups["sd"], case.meta["config"]), _inputs(case)
    assert made.encoder.resize == "1.1"
    masks = {k[5:]: v for k, v in case.groups["in"].items() if k.startswith("mask_")}
    classes = describe(case.groups["sd"], "vfm_uda")["decoder"]["num_classes"]
    plain = replace(made, encoder=replace(made.encoder, resize="native"))

    def through(made: Any, variables: Any, image: jax.Array, hide: Any) -> Any:
        module = build_segmentor(made, classes)
        size = (image.shape[1], image.shape[2])
        maps = module.apply(variables, image, mode="eval", hide=hide, method="encode")
        output = module.apply(variables, maps, size=size, mode="eval", method="decode")
        return maps["context"][-1], output.logits["main"]

    @jax.jit
    def outputs(variables: Any, given: Any) -> dict[str, jax.Array]:
        found = {}
        for size, image in given.items():
            full = (image.shape[1], image.shape[2])
            runs = [("", plain, None), ("published_", made, None)]
            if size in masks:
                grid = config.map_sizes(made.encoder, *full)[0]
                hide = jnp.asarray(masks[size]).reshape(-1, *grid)
                runs.append(("published_masked_", made, hide))
            for prefix, network, hide in runs:
                maps, logits = through(network, variables, image, hide)
                logits = resize(logits, full) if prefix else logits
                found |= {f"{prefix}features_{size}": maps, f"{prefix}logits_{size}": logits}
        return _sampled({name: nchw(value) for name, value in found.items()}, case)

    def run(state: State, dtype: Any) -> dict[str, jax.Array]:
        given = {size: jnp.asarray(image, dtype) for size, image in images.items()}
        return outputs(_tree(state, dtype), given)

    return run
