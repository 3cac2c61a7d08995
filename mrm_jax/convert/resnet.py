"""ResNet under the names of open-mmlab's v1c weights and of torchvision; both name the blocks
alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mrm_jax.config import Encoder
from mrm_jax.convert.layouts import EncoderFiles, Layout, batch_norm_rows
from mrm_jax.convert.rules import CLOSED, Drop, Row, Symbols
from mrm_jax.registry import ENCODER_KINDS

# Sizes: C0 is the stem's width, H that of v1c's first two convolutions, C of a stage's map, P
# inside its blocks.


def _block(source: str, path: str, inputs: str, group: str = "") -> tuple[Row, ...]:
    """Rows of one bottleneck block, or of a stack of them where `source` has an open index."""
    more: dict[str, Any] = {"group": group, "count": "depth{s}" if group else ""}
    rows: list[Row] = []
    for i, (op, shape) in enumerate(
        (
            ("conv1x1", f"P{{s}} {inputs} 1 1"),
            ("conv", "P{s} P{s} 3 3"),
            ("conv1x1", "C{s} P{s} 1 1"),
        ),
        start=1,
    ):
        kernel = f"{path}/conv{i}/kernel"
        rows.append(Row(f"{source}.conv{i}.weight", kernel, op, shape, **more))
        rows += batch_norm_rows(f"{source}.bn{i}", f"{path}/bn{i}", shape.split()[0], **more)
    return tuple(rows)


def _stem(convolutions: tuple[tuple[str, str, str], ...]) -> tuple[Row, ...]:
    """Rows of the stem: names of a convolution and its BatchNorm, and the shape, in order."""
    rows: list[Row] = []
    for i, (conv, bn, shape) in enumerate(convolutions, start=1):
        rows.append(Row(f"{conv}.weight", f"stem/conv{i}/kernel", "conv", shape))
        rows += batch_norm_rows(bn, f"stem/bn{i}", shape.split()[0])
    return tuple(rows)


_FIRST, _SHORTCUT = "layer{s}.0", "layer{s}.0.downsample"
# The first block reads the stage before (stage 0 is the stem); the others, where there are any,
# their own.
_STAGES = (
    *_block(_FIRST, "layer{s}/first", "C{p}"),
    Row(f"{_SHORTCUT}.0.weight", "layer{s}/first/shortcut/kernel", "conv1x1", "C{s} C{p} 1 1"),
    *batch_norm_rows(f"{_SHORTCUT}.1", "layer{s}/first/shortcut_bn", "C{s}"),
    *_block("layer{s}.{b}", "layer{s}/rest", "C{s}", "rest{s}"),
)


def _widths_problem(symbols: Symbols) -> str | None:
    for s in CLOSED["s"]:
        outputs, inside = symbols.get(f"C{s}"), symbols.get(f"P{s}")
        if outputs and inside and outputs != 4 * inside:
            return f"layer{s} has {outputs} channels, 4 times the {inside} inside its blocks fit"
    stem, inside, half = symbols.get("C0"), symbols.get("P1"), symbols.get("H")
    if stem and inside and stem != inside:
        return f"the stem has {stem} channels, as many as the {inside} inside layer1's blocks fit"
    if stem and half and half != stem // 2:
        return f"the stem's first convolutions have {half} channels, half of its {stem} fit"
    return None


RESNET_V1C = Layout(
    "resnet_v1c",
    (
        *_stem(
            (
                ("stem.0", "stem.1", "H 3 3 3"),
                ("stem.3", "stem.4", "H H 3 3"),
                ("stem.6", "stem.7", "C0 H 3 3"),
            )
        ),
        *_STAGES,
    ),
    marks=("stem.0.weight",),
    paths=("stem/conv3/kernel",),
    drops=(Drop(r"fc\.(weight|bias)", "the classifier of ImageNet's 1000 classes"),),
    facts=(("dims", "C{s}"), ("depths", "depth{s}"), ("stem_width", "C0")),
    relation=_widths_problem,
)

RESNET_TORCHVISION = replace(
    RESNET_V1C,
    name="resnet_torchvision",
    rows=(*_stem((("conv1", "bn1", "C0 3 7 7"),)), *_STAGES),
    marks=("conv1.weight",),
    paths=("stem/conv1/kernel",),
)


def _fields(shown: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    found = {
        "dims": shown["dims"],
        "depths": shown["depths"],
        "strides": (4, 2, 1, 1),
        "stem": "7x7" if shown["layout"] == RESNET_TORCHVISION.name else "v1c",
    }
    dilations = Encoder.dilations
    return found, (f"strides {found['strides']} and dilations {dilations}",)


FILES = EncoderFiles(
    layouts=(RESNET_V1C, RESNET_TORCHVISION),
    sizes={
        f"{name}_v1c": (
            RESNET_V1C.name,
            tuple((fact, fields[fact]) for fact in ("dims", "depths")),
        )
        for name, fields in ENCODER_KINDS["resnet"].variants.items()
        if fields["stem"] == "v1c"
    },
    fields=_fields,
    natural=lambda encoder: (RESNET_V1C if encoder.stem == "v1c" else RESNET_TORCHVISION).name,
)
