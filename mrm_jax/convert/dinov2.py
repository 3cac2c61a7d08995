"""DINOv2 under the names of Meta's code, Hugging Face's transformers (both spellings) and timm, and
VFM-UDA's network around it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mrm_jax.convert.layouts import (
    DecoderFiles,
    EncoderFiles,
    Layout,
    LayoutKind,
    Part,
    Shapes,
    affine,
    norm,
)
from mrm_jax.convert.rules import Drop, Row, Symbols
from mrm_jax.registry import ENCODER_KINDS
from mrm_jax.registry.dinov2 import ffn_width

# Sizes: V channels (the heads behind it have a D of their own), hidden and gated the width inside
# plain and gated feed-forward parts.

_HEAD_WIDTH = 64
"""Channels of an attention head in every published size."""


def _shown(symbols: Symbols) -> dict[str, Any]:
    """What `describe` says."""
    return {
        "dims": (symbols.get("V"),),
        "depths": (symbols.get("depth"),),
        "patch": symbols.get("patch"),
        "mlp_width": symbols.get("hidden"),
        "gated_width": symbols.get("gated"),
        "registers": symbols.get("registers"),
        "position_tokens": symbols.get("positions"),
    }


def _square(tokens: int | None) -> int:
    """The side of a square of so many positions; 0 where there is none."""
    side = math.isqrt(tokens or 0)
    return side if side * side == tokens else 0


def _problem(symbols: Symbols) -> str | None:
    tokens = symbols.get("positions")
    if tokens is not None and not _square(tokens - 1):
        return f"there are {tokens} positions, which are no class token's and a square's"
    return None


def _problem_without_class(symbols: Symbols) -> str | None:
    tokens = symbols.get("positions")
    if tokens is not None and not _square(tokens):
        return f"there are {tokens} positions, which are no square's"
    return None


def _gated(w12: str, w3: str) -> tuple[Row, ...]:
    counted: dict[str, Any] = {"count": "depth", "group": "gated"}
    return (
        *affine(w12, "blocks/mlp/w12", "dense", "2gated V", **counted),
        *affine(w3, "blocks/mlp/w3", "dense", "V gated", **counted),
    )


def _plain(fc1: str, fc2: str) -> tuple[Row, ...]:
    counted: dict[str, Any] = {"count": "depth", "group": "plain"}
    return (
        *affine(fc1, "blocks/mlp/fc1", "dense", "hidden V", **counted),
        *affine(fc2, "blocks/mlp/fc2", "dense", "V hidden", **counted),
    )


def _block(
    block: str, qkv: str | tuple[str, ...], proj: str, scales: tuple[str, str]
) -> tuple[Row, ...]:
    """Rows of the blocks, whose names start with `block`, without their feed-forward part."""
    counted: dict[str, Any] = {"count": "depth"}
    fused = block + qkv if isinstance(qkv, str) else tuple(block + name for name in qkv)
    return (
        *norm(f"{block}norm1", "blocks/norm1", "V", **counted),
        *affine(fused, "blocks/attn/qkv", "dense", "3V V", **counted),
        *affine(block + proj, "blocks/attn/proj", "dense", "V V", **counted),
        Row(block + scales[0], "blocks/ls1", "vector", "V", **counted),
        *norm(f"{block}norm2", "blocks/norm2", "V", **counted),
        Row(block + scales[1], "blocks/ls2", "vector", "V", **counted),
    )


_BLOCK = _block("blocks.{j}.", "attn.qkv", "attn.proj", ("ls1.gamma", "ls2.gamma"))
_ENDS = (
    *affine("patch_embed.proj", "patch_embed", "conv", "V 3 patch patch"),
    *norm("norm", "norm", "V"),
)

META = Layout(
    "dinov2",
    (
        Row("cls_token", "cls_token", "cls", "1 1 V"),
        Row("pos_embed", "positions", "tokens", "1 positions V"),
        Row("mask_token", "mask_token", "row", "1 V"),
        Row("register_tokens", "register_tokens", "tokens", "1 registers V", group="registers"),
        *_BLOCK,
        *_plain("blocks.{j}.mlp.fc1", "blocks.{j}.mlp.fc2"),
        *_gated("blocks.{j}.mlp.w12", "blocks.{j}.mlp.w3"),
        *_ENDS,
    ),
    marks=("mask_token",),
    paths=("cls_token", "blocks/ls1"),
    shows=_shown,
    relation=_problem,
)


def _hub(name: str, qkv: tuple[str, ...], proj: str) -> Layout:
    block, patches = "encoder.layer.{j}.", "embeddings.patch_embeddings"
    return replace(
        META,
        name=name,
        rows=(
            Row("embeddings.cls_token", "cls_token", "cls", "1 1 V"),
            Row("embeddings.mask_token", "mask_token", "row", "1 V"),
            Row(
                "embeddings.register_tokens", "register_tokens", "tokens", "1 registers V",
                group="registers",
            ),
            Row("embeddings.position_embeddings", "positions", "tokens", "1 positions V"),
            *affine(f"{patches}.projection", "patch_embed", "conv", "V 3 patch patch"),
            *_block(block, qkv, proj, ("layer_scale1.lambda1", "layer_scale2.lambda1")),
            *_plain(f"{block}mlp.fc1", f"{block}mlp.fc2"),
            *_gated(f"{block}mlp.weights_in", f"{block}mlp.weights_out"),
            *norm("layernorm", "norm", "V"),
        ),
        marks=(f"encoder.layer.0.{qkv[0]}.weight",),
    )  # fmt: skip


_SELF = "attention.attention"
HUB = _hub(
    "dinov2_hf_hub",
    (f"{_SELF}.query", f"{_SELF}.key", f"{_SELF}.value"),
    "attention.output.dense",
)
FIVE = _hub(
    "dinov2_hf_transformers5",
    ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attention.o_proj",
)

_FC = ("blocks.{j}.mlp.fc1", "blocks.{j}.mlp.fc2")
_NO_MASK = Row((), "mask_token", "zeros", "V")


def _is_gated(shapes: Shapes) -> bool:
    """Whether timm's two dense layers, which are called alike, are gated ones: the first then gives
    twice what the second reads."""
    first, second = (shapes.get(f"blocks.0.mlp.{name}.weight", ()) for name in ("fc1", "fc2"))
    return len(first) == len(second) == 2 and first[0] == 2 * second[1]


def _classless(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The class token's position added to the token, where timm has no place for it."""
    positions = np.array(tree["positions"])
    moved = {"cls_token": np.asarray(tree["cls_token"]) + positions[0]}
    positions[0] = 0
    return {**tree, **moved, "positions": positions}


