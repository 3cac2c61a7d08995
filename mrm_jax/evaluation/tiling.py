"""Which parts of a picture go through the network, and how their maps make up the picture again.

One rule for every verb (`tiling`): windows as the protocol says, or the whole picture, or, above
`evaluation.whole_pixels`, large overlapping parts that are faded into each other. All three are a
grid of equal windows with weights that are a product of one factor along each axis, and every
resize of the protocol is a product as well: from the network's map to the window, from the window
into the picture, from there to the size of the result. So a result is a few positions of the maps
and their weights along each axis (`taps`), any rows of it can be made without the others, and no
array of all pixels and classes need ever exist.

Sources: windows, HRDA sec. 3.4 and mmseg `slide_inference`; the fade is a squared sine, as two
overlapping ones add up to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from scipy import sparse

from mrm_jax.config import Evaluation
from mrm_jax.ops.resize import interpolation
from mrm_jax.ops.windows import starts

OVERLAP = 4
"""A part overlaps its neighbours by at least its length over this."""
ALIGNED = 32
"""Parts have sides of a multiple of this, px, where the picture is longer."""


@dataclass(frozen=True, eq=False)
class Axis:
    """Windows along one axis of `length` px: each begins at one of `starts`, in order, is `extent`
    px long and counts with `weights` f64[n,extent], which add up to 1 at every pixel."""

    length: int
    starts: tuple[int, ...]
    extent: int
    weights: np.ndarray


@dataclass(frozen=True)
class Tiling:
    """Every window of `rows` x `columns`."""

    kind: Literal["whole", "slide", "parts"]
    rows: Axis
    columns: Axis

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width of every window, px."""
        return self.rows.extent, self.columns.extent


@lru_cache(maxsize=32)
def tiling(size: tuple[int, int], protocol: Evaluation) -> Tiling:
    """How a picture of `size` (height, width), as the network reads it, is gone through."""
    if protocol.mode == "slide":
        axes = map(_even, size, protocol.window, protocol.stride)
        return Tiling("slide", *axes)
    if in_parts(size, protocol):
        return Tiling("parts", *map(_faded, size, part_size(size, protocol.whole_pixels)))
    return Tiling("whole", *map(_faded, size, size))


def in_parts(size: tuple[int, int], protocol: Evaluation) -> bool:
    """Whether a picture of `size` is too large to go through whole."""
    return protocol.mode == "whole" and size[0] * size[1] > protocol.whole_pixels


def part_size(size: tuple[int, int], whole_pixels: int) -> tuple[int, int]:
    """Height and width of the parts: of half of `whole_pixels`, as maps of the other parts wait
    beside them; square, but for a picture that is shorter than that."""
    pixels = whole_pixels // 2
    short = min(min(size), math.isqrt(pixels))
    sides = (short, max(pixels // short, 1))
    height, width = sides if size[0] <= size[1] else sides[::-1]
    return _aligned(height, size[0]), _aligned(width, size[1])


def _aligned(extent: int, length: int) -> int:
    return length if extent >= length else max(extent // ALIGNED, 1) * ALIGNED


def _even(length: int, window: int, stride: int) -> Axis:
    """Windows of equal weight."""
    first, extent = starts(length, window, stride), min(length, window)
    return _axis(length, first, np.ones((len(first), extent)))


def _faded(length: int, extent: int) -> Axis:
    """Windows that fade out over the overlap towards every border that is none of the picture."""
    overlap = extent // OVERLAP
    count = 1 if extent == length else math.ceil((length - overlap) / (extent - overlap))
    first = np.linspace(0, length - extent, count).round().astype(np.int64)
    rise = np.sin(np.pi / 2 * np.minimum((np.arange(extent) + 0.5) / max(overlap, 1), 1)) ** 2
    weights = np.ones((count, extent))
    weights[1:] *= rise
    weights[:-1] *= rise[::-1]
    return _axis(length, first, weights)


def _axis(length: int, first: np.ndarray, weights: np.ndarray) -> Axis:
    total, extent = np.zeros(length), weights.shape[1]
    for start, weight in zip(first, weights, strict=True):
        total[start : start + extent] += weight
    shares = [w / total[s : s + extent] for s, w in zip(first, weights, strict=True)]
    return Axis(length, tuple(map(int, first)), extent, np.stack(shares))


class Taps(NamedTuple):
    """Positions `place` i32[n,t] of a map, and the weights `share` f32[n,t], that make up each of n
    positions of the result along an axis."""

    place: np.ndarray
    share: np.ndarray


@lru_cache(maxsize=32)
def taps(axis: Axis, target: int, cells: int, padded: int, *, together: bool) -> tuple[Taps, ...]:
    """For each window of `axis`, how its map of `cells` makes up a result of `target` px.

    padded: px that the map stands for, at least the window's extent; what is beyond it is cut off.
    together: the windows' maps lie behind each other, and one entry is for all.
    """
    parts = []
    fit = _interpolate(axis.length, target)
    grow = _interpolate(cells, padded)[: axis.extent]
    for start, weights in zip(axis.starts, axis.weights, strict=True):
        place = sparse.diags_array(weights, offsets=-start, shape=(axis.length, axis.extent))
        parts.append((fit @ place.tocsr() @ grow).tocsr())
    return (
        (_taps(sparse.csr_array(sparse.hstack(parts))),) if together else tuple(map(_taps, parts))
    )


def _interpolate(source: int, target: int) -> sparse.csr_array:
    """The bilinear resize of an axis, [target, source]."""
    low, high, share = interpolation(source, target)
    if source == target:
        return sparse.csr_array(sparse.eye_array(source))
    place = np.arange(target)
    entries = (np.r_[1 - share, share], (np.r_[place, place], np.r_[low, high]))
    return sparse.csr_array(sparse.coo_array(entries, shape=(target, source)))


def _taps(matrix: sparse.csr_array) -> Taps:
    """The entries of each row, filled up with weights of 0."""
    matrix.eliminate_zeros()
    counts = np.diff(matrix.indptr)
    width = max(int(counts.max()), 1)
    index, share = np.zeros((len(counts), width), np.int32), np.zeros((len(counts), width))
    row = np.repeat(np.arange(len(counts)), counts)
    column = np.arange(len(row)) - matrix.indptr[row]
    index[row, column], share[row, column] = matrix.indices, matrix.data
    return Taps(index, share)
