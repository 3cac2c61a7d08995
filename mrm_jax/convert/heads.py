"""The decoders of DAFormer and SegFormer, under mmseg's and Hugging Face's names."""

from __future__ import annotations

from dataclasses import replace

from mrm_jax.convert.layouts import Layout, affine, batch_norm
from mrm_jax.convert.rules import Drop, Row, Symbols

HEAD_FACTS = (("in_channels", "C{s}"), ("channels", "E"), ("num_classes", "K"))


def _conv_bn(source: str, path: str, op: str, shape: str) -> tuple[Row, ...]:
    kernel = Row(f"{source}.conv.weight", f"{path}/conv/kernel", op, shape)
    return (kernel, *batch_norm(f"{source}.bn", f"{path}/bn", shape.split()[0]))


def _separable(source: str, path: str, width: str, outputs: str) -> tuple[Row, ...]:
    deep, point = f"{source}.depthwise_conv", f"{source}.pointwise_conv"
    return (
        Row(
            f"{deep}.conv.weight",
            f"{path}/depthwise/kernel",
            "conv",
            f"{width} 1 3 3",
            count="branches",
        ),
        *batch_norm(f"{deep}.bn", f"{path}/depthwise_bn", width),
        Row(
            f"{point}.conv.weight", f"{path}/pointwise/kernel", "conv1x1", f"{outputs} {width} 1 1"
        ),
        *batch_norm(f"{point}.bn", f"{path}/pointwise_bn", outputs),
    )


_EMBED = affine("embed_layers.{i}.proj", "embed{i}", "dense", "D C{n}")
_CONV_SEG = affine("conv_seg", "classifier", "conv1x1", "K E 1 1")
_ASPP = "fuse_layer.aspp_modules"


def _branches_problem(symbols: Symbols) -> str | None:
    branches, width = symbols.get("branches", 0) + 1, symbols.get("E", 0)
    found = symbols.get("A", branches * width)
    if found == branches * width:
        return None
    return f"the bottleneck reads {found} channels, {branches} branches of {width} give others"


DAFORMER_ASPP = Layout(
    "daformer_aspp",
    (
        *_EMBED,
        *_conv_bn(f"{_ASPP}.0", "fuse/branch0", "conv1x1", "E 4D 1 1"),
        *_separable(_ASPP + ".{b}", "fuse/branch{b}", "4D", "E"),
        *_conv_bn("fuse_layer.bottleneck", "fuse/bottleneck", "conv", "E A 3 3"),
        *_CONV_SEG,
    ),
    marks=("fuse_layer.bottleneck.conv.weight",),
    paths=("fuse/bottleneck/conv/kernel",),
    facts=(*HEAD_FACTS, ("embed_dim", "D"), ("separable_branches", "branches")),
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


def _hf_head(projection: str) -> tuple[Row, ...]:
    return (
        *affine(projection + ".{i}.proj", "linear{i}", "dense", "E C{n}"),
        Row("linear_fuse.weight", "fuse/conv/kernel", "concat", "E 4E 1 1"),
        *batch_norm("batch_norm", "fuse/bn", "E"),
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
