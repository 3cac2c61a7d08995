"""EfficientNet-Lite under the names of efficientnet_lite_pytorch, MobileNetV2 under torchvision's,
and both under timm's."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mrm_jax.convert.layouts import EncoderFiles, Layout, Shapes, affine, batch_norm_rows
from mrm_jax.convert.rules import Drop, Row, Symbols
from mrm_jax.registry import ENCODER_KINDS
from mrm_jax.registry.encoders import mapped_stages

# Sizes: B0 is the stem's width, B{n + 1} that of what block n gives, H{n} that inside it, k{n} its
# kernel's side; W is the classifier's width and N its classes. Blocks are counted through all
# stages. A decoder calls the maps' widths C1, C2, ...

Stages = tuple[int, ...]
"""How many blocks each stage has."""


@dataclass(frozen=True)
class Names:
    """What a layout calls a network's parts. `block(stage, j, n)`: the prefix of block j of a
    stage, the n-th of all; `head(n)`: the 1x1 before the mean and its BatchNorm, behind n blocks.
    plain, expanded: convolutions and BatchNorms of a block of the first stage, and of any other, in
    order. found: finds stage and block in a tensor's name; one group: blocks of no stage."""

    stem: tuple[str, str]
    block: Callable[[int, int, int], str]
    plain: tuple[str, str, str, str]
    expanded: tuple[str, str, str, str, str, str]
    head: Callable[[int], tuple[str, str]]
    dense: str
    found: str
    first: int = 0


_PACKAGE = Names(
    stem=("_conv_stem", "_bn0"),
    block=lambda stage, j, n: f"_blocks.{n}.",
    plain=("_depthwise_conv", "_bn1", "_project_conv", "_bn2"),
    expanded=("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"),
    head=lambda n: ("_conv_head", "_bn1"),
    dense="_fc",
    found=r"_blocks\.(\d+)\.",
)
_TORCHVISION = Names(
    stem=("features.0.0", "features.0.1"),
    block=lambda stage, j, n: f"features.{n + 1}.conv.",
    plain=("0.0", "0.1", "1", "2"),
    expanded=("0.0", "0.1", "1.0", "1.1", "2", "3"),
    head=lambda n: (f"features.{n + 1}.0", f"features.{n + 1}.1"),
    dense="classifier.1",
    found=r"features\.(\d+)\.conv\.",
    first=1,
)
_TIMM = Names(
    stem=("conv_stem", "bn1"),
    block=lambda stage, j, n: f"blocks.{stage}.{j}.",
    plain=("conv_dw", "bn1", "conv_pw", "bn2"),
    expanded=("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"),
    head=lambda n: ("conv_head", "bn2"),
    dense="classifier",
    found=r"blocks\.(\d+)\.(\d+)\.",
)


def _conv_bn(conv: str, bn: str, path: str, op: str, shape: str) -> tuple[Row, ...]:
    kernel = Row(f"{conv}.weight", f"{path}/kernel", op, shape)
    return (kernel, *batch_norm_rows(bn, f"{path}_bn", shape.split()[0]))


def _block_rows(names: Names, prefix: str, path: str, n: int) -> tuple[Row, ...]:
    found = names.expanded if n else names.plain
    parts = [
        ("depthwise", "conv", f"H{n} 1 k{n} k{n}"),
        ("project", "conv1x1", f"B{n + 1} H{n} 1 1"),
    ]
    if n:
        parts.insert(0, ("expand", "conv1x1", f"H{n} B{n} 1 1"))
    rows: list[Row] = []
    for (part, op, shape), conv, bn in zip(parts, found[::2], found[1::2], strict=True):
        rows += _conv_bn(prefix + conv, prefix + bn, f"{path}/{part}", op, shape)
    return tuple(rows)