def _timm(shapes: Shapes, ours: bool) -> Layout:
    """timm's names of the network in a state dict, or in our tree."""
    gated = "blocks/mlp/w12/kernel" in shapes if ours else _is_gated(shapes)
    registers = ("register_tokens" if ours else "reg_token") in shapes
    tokens: tuple[Row, ...] = (Row("pos_embed", "positions", "tokens", "1 positions V"),)
    if registers:
        tokens = (
            Row("reg_token", "register_tokens", "tokens", "1 registers V"),
            Row("pos_embed", "positions", "tokens_after_zero", "1 positions V"),
        )
    return replace(
        TIMM,
        rows=(
            Row("cls_token", "cls_token", "cls", "1 1 V"),
            *tokens,
            _NO_MASK,
            *_BLOCK,
            *(_gated(*_FC) if gated else _plain(*_FC)),
            *_ENDS,
        ),
        relation=_problem_without_class if registers else _problem,
        fold=_classless if registers else None,
    )


TIMM = replace(META, name="timm_dinov2", rows=(), marks=("blocks.0.ls1.gamma",), fitted=_timm)
VFM = replace(META, name="dinov2_vfm_uda")


def _widths_problem(symbols: Symbols) -> str | None:
    dim = symbols.get("V")
    found = tuple(symbols.get(name) for name in ("W", "Q"))
    if dim is None or None in found or found == (dim // 2, dim // 4):
        return None
    return f"the head is {found[0]} and {found[1]} channels wide, {dim // 2} and {dim // 4} fit"


LIGHT = Layout(
    "vit_light",
    (
        Row("upscale.0.weight", "up1/kernel", "deconv", "V W 2 2"),
        *norm("upscale.1", "norm1", "W"),
        Row("upscale.3.weight", "up2/kernel", "deconv", "W Q 2 2"),
        *norm("upscale.4", "norm2", "Q"),
        Row("upscale.5.weight", "conv/kernel", "conv", "Q Q 3 3"),
        *norm("upscale.6", "norm3", "Q"),
        Row("out.weight", "classifier/kernel", "conv1x1", "K Q 1 1"),
    ),
    marks=("upscale.0.weight",),
    paths=("up1/kernel",),
    facts=(("in_channels", "V"), ("num_classes", "K")),
    relation=_widths_problem,
)


# The pyramid stands in a segmentor's files where mmseg has a neck; its names are ours.
PYRAMID = Layout(
    "pyramid",
    (
        *affine("up4a", "up4a", "deconv", "V W 2 2"),
        *norm("norm4a", "norm4a", "W"),
        *affine("up4b", "up4b", "deconv", "W Q 2 2"),
        *norm("norm4b", "norm4b", "Q"),
        *affine("up2", "up2", "deconv", "V W 2 2"),
        *norm("norm2", "norm2", "W"),
    ),
    marks=("up4a.weight",),
    paths=("up4a/kernel",),
    relation=_widths_problem,
)


def _fields(shown: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    layout, (dim,) = shown["layout"], shown["dims"]
    registers, gated = shown["registers"] or 0, shown["gated_width"]
    classless = registers and layout == TIMM.name
    tokens = shown["position_tokens"] or 0
    heads = (dim // _HEAD_WIDTH,) if _whole_heads(dim) else (1,)
    # With registers all three do the same.
    resizing = {HUB.name: "resize", FIVE.name: "resize", TIMM.name: "antialias"}
    positions = "meta" if registers else resizing.get(layout, "meta")
    found = {
        "dims": (dim,),
        "depths": shown["depths"],
        "strides": (shown["patch"] or 14,),
        "heads": heads,
        "ffn": "swiglu" if gated else "mlp",
        "mlp_ratios": (_ratio(gated, dim) if gated else (shown["mlp_width"] or 4 * dim) // dim,),
        "registers": registers,
        "position_grid": _square(tokens if classless else tokens - 1),
        "positions": positions,
        "resize": "1.1" if layout == VFM.name else "native",
        "pyramid": shown.get("neck") is not None,
        "drop_path": 0.0,
    }
    assumed = (f"heads {heads}", "LayerNorm epsilon 1e-06", f"positions {positions!r}")
    return found, assumed


def _ratio(gated: int, dim: int) -> int:
    """The entry of `mlp_ratios` that gives gated layers of this width, or the nearest."""
    return min(range(1, 65), key=lambda ratio: abs(ffn_width("swiglu", dim, ratio) - gated))


def _whole_heads(dim: int) -> bool:
    return dim % _HEAD_WIDTH == 0


def _guessed(encoder: Any) -> str | None:
    if _whole_heads(encoder.dims[0]):
        return None
    return f"the attention heads of an encoder of width {encoder.dims[0]}"


def _size(fields: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """What `describe` must find in a file of one size."""
    return (
        ("dims", fields["dims"]),
        ("depths", fields["depths"]),
        ("registers", fields["registers"] or None),
    )


def _natural(model: Any) -> str:
    plain = model.encoder.kind == "dinov2" and not model.encoder.pyramid
    return "vfm_uda" if plain else "segmentor"


_CLASSIFIER = (Drop(r"classifier\.(weight|bias)", "the classifier of ImageNet's 1000 classes"),)
FILES = EncoderFiles(
    layouts=(META,),
    alone=(TIMM,),
    others=(HUB, FIVE, VFM),
    kinds={
        "hf_dinov2": LayoutKind(
            (Part("encoder", (HUB, FIVE)),),
            _CLASSIFIER,
            spares=("dinov2.", "dinov2_with_registers."),
        ),
        "vfm_uda": LayoutKind(
            (
                Part("encoder", (VFM,), "encoder.", "encoder/"),
                Part("decoder", (LIGHT,), "", "decoder/"),
            ),
            (Drop(r"token_masking\.mask_token", "a second name of the encoder's mask token"),),
            copies=("network.", "network_ema."),
        ),
    },
    necks=(PYRAMID,),
    sizes={
        name: (META.name, _size(fields))
        for name, fields in ENCODER_KINDS["dinov2"].variants.items()
    },
    fields=_fields,
    guessed=_guessed,
    natural=lambda encoder: META.name,
)
LIGHT_FILES = DecoderFiles(
    layouts=(LIGHT,),
    fields=lambda shown: {},
    natural=_natural,
)
