"""Resizing of maps, in the one convention this method uses everywhere: half-pixel centres, border
clamp, no antialias.

Bilinear resizing is linear in the map and separable, so each axis is treated alone, in the cheapest
form it allows: whole factors need only shifted or strided slices (fast on CPU), any factor is a
small matrix product (fast on TPU and GPU).
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mrm_jax.ops.platform import by_platform
from mrm_jax.ops.precision import at_least_float32

Interpolation = Literal["bilinear", "nearest"]

# Elements of the result from which shifted slices are used on CPU. There they are 2-3 times faster
# than the matrix product forwards and equal with the gradient, but take three times as long to
# compile.
_PHASES_FROM = 1 << 20


def resize(x: jax.Array, size: tuple[int, int], *, method: Interpolation = "bilinear") -> jax.Array:
    """The map `x` [..., H, W, C] at `size` = (height, width), same dtype.

    `bilinear` equals torch's `interpolate(align_corners=False)` and
    `jax.image.resize(antialias=False)`; it computes in at least float32 and needs a floating dtype.
    `nearest` picks source index floor(i * in / out), as torch does, for any dtype.
    """
    if x.ndim < 3:
        raise ValueError(
            f"resize needs [..., H, W, C], got the shape {x.shape}; add a channel axis."
        )
    if min(size) < 1:
        raise ValueError(f"resize: size {size} has to be positive in both directions.")
    if tuple(size) == x.shape[-3:-1]:
        return x
    height, width = x.ndim - 3, x.ndim - 2
    if method == "nearest":
        return _nearest(_nearest(x, size[0], height), size[1], width)
    if method != "bilinear":
        raise ValueError(f"resize: method {method!r} is unknown; use 'bilinear' or 'nearest'.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"resize: bilinear needs a floating map, got {x.dtype}; "
            "use method='nearest' for labels."
        )
    compute = x.astype(at_least_float32(x))
    # The smaller map is the cheaper one to work on: shrink first, grow last.
    first, second = (
        (height, width) if size[0] * x.shape[-2] <= size[1] * x.shape[-3] else (width, height)
    )
    for axis in (first, second):
        compute = _bilinear(compute, size[axis - height], axis)
    return compute.astype(x.dtype)


def interpolation(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What output i is mixed from: positions i64[target] low and high, and the share f64[target]
    of high."""
    centre = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    low = np.floor(centre).astype(np.int64)
    return low, np.minimum(low + 1, source - 1), centre - low


def interpolation_matrix(source: int, target: int) -> np.ndarray:
    """Weights f64[target, source]: row i holds the one or two source positions that output i is
    mixed from."""
    low, high, share = interpolation(source, target)
    weight = np.zeros((target, source))
    np.add.at(weight, (np.arange(target), low), 1 - share)
    np.add.at(weight, (np.arange(target), high), share)
    return weight


def _bilinear(x: jax.Array, target: int, axis: int) -> jax.Array:
    source = x.shape[axis]
    if source == target:
        return x
    if source % target == 0:
        return _shrink_whole(x, source // target, axis)
    by_matrix = partial(_by_matrix, target=target, axis=axis)
    if target % source or x.size * target // source < _PHASES_FROM:
        if axis != x.ndim - 3:
            return by_matrix(x)
        return by_platform(x, cpu=partial(_rows_by_matrix, target), default=by_matrix)
    by_phases = partial(_grow_whole, factor=target // source, axis=axis)
    return by_platform(x, cpu=by_phases, default=by_matrix)


def _by_matrix(x: jax.Array, target: int, axis: int) -> jax.Array:
    weight = jnp.asarray(interpolation_matrix(x.shape[axis], target), x.dtype)
    product = jnp.tensordot(weight, x, axes=(1, axis), precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(product, 0, axis)


def _weighted(weight: np.ndarray, x: jax.Array) -> jax.Array:
    """Rows of the map `x` [..., H, W, C] mixed by `weight` [rows, H]."""
    *batch, height, width, channels = x.shape
    rows = x.reshape(-1, height, width * channels)
    weights = jnp.broadcast_to(jnp.asarray(weight, x.dtype), (len(rows), *weight.shape))
    mixed = jnp.matmul(weights, rows, precision=lax.Precision.HIGHEST)
    return mixed.reshape(*batch, len(weight), width, channels)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows_by_matrix(target: int, x: jax.Array) -> jax.Array:
    """A product for each picture, which moves no axis. `_by_matrix` does, back and forth, and XLA
    computes what comes before in that order, number by number."""
    return _weighted(interpolation_matrix(x.shape[-3], target), x)


def _rows_forward(target: int, x: jax.Array) -> tuple[jax.Array, int]:
    return _rows_by_matrix(target, x), x.shape[-3]


def _rows_backward(target: int, source: int, g: jax.Array) -> tuple[jax.Array]:
    return (_weighted(interpolation_matrix(source, target).T, g),)


_rows_by_matrix.defvjp(_rows_forward, _rows_backward)


def _grow_whole(x: jax.Array, factor: int, axis: int) -> jax.Array:
    """Growing by a whole factor: output `factor * i + p` mixes positions i and i-1 or i+1 with
    weights of p alone."""
    length = x.shape[axis]
    take = partial(lax.slice_in_dim, axis=axis)
    first, last = take(x, 0, 1), take(x, length - 1, length)
    before = jnp.concatenate([first, take(x, 0, length - 1)], axis)
    after = jnp.concatenate([take(x, 1, length), last], axis)
    phases = []
    for phase in range(factor):
        shift = (phase + 0.5) / factor - 0.5
        neighbour = after if shift > 0 else before
        phases.append(x * (1 - abs(shift)) + neighbour * abs(shift) if shift else x)
    grown = jnp.stack(phases, axis + 1)
    return grown.reshape(*x.shape[:axis], length * factor, *x.shape[axis + 1 :])


def _shrink_whole(x: jax.Array, factor: int, axis: int) -> jax.Array:
    """Shrinking by a whole factor without antialias: the mean of the two middle positions, or the
    middle one."""
    take = partial(lax.slice_in_dim, limit_index=x.shape[axis], stride=factor, axis=axis)
    middle = take(x, factor // 2)
    if factor % 2:
        return middle
    return (take(x, factor // 2 - 1) + middle) * 0.5


def _nearest(x: jax.Array, target: int, axis: int) -> jax.Array:
    source = x.shape[axis]
    if source == target:
        return x
    if target % source == 0:
        shape = (*x.shape[: axis + 1], target // source, *x.shape[axis + 1 :])
        repeated = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), shape)
        return repeated.reshape(*x.shape[:axis], target, *x.shape[axis + 1 :])
    index = np.arange(target) * source // target
    return jnp.take(x, index, axis=axis, indices_are_sorted=True)