def _stages_in(names: Names, keys: Iterable[str]) -> Stages:
    """The stages that tensors' names show; one of all blocks where they show none. A stage that is
    passed over has a block that is missing. No more blocks than there are tensors, whatever their
    numbers."""
    keys = list(keys)
    depths: dict[int, int] = {}
    for key in keys:
        if match := re.match(names.found, key):
            *stage, j = (min(int(number), len(keys)) for number in match.groups())
            at = stage[0] if stage else 0
            depths[at] = max(depths.get(at, 0), j + 1 - names.first)
    return tuple(depths.get(at, 1) for at in range(max(depths, default=-1) + 1))


def _published(kind: str) -> Mapping[str, Any]:
    """The smallest published network of a family."""
    return next(iter(ENCODER_KINDS[kind].variants.values()))


def _grouped(kind: str, blocks: list[tuple[Any, ...]]) -> Stages:
    """The stages of blocks of these (width, kernel, expansion): those of a published network with
    as many blocks where they fit, else one for each run of equal blocks."""
    for fields in ENCODER_KINDS[kind].variants.values():
        ends = list(itertools.accumulate(fields["depths"]))
        spans = zip([0, *ends], ends, strict=False)
        if ends[-1] == len(blocks) and all(len(set(blocks[a:b])) == 1 for a, b in spans):
            return tuple(fields["depths"])
    return tuple(len(list(run)) for _, run in itertools.groupby(blocks))


def _blocks(symbols: Symbols) -> list[tuple[Any, ...]]:
    """(width, kernel, expansion) of every block; None for what no tensor shows."""
    found = []
    while f"B{len(found) + 1}" in symbols or f"H{len(found)}" in symbols:
        n = len(found)
        inside, inputs = symbols.get(f"H{n}"), symbols.get(f"B{n}")
        expansion = inside // inputs if inside and inputs else None
        found.append((symbols.get(f"B{n + 1}"), symbols.get(f"k{n}"), expansion))
    return found


def _shown(kind: str, stages: Stages | None, symbols: Symbols) -> dict[str, Any]:
    """What `describe` says. stages: where the names show them."""
    blocks = _blocks(symbols)
    depths = _grouped(kind, blocks) if stages is None else stages
    ends = itertools.accumulate(depths)
    last = [blocks[end - 1] if 0 < end <= len(blocks) else (None,) * 3 for end in ends]
    return {
        "dims": tuple(width for width, _, _ in last),
        "depths": depths,
        "kernels": tuple(kernel for _, kernel, _ in last),
        "expansions": tuple(expansion for _, _, expansion in last),
        "stem_width": symbols.get("B0"),
        "head_width": symbols.get("W"),
        "num_classes": symbols.get("N"),
    }


def _problem(kind: str, stages: Stages | None, symbols: Symbols) -> str | None:
    blocks = _blocks(symbols)
    for n, _ in enumerate(blocks):
        inside, inputs = symbols.get(f"H{n}"), symbols.get(f"B{n}")
        if inside and inputs and inside % inputs:
            return f"block {n} is {inside} wide inside, a multiple of its {inputs} channels fits"
    widths = _shown(kind, stages, symbols)["dims"]
    strides = _published(kind)["strides"]
    if len(widths) != len(strides):
        return None  # nothing says which stages give the maps
    for i, stage in enumerate(mapped_stages(strides), start=1):
        read, given = symbols.get(f"C{i}"), widths[stage]
        if read and given and read != given:
            return f"the decoder reads {read} channels of map {i}, the encoder gives {given}"
    return None


