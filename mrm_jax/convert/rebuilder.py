"""MRM's Rebuilder under the names of its released module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from mrm_jax.convert.layouts import Layout, affine, norm
from mrm_jax.convert.rules import Drop, Row


def position_table(grid: int, dim: int) -> np.ndarray:
    """The Rebuilder's fixed sin-cos table, f32[grid*grid, dim]: the first half of a vector encodes
    the row.

    Each half is (sin, cos) over dim/4 frequencies 10000^(-4k/dim). Source: the released Rebuilder.
    """
    quarter = dim // 4
    frequency = 10000.0 ** (-np.arange(quarter) / quarter)
    angle = np.arange(grid)[:, None] * frequency
    axis = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    rows, columns = np.repeat(axis, grid, axis=0), np.tile(axis, (grid, 1))
    return np.concatenate([rows, columns], axis=1).astype(np.float32)


def _position_problem(table: Any) -> str | None:
    shape = tuple(table.shape)
    grid = int(np.sqrt(shape[1])) if len(shape) == 3 else 0
    if len(shape) != 3 or shape[0] != 1 or grid * grid != shape[1] or shape[2] % 4:
        return f"has shape {shape}, expected (1, grid*grid, dim)"
    values = np.asarray(table)
    if not values.any():  # a list of shapes carries no values
        return None
    off = float(np.abs(values[0] - position_table(grid, shape[2])).max())
    # The table was made in float64 and stored in float32; half precision files round to 5e-4.
    return None if off < 1e-3 else f"differs by {off:.3g} from the fixed sin-cos table"


_BLOCK = "transformer.blocks.{j}."
_COUNT = {"count": "depth"}
_TRUNK = (
    *affine("embedding.linear_embed", "embed", "dense", "D C4"),
    Row("transformer.mask_token", "mask_token", "token", "1 D 1 1"),
    *norm(_BLOCK + "norm1", "blocks/norm1", "D", **_COUNT),
    *affine(_BLOCK + "attn.qkv", "blocks/attn/qkv", "dense", "3D D", **_COUNT),
    *affine(_BLOCK + "attn.proj", "blocks/attn/proj", "dense", "D D", **_COUNT),
    *norm(_BLOCK + "norm2", "blocks/norm2", "D", **_COUNT),
    *affine(_BLOCK + "mlp.fc1", "blocks/mlp/fc1", "dense", "M D", **_COUNT),
    *affine(_BLOCK + "mlp.fc2", "blocks/mlp/fc2", "dense", "D M", **_COUNT),
    *norm("transformer.norm", "norm", "D"),
)
_POSITIONS = Drop(r"transformer\.pos_embed", "a fixed table, computed again", _position_problem)


def _projector(source: str, path: str, scale: int, channels: str) -> tuple[Row, ...]:
    """Rows of one projector; `scale` is the stage's size over the grid's and decides which layers
    exist."""
    # F and G: widths after the first transposed convolution and after the others.
    steps = {1: ("D",), 2: ("D", "F"), 4: ("D", "F", "G"), 8: ("D", "F", "G", "G")}[scale]
    rows, at = [], 0
    for step, (before, after) in enumerate(zip(steps, steps[1:], strict=False)):
        name = f"{source}.fpn.{at}"
        rows += affine(name, f"{path}/deconv{step}", "deconv", f"{before} {after} 4 4")
        at += 1
        if step < len(steps) - 2:
            rows += norm(f"{source}.fpn.{at}", f"{path}/norm{step}", after)
            at += 2
    rows += affine(f"{source}.fpn.{at}", f"{path}/conv", "conv1x1", f"{channels} {steps[-1]} 1 1")
    return (*rows, *norm(f"{source}.norm", f"{path}/norm", channels))


def _projectors(scales: Iterable[int]) -> tuple[Row, ...]:
    rows: list[Row] = []
    for stage, scale in enumerate(scales, start=1):
        name = f"projector{stage}"
        rows += _projector(f"projector.{name}", name, scale, f"C{stage}")
    return tuple(rows)


_REBUILDER_FACTS = (("embed_dim", "D"), ("depth", "depth"), ("mlp_width", "M"))

# For decoders that read the last stage alone; that has stride 8, a quarter of the grid's cell.
REBUILDER_SINGLE = Layout(
    "single",
    (*_TRUNK, *_projector("projector", "projector4", 4, "C4")),
    marks=("projector.norm.weight",),
    paths=("projector4/deconv0/kernel",),
    drops=(_POSITIONS,),
    facts=(*_REBUILDER_FACTS, ("channels", "C4")),
)

REBUILDER_MULTI = Layout(
    "multi",
    (*_TRUNK, *_projectors((8, 4, 2, 1))),
    marks=("projector.projector1.norm.weight",),
    paths=("projector1/norm/scale",),
    drops=(_POSITIONS,),
    facts=(*_REBUILDER_FACTS, ("channels", "C{s}")),
)
