"""Which layer of an encoder a parameter belongs to, by its path: what layer-wise decay of the
learning rate asks.

Counted as BEiT and MAE do: what makes tokens of a picture is layer 0, the first block is layer 1,
and what follows the blocks stands above them. Stages share one count. Of what a ViT has not, a
later stage's patches count with the block that reads them and a stage's norm with the block that it
ends, as in timm's stages; only the last norm stands above, as a ViT's does.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

Layers = tuple[tuple[str, int | range | None], ...]
"""(pattern of parameters below encoder/, their layer), of which the first that matches holds. A
range: those of blocks that are stored stacked, along the leading axis. None: above all blocks."""


def blocks(encoder: Any) -> tuple[range, ...]:
    """The layers of each stage's blocks."""
    ends = tuple(accumulate(encoder.depths, initial=1))
    return tuple(map(range, ends, ends[1:]))


def mit(encoder: Any) -> Layers:
    """Of MiT and PVTv2."""
    rows: list[tuple[str, int | range | None]] = []
    for i, stage in enumerate(blocks(encoder), start=1):
        last = i == len(encoder.depths)
        rows += [
            (f"patch_embed{i}/.+", 0 if i == 1 else stage[0]),
            (f"block{i}/.+", stage),
            (f"norm{i}/.+", None if last else stage[-1]),
        ]
    return tuple(rows)


def resnet(encoder: Any) -> Layers:
    """A stage's first block is stored for itself, the others stacked."""
    rows: list[tuple[str, int | range | None]] = [("stem/.+", 0)]
    for i, stage in enumerate(blocks(encoder), start=1):
        rows += [(f"layer{i}/first/.+", stage[0]), (f"layer{i}/rest/.+", stage[1:])]
    return tuple(rows)


def inverted(encoder: Any) -> Layers:
    """Of MobileNetV2 and EfficientNet-Lite, whose blocks are counted through all stages."""
    count = sum(encoder.depths)
    rows = ((rf"(?:mbconv|bottleneck){i}/.+", i + 1) for i in range(count))
    return (("stem(?:_bn)?/.+", 0), *rows, ("classifier/.+", None))


def vit(encoder: Any) -> Layers:
    """Of a ViT of one stage."""
    first = "patch_embed/.+|cls_token|register_tokens|mask_token|positions"
    (stage,) = blocks(encoder)
    return ((first, 0), ("blocks/.+", stage), ("norm/.+", None))


def top(rows: Layers) -> int:
    """The layer above all blocks."""
    return 1 + max(
        layer[-1] if isinstance(layer, range) else layer
        for _, layer in rows
        if layer is not None and layer != range(0)
    )