def _fitted(
    layout: Layout, names: Names, kind: str, block: str, shapes: Shapes, ours: bool
) -> Layout:
    """`layout` with the rows for the blocks that there are in `shapes`, tensors of a state dict or
    leaves of our tree."""
    if ours:
        count = _stages_in(replace(names, found=rf"{block}(\d+)/", first=0), shapes)
        stages = _stages_in_tree(kind, block, sum(count), shapes)
    else:
        stages = _stages_in(names, shapes)
    shown = stages if re.compile(names.found).groups > 1 else None
    rows, n = list(_conv_bn(*names.stem, "stem", "conv", "B0 3 3 3")), 0
    for stage, depth in enumerate(stages):
        for j in range(depth):
            rows += _block_rows(names, names.block(stage, j, n), f"{block}{n}", n)
            n += 1
    conv, bn = names.head(n)
    classifier = (
        Row(f"{conv}.weight", "classifier/conv/kernel", "conv1x1", f"W B{n} 1 1"),
        *batch_norm_rows(bn, "classifier/bn", "W"),
        *affine(names.dense, "classifier/dense", "dense", "N W"),
    )
    pattern = "|".join(re.escape(name) for name in (conv, bn, names.dense))
    return replace(
        layout,
        rows=tuple(rows),
        classifier=classifier,
        drops=(Drop(rf"(?:{pattern})\.\w+", "the classifier of ImageNet's 1000 classes"),),
        shows=partial(_shown, kind, shown),
        relation=partial(_problem, kind, shown),
    )


def _stages_in_tree(kind: str, block: str, count: int, shapes: Shapes) -> Stages:
    blocks: list[tuple[Any, ...]] = []
    for n in range(count):
        wide, kernel = (
            shapes.get(f"{block}{n}/{part}/kernel") for part in ("project", "depthwise")
        )
        if wide is None or kernel is None or len(wide) != 2 or len(kernel) != 4:
            return (count,)  # what is wrong with it is found by the rows
        inputs = blocks[-1][0] if blocks else wide[0]
        blocks.append((wide[1], kernel[0], wide[0] / inputs if inputs else None))
    return _grouped(kind, blocks)


def _layout(name: str, names: Names, kind: str, block: str) -> Layout:
    layout = Layout(
        name,
        (),
        marks=(f"{names.stem[0]}.weight",),
        paths=(f"{block}0/depthwise/kernel",),
    )
    return replace(layout, fitted=partial(_fitted, layout, names, kind, block))


EFFICIENTNET_LITE = _layout("efficientnet_lite", _PACKAGE, "efficientnet_lite", "mbconv")
TIMM_EFFICIENTNET_LITE = _layout("timm_efficientnet_lite", _TIMM, "efficientnet_lite", "mbconv")
MOBILENET_V2 = _layout("mobilenet_v2", _TORCHVISION, "mobilenet_v2", "bottleneck")
TIMM_MOBILENET_V2 = _layout("timm_mobilenet_v2", _TIMM, "mobilenet_v2", "bottleneck")


def _fields(kind: str, shown: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    published = _published(kind)
    strides, stages = published["strides"], len(shown["dims"])
    names = ("dims", "depths", "kernels", "expansions", "stem_width")
    found = {name: shown[name] for name in names}
    found["strides"] = strides if stages == len(strides) else (2,) * stages
    found["drop_path"] = published["drop_path"]
    assumed = [f"strides {found['strides']}"]
    if shown["layout"] == TIMM_EFFICIENTNET_LITE.name:
        assumed.append("TensorFlow's padding and epsilon (timm's tf_efficientnet_lite)")
    return found, tuple(assumed)


def _guessed(kind: str, encoder: Any) -> str | None:
    stages = len(encoder.dims)
    return (
        None
        if stages == len(_published(kind)["strides"])
        else f"the strides of an encoder of {stages} stages"
    )


def _files(kind: str, natural: Layout, timm: Layout, sizes: Mapping[str, Any]) -> EncoderFiles:
    return EncoderFiles(
        layouts=(natural,),
        alone=(timm,),
        sizes={
            name: (natural.name, tuple((fact, fields[fact]) for fact in ("dims", "depths")))
            for name, fields in sizes.items()
        },
        fields=partial(_fields, kind),
        guessed=partial(_guessed, kind),
        natural=lambda encoder: natural.name,
    )


EFFICIENTNET_LITE_FILES = _files(
    "efficientnet_lite",
    EFFICIENTNET_LITE,
    TIMM_EFFICIENTNET_LITE,
    ENCODER_KINDS["efficientnet_lite"].variants,
)
# Its one published size has the name of the layout.
MOBILENET_V2_FILES = _files("mobilenet_v2", MOBILENET_V2, TIMM_MOBILENET_V2, {})
