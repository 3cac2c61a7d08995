"""Logits of whole pictures: one forward, or overlapping windows whose logits are averaged.

Only the segmentor is run: nothing that exists for training alone (the Rebuilder, the objectives)
appears here. Source: DAFormer sec. 4 and HRDA sec. 3.4; peer: mmseg `EncoderDecoder.inference`. The
two-step bilinear resize, to the network's input size and from there to the label's, is part of the
protocol. The parts are jitted here, one compilation a shape, so call `predict` as it is; it may
also be traced inside another jit.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.ops.resize import resize
from mrm_jax.ops.windows import grid
from mrm_jax.types import Array, Tree

InferenceMode = Literal["whole", "slide"]

WINDOWS_AT_ONCE = 4
"""Windows that go through the network together. Bounds memory; the result does not depend on it."""


@partial(jax.jit, static_argnames=("model", "smallest"))
def whole_logits(
    model: nn.Module, variables: Tree, image: Array, *, smallest: int = 1
) -> jax.Array:
    """Logits f[B,H,W,K] of `image` f[B,H,W,3] in one forward, resized to its size.

    A side below `smallest` px, which the encoder could not reduce, is padded with 0 (the mean
    colour) at the bottom and the right before the network and cut off after it. Larger pictures are
    never padded: any size goes through as it is.
    """
    height, width = image.shape[1:3]
    below, right = max(0, smallest - height), max(0, smallest - width)
    image = jnp.pad(jnp.asarray(image), ((0, 0), (0, below), (0, right), (0, 0)))
    output: Any = model.apply(variables, image, mode="eval")
    return resize(output.logits["main"], (height + below, width + right))[:, :height, :width]


@partial(jax.jit, static_argnames=("model", "extent", "smallest"), donate_argnames="total")
def _add_windows(
    model: nn.Module,
    variables: Tree,
    image: Array,
    total: jax.Array,
    corners: Array,
    used: Array,
    *,
    extent: tuple[int, int],
    smallest: int,
) -> jax.Array:
    """`total` f[B,H,W,K] plus the logits of the windows at `corners` i32[n,2]; `used` f[n] is 0 for
    filling rows.
    """
    batch, channels = image.shape[0], image.shape[-1]
    size = (batch, *extent, channels)
    zero = jnp.zeros((), corners.dtype)
    image = jnp.asarray(image)
    windows = [jax.lax.dynamic_slice(image, (zero, top, left, zero), size) for top, left in corners]
    logits = whole_logits(model, variables, jnp.concatenate(windows), smallest=smallest)
    for i, (top, left) in enumerate(corners):
        at = (zero, top, left, zero)
        part = logits[i * batch : (i + 1) * batch] * used[i].astype(logits.dtype)
        before = jax.lax.dynamic_slice(total, at, part.shape)
        total = jax.lax.dynamic_update_slice(total, before + part, at)
    return total


def _slide(
    model: nn.Module,
    variables: Tree,
    image: Array,
    *,
    window: tuple[int, int],
    stride: tuple[int, int],
    smallest: int,
) -> jax.Array:
    height, width = image.shape[1:3]
    corners, extent = grid((height, width), window, stride)
    shape = jax.eval_shape(partial(whole_logits, model, smallest=smallest), variables, image)
    total = jnp.zeros(shape.shape, shape.dtype)
    coverage = np.zeros((1, height, width, 1), shape.dtype)
    for top, left in corners:
        coverage[:, top : top + extent[0], left : left + extent[1]] += 1
    at_once = min(WINDOWS_AT_ONCE, len(corners))
    for first in range(0, len(corners), at_once):
        chosen = corners[first : first + at_once]
        used = np.arange(at_once) < len(chosen)
        # Filling rows read a window that exists and count nothing, so that every call has one
        # shape.
        chosen = np.concatenate([chosen, np.repeat(chosen[:1], at_once - len(chosen), axis=0)])
        total = _add_windows(
            model, variables, image, total, chosen, used, extent=extent, smallest=smallest
        )
    return _divide(total, coverage)


@partial(jax.jit, donate_argnames="total")
def _divide(total: jax.Array, coverage: Array) -> jax.Array:
    return total / coverage


@partial(jax.jit, static_argnames="size")
def _resized(logits: jax.Array, *, size: tuple[int, int]) -> jax.Array:
    return resize(logits, size)


def predict(
    model: nn.Module,
    variables: Tree,
    image: Array,
    *,
    mode: InferenceMode = "whole",
    window: tuple[int, int] = (1024, 1024),
    stride: tuple[int, int] = (512, 512),
    size: tuple[int, int] | None = None,
    smallest: int = 1,
) -> jax.Array:
    """Logits f[B,H,W,K] of normalised pictures f[B,H,W,3] at their size, or resized once more to
    `size` = (h, w).

    variables: {"params", "batch_stats"} of the segmentor. mode "slide": windows of `window` px
    every `stride` px (`ops/windows.py`), logits summed and divided by how many windows cover a
    pixel. `smallest`: see `whole_logits`. At least float32; a float64 picture gives float64.
    """
    if mode == "whole":
        logits = whole_logits(model, variables, image, smallest=smallest)
    elif mode == "slide":
        logits = _slide(model, variables, image, window=window, stride=stride, smallest=smallest)
    else:
        raise ValueError(f"predict: mode is {mode!r}; use 'whole' or 'slide'.")
    return logits if size is None else _resized(logits, size=size)


@partial(jax.jit, static_argnames="size")
def classify(logits: jax.Array, *, size: tuple[int, int]) -> jax.Array:
    """The class with the largest logit, u8[B,h,w], after a bilinear resize of `logits` f[B,H,W,K]
    to `size`.

    Equals the argmax of `predict(..., size=size)`, the lowest class where some are equal, but holds
    only one class at `size` in memory at a time: a photograph may be far larger than what the
    network read.
    """
    if tuple(size) == logits.shape[1:3]:
        return jnp.argmax(logits, axis=-1).astype(jnp.uint8)

    def compare(best: tuple[jax.Array, jax.Array], entry: tuple[jax.Array, jax.Array]) -> tuple:
        scores, classes = best
        channel, plane = entry
        score = resize(plane[..., None], size)[..., 0]
        better = score > scores
        return (jnp.where(better, score, scores), jnp.where(better, channel, classes)), None

    shape = (logits.shape[0], *size)
    start = (jnp.full(shape, -jnp.inf, logits.dtype), jnp.zeros(shape, jnp.uint8))
    planes = jnp.moveaxis(logits, -1, 0)
    channels = jnp.arange(len(planes), dtype=jnp.uint8)
    (_, classes), _ = jax.lax.scan(compare, start, (channels, planes))
    return classes
