"""The decoders of DAFormer, SegFormer and DeepLab, under mmseg's and Hugging Face's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mrm_jax.convert.layouts import DecoderFiles, Layout, affine, batch_norm_rows
from mrm_jax.convert.rules import Drop, Row, Symbols

HEAD_FACTS = (("in_channels", "C{s}"), ("channels", "E"), ("num_classes", "K"))


def _conv_bn(source: str, path: str, op: str, shape: str, normed: bool = True) -> tuple[Row, ...]:
    """Rows of a convolution and its BatchNorm, or of one with a bias where it is not `normed`."""
    if not normed:
        return affine(f"{source}.conv", f"{path}/conv", op, shape)
    kernel = Row(f"{source}.conv.weight", f"{path}/conv/kernel", op, shape)
    return (kernel, *batch_norm_rows(f"{source}.bn", f"{path}/bn", shape.split()[0]))


def _separable(
    source: str, path: str, width: str, outputs: str, count: str = "", normed: bool = True
) -> tuple[Row, ...]:
    """Rows of a depthwise and a pointwise convolution; `normed` as for `_conv_bn`."""
    rows: list[Row] = []
    for name, op, shape in (
        ("depthwise", "conv", f"{width} 1 3 3"),
        ("pointwise", "conv1x1", f"{outputs} {width} 1 1"),
    ):
        torch_name, ours = f"{source}.{name}_conv", f"{path}/{name}"
        if normed:
            rows.append(Row(f"{torch_name}.conv.weight", f"{ours}/kernel", op, shape, count=count))
            rows += batch_norm_rows(f"{torch_name}.bn", f"{ours}_bn", shape.split()[0])
        else:
            rows += affine(f"{torch_name}.conv", ours, op, shape, count=count)
    return tuple(rows)


_EMBED = affine("embed_layers.{i}.proj", "embed{i}", "dense", "D C{n}")
_CONV_SEG = affine("conv_seg", "classifier", "conv1x1", "K E 1 1")
_ASPP = "fuse_layer.aspp_modules"


def _branches_problem(symbols: Symbols) -> str | None:
    branches, width = symbols.get("branches", 1), symbols.get("E", 0)
    found = symbols.get("A", branches * width)
    if found == branches * width:
        return None
    return f"the bottleneck reads {found} channels, {branches} branches of {width} give others"


DAFORMER_ASPP = Layout(
    "daformer_aspp",
    (
        *_EMBED,
        *_conv_bn(f"{_ASPP}.0", "fuse/branch0", "conv1x1", "E 4D 1 1"),
        *_separable(_ASPP + ".{b}", "fuse/branch{b}", "4D", "E", "branches"),
        *_conv_bn("fuse_layer.bottleneck", "fuse/bottleneck", "conv", "E A 3 3"),
        *_CONV_SEG,
    ),
    marks=("fuse_layer.bottleneck.conv.weight",),
    paths=("fuse/bottleneck/conv/kernel",),
    facts=(*HEAD_FACTS, ("embed_dim", "D"), ("branches", "branches")),
    relation=_branches_problem,
)

DAFORMER_CONV1 = Layout(
    "daformer_conv1",
    (*_EMBED, *_conv_bn("fuse_layer", "fuse", "conv1x1", "E 4D 1 1"), *_CONV_SEG),
    marks=("fuse_layer.conv.weight",),
    paths=("embed0/kernel", "fuse/conv/kernel"),
    facts=(*HEAD_FACTS, ("embed_dim", "D")),
)

# The op "concat" is the 1x1 kernel over the concatenated stages, whose order of blocks is a
# variant.
SEGFORMER = Layout(
    "segformer",
    (
        *affine("linear_c.{i}.proj", "linear{i}", "dense", "E C{n}"),
        *_conv_bn("linear_fuse", "fuse", "concat", "E 4E 1 1"),
        *affine("linear_pred", "classifier", "conv1x1", "K E 1 1"),
    ),
    marks=("linear_fuse.conv.weight",),
    paths=("linear0/kernel",),
    drops=(Drop(r"conv_seg\.(weight|bias)", "a layer that SegFormer's head never calls"),),
    facts=HEAD_FACTS,
)

# The same head in NVIDIA's own files, which concatenate c4 first. Source: SegFormer's release,
# mmseg/models/decode_heads/segformer_head.py.
SEGFORMER_NVIDIA = replace(
    SEGFORMER,
    rows=(*affine("linear_c{n}.proj", "linear{i}", "dense", "E C{n}"), *SEGFORMER.rows[2:]),
    marks=("linear_c1.proj.weight",),
)


DEEPLABV2 = Layout(
    "deeplabv2",
    affine("aspp_modules.{j}.conv", "branch{j}", "conv", "K C4 3 3", count="branches"),
    marks=("aspp_modules.0.conv.weight",),
    paths=("branch0/kernel",),
    facts=(("in_channels", "C4"), ("num_classes", "K"), ("branches", "branches")),
)


def _deeplabv3plus(normed: bool) -> tuple[Row, ...]:
    aspp, refine = "aspp_modules", "sep_bottleneck"
    return (
        *_conv_bn("image_pool.1", "pool", "conv1x1", "E C4 1 1", normed),
        *_conv_bn(f"{aspp}.0", "branch0", "conv1x1", "E C4 1 1", normed),
        *_separable(aspp + ".{b}", "branch{b}", "C4", "E", "branches", normed),
        *_conv_bn("bottleneck", "bottleneck", "conv", "E A 3 3", normed),
        *_conv_bn("c1_bottleneck", "low", "conv1x1", "L C1 1 1", normed),
        *_separable(f"{refine}.0", "refine0", "R", "E", normed=normed),
        *_separable(f"{refine}.1", "refine1", "E", "E", normed=normed),
        *_CONV_SEG,
    )


def _deeplabv3plus_problem(symbols: Symbols) -> str | None:
    branches, width = symbols.get("branches", 1) + 1, symbols.get("E", 0)
    found = symbols.get("A", branches * width)
    if found != branches * width:
        return f"the bottleneck reads {found} channels, {branches} branches of {width} give others"
    low, refined = symbols.get("L", 0), symbols.get("R")
    if refined is not None and refined != width + low:
        return f"the refinement reads {refined} channels, {width} and {low} give others"
    return None


DEEPLABV3PLUS_BN = Layout(
    "deeplabv3plus_bn",
    _deeplabv3plus(normed=True),
    marks=("image_pool.1.bn.weight",),
    paths=("pool/bn/scale",),
    facts=(
        ("in_channels", "C4"),
        ("low_in_channels", "C1"),
        ("low_channels", "L"),
        ("channels", "E"),
        ("num_classes", "K"),
        ("branches", "branches"),
    ),
    relation=_deeplabv3plus_problem,
)

DEEPLABV3PLUS = replace(
    DEEPLABV3PLUS_BN,
    name="deeplabv3plus",
    rows=_deeplabv3plus(normed=False),
    marks=("image_pool.1.conv.bias",),
    paths=("pool/conv/bias",),
)


def _hf_head(projection: str) -> tuple[Row, ...]:
    return (
        *affine(projection + ".{i}.proj", "linear{i}", "dense", "E C{n}"),
        Row("linear_fuse.weight", "fuse/conv/kernel", "concat", "E 4E 1 1"),
        *batch_norm_rows("batch_norm", "fuse/bn", "E"),
        *affine("classifier", "classifier", "conv1x1", "K E 1 1"),
    )


HF_HEAD_HUB = replace(
    SEGFORMER, rows=_hf_head("linear_c"), marks=("linear_c.0.proj.weight",), drops=()
)
HF_HEAD_FIVE = replace(
    SEGFORMER,
    rows=_hf_head("linear_projections"),
    marks=("linear_projections.0.proj.weight",),
    drops=(),
)


def as_attention(layout: Layout) -> Layout:
    """The same layout for HRDA's attention head, whose widths are its own: the decoder's classes
    and the encoder's channels, but another E and D."""
    own = {symbol: f"{symbol}att" for symbol in ("D", "E")}

    def renamed(text: str) -> str:
        return re.sub(r"(?<![A-Za-z])([DE])(?![A-Za-z])", lambda m: own[m[1]], text)

    rows = tuple(replace(row, shape=renamed(row.shape)) for row in layout.rows)
    facts = tuple((name, renamed(symbol)) for name, symbol in layout.facts)
    return replace(layout, rows=rows, facts=facts)


