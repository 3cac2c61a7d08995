"""What a network makes of pictures, in strips of rows: classes, probabilities or logits.

Only the segmentor is run: nothing that exists for training alone (the Rebuilder, the objectives)
appears here. Source: DAFormer sec. 4 and HRDA sec. 3.4; peer: mmseg `EncoderDecoder.inference`. The
two-step bilinear resize, to the network's input size and from there to the label's, is part of the
protocol. Windows and parts are those of `tiling.py`; of what they give only the small maps of the
window rows that the present strip needs are kept, so that memory follows neither the pictures'
height nor their pixels times the classes.

The parts are jitted here, one compilation a shape; all may also be traced inside another jit.
Strips are padded to a few sizes, so that results of many sizes share a program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.config import Evaluation
from mrm_jax.evaluation.tiling import Taps, taps, tiling
from mrm_jax.ops.normalise import normalise
from mrm_jax.ops.platform import by_platform
from mrm_jax.ops.precision import at_least_float32
from mrm_jax.registry import InputStats
from mrm_jax.types import Array, Tree

WINDOWS_AT_ONCE = 4
PIXELS_AT_ONCE = 2**20
"""Windows, and pixels of them, that go through the network together, at least one window. Bounds
memory; the result does not depend on it."""
NUMBERS_AT_ONCE = 2**22
"""Logits of a strip: 16 MiB in float32, which processors keep near (2**24 took a quarter longer on
two cores)."""
PADDED = 64
"""Strips are as wide as a multiple of this, px, and as high where one is all."""

What = Literal["classes", "probabilities", "logits"]
Forward = Callable[[Array], jax.Array]
"""Maps of logits f[n,h,w,K] of pictures [n,H,W,3]."""


class Strip(NamedTuple):
    """Some rows of a result: of `value` [B,R,W,...], rows `top` to `top` + `rows` of the whole,
    `[:, :rows, :width]` counts and the rest is padding. Of classes `value` is (ids u8[B,R,W],
    probability of each f[B,R,W])."""

    top: int
    rows: int
    width: int
    value: Any

    def cut(self) -> Any:
        """`value` without its padding, on the host."""
        part = (slice(None), slice(self.rows), slice(self.width))
        return jax.tree.map(lambda array: np.asarray(array)[part], self.value)


@partial(jax.jit, static_argnames=("model", "stats", "smallest"))
def maps(
    model: nn.Module,
    variables: Tree,
    image: Array,
    *,
    stats: InputStats | None = None,
    smallest: int = 1,
) -> jax.Array:
    """Logits f[B,h,w,K], at the decoder's stride, of pictures u8[B,H,W,3], or f[B,H,W,3] that are
    normalised already for `stats` None.

    A side below `smallest` px, which the encoder could not reduce, is padded with 0 (the mean
    colour) at the bottom and the right. Larger pictures are never padded: any size goes through as
    it is. At least float32.
    """
    image = jnp.asarray(image) if stats is None else normalise(image, stats)
    below, right = (max(0, smallest - side) for side in image.shape[1:3])
    image = jnp.pad(image, ((0, 0), (0, below), (0, right), (0, 0)))
    output: Any = model.apply(variables, image, mode="eval")
    logits = output.logits["main"]
    return logits.astype(at_least_float32(logits))


def strips(
    forward: Forward,
    versions: Sequence[Array],
    *,
    protocol: Evaluation,
    size: tuple[int, int],
    smallest: int = 1,
    what: What = "classes",
) -> Iterator[Strip]:
    """The result for pictures at `size` = (height, width), from the top down.

    versions: the pictures [B,H,W,3] at every one of `protocol.scales`. Several versions, or
    mirrored ones besides, are averaged as probabilities; logits are those of the first alone. Where
    windows overlap, logits are averaged, or as `protocol.blend` says.
    smallest: as `forward` pads, see `maps`.
    """
    mirrors = (False, True) if protocol.flip and what != "logits" else (False,)
    versions = versions[:1] if what == "logits" else versions
    readers = [
        _Reader(forward, image, protocol, size, smallest, mirrored)
        for image in versions
        for mirrored in mirrors
    ]
    height, width = size
    wide = -(-width // PADDED) * PADDED
    batch, classes = versions[0].shape[0], readers[0].classes
    rows = NUMBERS_AT_ONCE // (batch * wide * classes * len(readers))
    rows = min(max(rows // 8 * 8, 1), -(-height // PADDED) * PADDED)
    for top in range(0, height, rows):
        given = tuple(reader.strip(top, rows, wide) for reader in readers)
        value = _made(given, what=what, apart=_apart(protocol))
        yield Strip(top, min(rows, height - top), width, value)


def _apart(protocol: Evaluation) -> bool:
    """Whether every window has probabilities of its own, which are averaged."""
    return protocol.mode == "slide" and protocol.blend == "probabilities"


class _Reader:
    """One version of pictures, and the maps of its rows of windows for as long as a strip further
    down needs them."""

    def __init__(
        self,
        forward: Forward,
        image: Array,
        protocol: Evaluation,
        size: tuple[int, int],
        smallest: int,
        mirrored: bool,
    ):
        grid = tiling(image.shape[1:3], protocol)
        self._forward, self._grid = forward, grid
        self._image = image[:, :, ::-1] if mirrored else image
        self._maps = {0: self._row(0)}
        _, cells, across, self.classes = self._maps[0].shape
        count = len(grid.columns.starts)
        padded = [max(extent, smallest) for extent in grid.extent]
        self._steps = (grid.rows.length / size[0], cells / padded[0])
        self._down = taps(grid.rows, size[0], cells, padded[0], together=False)
        apart, wide = _apart(protocol), across // count
        right = taps(grid.columns, size[1], wide, padded[1], together=not apart)
        right = [Taps(part.place + i * wide, part.share) for i, part in enumerate(right)]
        flip = slice(None, None, -1 if mirrored else 1)
        self._right = [Taps(part.place[flip], part.share[flip]) for part in right]

    def strip(self, top: int, rows: int, wide: int) -> tuple:
        """What `_logits` or `_probabilities` makes `rows` rows from `top` of, `wide` px wide."""
        here = slice(top, top + rows)
        needed = [i for i, down in enumerate(self._down) if down.share[here].any()]
        self._maps = {i: self._maps[i] if i in self._maps else self._row(i) for i in needed}
        dtype = next(iter(self._maps.values())).dtype
        near = [_near(self._maps[i], self._down[i], here, self._reach(rows)) for i in needed]
        down = tuple(_filled(part, here, rows, dtype) for _, part in near)
        right = tuple(_filled(part, slice(None), wide, dtype) for part in self._right)
        return tuple(some for some, _ in near), down, right

    def _reach(self, rows: int) -> int:
        """Rows of a map that `rows` of the result are mixed from, at most: a neighbour more at both
        ends, of the picture's rows and of the map's."""
        resized, reduced = self._steps
        return math.ceil((rows * resized + 2) * reduced) + 2

    def _row(self, index: int) -> jax.Array:
        """Maps f[B,h,n*w,K] of a row of n windows, side by side."""
        image, (height, width) = self._image, self._grid.extent
        top, lefts = self._grid.rows.starts[index], self._grid.columns.starts
        batch, numpy = image.shape[0], jnp if isinstance(image, jax.Array) else np
        at_once = PIXELS_AT_ONCE // (batch * height * width)
        at_once = min(max(at_once, 1), WINDOWS_AT_ONCE, len(lefts))
        found = []
        for first in range(0, len(lefts), at_once):
            chosen = lefts[first : first + at_once]
            # Filled up with a window that exists, so that every call has one shape.
            filled = (*chosen, *chosen[:1] * (at_once - len(chosen)))
            windows = [image[:, top : top + height, left : left + width] for left in filled]
            given = self._forward(numpy.concatenate(windows) if at_once > 1 else windows[0])
            found += [given[i * batch : (i + 1) * batch] for i in range(len(chosen))]
        return jnp.concatenate(found, axis=2) if len(found) > 1 else found[0]


def _near(array: jax.Array, down: Taps, part: slice, count: int) -> tuple[jax.Array, Taps]:
    """`count` rows of a map [B,h,W,K], among them all that a part of the result is made of, and
    where that finds them. As many for every part, so that one program serves all."""
    if count >= array.shape[1]:
        return array, down
    used = down.place[part][down.share[part] != 0]
    first = min(int(used.min()), array.shape[1] - count)
    some = jax.lax.dynamic_slice_in_dim(array, first, count, axis=1)
    return some, Taps(down.place - np.int32(first), down.share)


def _filled(given: Taps, part: slice, count: int, dtype: Any) -> Taps:
    """A part of `taps`, with further positions that are made of nothing up to `count`."""
    place, share = given.place[part], given.share[part].astype(dtype)
    missing = ((0, count - len(place)), (0, 0))
    return Taps(np.pad(place, missing), np.pad(share, missing))


@partial(jax.jit, static_argnames=("what", "apart"))
def _made(versions: tuple, *, what: What, apart: bool) -> Any:
    """See `Strip.value`; versions: what `_logits` takes, or `_probabilities` where windows are kept
    `apart`."""
    if not apart and what == "logits":
        return _logits(*versions[0])
    if not apart and what == "classes" and len(versions) == 1:
        return by_platform(*versions[0], cpu=_class_by_class, default=_classes)
    found = [
        _probabilities(*version) if apart else jax.nn.softmax(_logits(*version), axis=-1)
        for version in versions
    ]
    mean = sum(found[1:], found[0]) / len(versions)
    if what == "classes":
        return jnp.argmax(mean, -1).astype(jnp.uint8), mean.max(-1)
    return mean if what == "probabilities" else jnp.log(mean)


def _logits(
    rows: tuple[jax.Array, ...], down: tuple[Taps, ...], right: tuple[Taps, ...]
) -> jax.Array:
    """Logits f[B,R,W,K] from the maps f[B,h,w,K] of rows of windows, whose columns are mixed by one
    entry of `right` together."""
    mixed: Any = 0
    for row, part in zip(rows, down, strict=True):
        mixed = mixed + _mixed(row, part, 1)
    return _mixed(mixed, right[0], 2)


def _classes(
    rows: tuple[jax.Array, ...], down: tuple[Taps, ...], right: tuple[Taps, ...]
) -> tuple[jax.Array, jax.Array]:
    """The most likely class u8[B,R,W] and its probability f[B,R,W] by `_logits`."""
    logits = _logits(rows, down, right)
    above = logits - logits.max(-1, keepdims=True)
    return jnp.argmax(logits, -1).astype(jnp.uint8), 1 / jnp.exp(above).sum(-1)


def _class_by_class(
    rows: tuple[jax.Array, ...], down: tuple[Taps, ...], right: tuple[Taps, ...]
) -> tuple[jax.Array, jax.Array]:
    """The same with the classes as turns of a loop over [B,R,W], in which XLA's CPU compiler fills
    vectors with pixels. It looks for the largest of the last axis one number at a time: 100 ms
    where this takes 12 (19 classes, 512 x 512, one core, avx512f)."""
    wide = [jnp.moveaxis(_mixed(row, right[0], 2), 3, 0) for row in rows]
    count, batch, _, width = wide[0].shape
    first = jnp.full((batch, len(down[0].place), width), -jnp.inf, wide[0].dtype)

    def logit(maps: list[jax.Array]) -> jax.Array:
        mixed = [_mixed(some, part, 1) for some, part in zip(maps, down, strict=True)]
        return sum(mixed[1:], mixed[0])

    def highest(found: tuple, given: tuple) -> tuple[tuple, None]:
        (top, which), (number, maps) = found, given
        here = logit(maps)
        return (jnp.maximum(top, here), jnp.where(here > top, number, which)), None

    def added(total: jax.Array, maps: list[jax.Array]) -> tuple[jax.Array, None]:
        return total + jnp.exp(logit(maps) - top), None

    numbers = jnp.arange(count, dtype=jnp.uint8)
    found = (first, jnp.zeros(first.shape, jnp.uint8))
    (top, which), _ = jax.lax.scan(highest, found, (numbers, wide))
    total, _ = jax.lax.scan(added, jnp.zeros_like(first), wide)
    return which, 1 / total


def _probabilities(
    rows: tuple[jax.Array, ...], down: tuple[Taps, ...], right: tuple[Taps, ...]
) -> jax.Array:
    """The mean f[B,R,W,K] of the probabilities of the windows that cover a pixel; `right` has one
    entry a column of windows."""
    total: Any = 0
    for row, part in zip(rows, down, strict=True):
        tall = _mixed(row, part, 1)
        for column in right:
            # What the taps of a window add up to is how much it counts; 0 where it is not.
            weight = part.share.sum(1)[:, None] * column.share.sum(1)[None, :]
            weight = weight[None, :, :, None]
            logits = _mixed(tall, column, 2) / jnp.where(weight > 0, weight, 1)
            total = total + weight * jax.nn.softmax(logits, axis=-1)
    return total


def _mixed(array: jax.Array, made: Taps, axis: int) -> jax.Array:
    """`array` with the positions along `axis` that are `made` of it."""
    total: Any = 0
    for i in range(made.place.shape[1]):
        part = jnp.take(array, made.place[:, i], axis=axis, mode="clip")
        total = total + part * jnp.expand_dims(made.share[:, i], range(1, array.ndim - axis))
    return total


def forget_programs() -> None:
    """Gives back the memory of compiled forwards, of which there is one a size."""
    forwards: Any = maps
    forwards.clear_cache()


def whole_logits(
    forward: Forward, image: Array, *, protocol: Evaluation, smallest: int = 1
) -> jax.Array:
    """Logits f[B,H,W,K] of pictures [B,H,W,3] at their own size, by the windows of `protocol` at
    one scale and without mirroring, for a program that is traced as a whole. `smallest`: as
    `forward` pads, see `maps`."""
    size = (image.shape[1], image.shape[2])
    reader = _Reader(forward, image, protocol, size, smallest, False)
    return _made((reader.strip(0, *size),), what="logits", apart=_apart(protocol))


def predict(
    model: nn.Module,
    variables: Tree,
    image: Array,
    *,
    mode: Literal["whole", "slide"] = "whole",
    window: tuple[int, int] = (1024, 1024),
    stride: tuple[int, int] = (512, 512),
    size: tuple[int, int] | None = None,
    smallest: int = 1,
) -> jax.Array:
    """Logits f[B,H,W,K] of normalised pictures f[B,H,W,3] at their size, or resized once more to
    `size` = (h, w); all at once, of any number of pixels.

    variables: {"params", "batch_stats"} of the segmentor. mode "slide": windows of `window` px
    every `stride` px (`ops/windows.py`), logits averaged over those that cover a pixel.
    `smallest`: see `maps`. At least float32; a float64 picture gives float64.
    """
    if mode not in ("whole", "slide"):
        raise ValueError(f"predict: mode is {mode!r}; use 'whole' or 'slide'.")
    height, width = image.shape[1:3]
    protocol = Evaluation(mode=mode, window=window, stride=stride, whole_pixels=height * width)
    forward = partial(maps, model, variables, smallest=smallest)
    how: Any = {"protocol": protocol, "smallest": smallest, "what": "logits"}
    found = strips(forward, [image], size=size or (height, width), **how)
    return jnp.concatenate([s.value[:, : s.rows, : s.width] for s in found], axis=1)