def _fields(shown: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Fields of `config.Decoder` that every head shows: its width, where it has one."""
    width = {"channels": shown["channels"]} if shown.get("channels") else {}
    return {**width, **more}


def _branched(known: Mapping[int, tuple[int, ...]], shown: Mapping[str, Any]) -> dict[str, Any]:
    """The dilations that published networks with so many branches have; no tensor shows them."""
    found = known.get(shown.get("branches") or 0)
    return {} if found is None else {"dilations": found}


def _daformer(shown: Mapping[str, Any]) -> dict[str, Any]:
    fusion = "conv1" if shown["layout"] == DAFORMER_CONV1.name else "aspp"
    return _fields(shown, fusion=fusion, **_branched({4: (1, 6, 12, 18)}, shown))


def _deeplabv2(shown: Mapping[str, Any]) -> dict[str, Any]:
    return _fields(shown, **_branched({2: (6, 12), 4: (6, 12, 18, 24)}, shown))


def _v3plus(shown: Mapping[str, Any]) -> dict[str, Any]:
    low = {"low_channels": shown["low_channels"]} if shown.get("low_channels") else {}
    norm = shown["layout"] == DEEPLABV3PLUS_BN.name
    return _fields(shown, norm=norm, **low, **_branched({4: (1, 12, 24, 36)}, shown))


DAFORMER_FILES = DecoderFiles(
    layouts=(DAFORMER_ASPP, DAFORMER_CONV1),
    attentions=(as_attention(DAFORMER_CONV1),),
    fields=_daformer,
)
SEGFORMER_FILES = DecoderFiles(layouts=(SEGFORMER,), fields=_fields)
DEEPLABV3PLUS_FILES = DecoderFiles(layouts=(DEEPLABV3PLUS_BN, DEEPLABV3PLUS), fields=_v3plus)
DEEPLABV2_FILES = DecoderFiles(
    layouts=(DEEPLABV2,), attentions=(as_attention(DEEPLABV2),), fields=_deeplabv2
)
