"""Max pooling of maps."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mrm_jax.ops.convolution import Axes, Axis, Padding
from mrm_jax.ops.depthwise import sums_of_readers
from mrm_jax.ops.platform import by_platform, is_portable
from mrm_jax.ops.stored import stored


def max_pool(x: jax.Array, size: int, stride: int, padding: Padding) -> jax.Array:
    """The largest values f[B, H', W', C] of windows of `size` x `size` every `stride` cells of `x`
    f[B, H, W, C]; padding: cells at the borders that are never the largest.

    Of equal values the first one of a window, row by row, has the gradient. In portable programs by
    shifted slices: jax2onnx 0.17 writes a window over four axes, and ONNX runtimes pool over at
    most three.
    """
    rows, columns = (
        Axis(length, size, stride, 1, *pads)
        for length, pads in zip(x.shape[1:3], padding, strict=True)
    )
    form = _by_slices if is_portable() else _max_pool
    return jnp.asarray(form((rows, columns), x))


def _by_slices(axes: Axes, x: jax.Array) -> jax.Array:
    slices = _slices(axes, x)
    found = slices[0]
    for one in slices[1:]:
        found = jnp.maximum(found, one)
    return found


def _slices(axes: Axes, x: jax.Array) -> list[jax.Array]:
    """What each cell of the windows reads, row by row."""
    rows, columns = axes
    pads = ((0, 0), (rows.low, rows.high), (columns.low, columns.high), (0, 0))
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
    cells = [(i, j) for i in range(rows.kernel) for j in range(columns.kernel)]
    return [x[:, rows.reads(i), columns.reads(j)] for i, j in cells]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _max_pool(axes: Axes, x: jax.Array) -> jax.Array:
    return _by_windows(axes, x)


def _by_windows(axes: Axes, x: jax.Array) -> jax.Array:
    rows, columns = axes
    pads = ((0, 0), (rows.low, rows.high), (columns.low, columns.high), (0, 0))
    size, strides = (1, rows.kernel, columns.kernel, 1), (1, rows.stride, columns.stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, size, strides, pads)


def _forward(axes: Axes, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _max_pool(axes, x), x


def _backward(axes: Axes, x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    cpu, default = partial(_gradient_cpu, axes), partial(_gradient, axes)
    return (by_platform(x, g, cpu=cpu, default=default),)


_max_pool.defvjp(_forward, _backward)


def _gradient(axes: Axes, x: jax.Array, g: jax.Array) -> jax.Array:
    return jax.vjp(partial(_by_windows, axes), x)[1](g)[0]


def _gradient_cpu(axes: Axes, x: jax.Array, g: jax.Array) -> jax.Array:
    """By the number of the cell that is largest. XLA's own form carries four indices with every
    value, and scatters."""
    slices = _slices(axes, x)
    largest, first = slices[0], jnp.zeros(g.shape, jnp.int32)
    for number, one in enumerate(slices[1:], 1):
        larger = one > largest
        largest, first = jnp.where(larger, one, largest), jnp.where(larger, number, first)

    def term(i: int, j: int, g: jax.Array, first: jax.Array) -> jax.Array:
        return jnp.where(first == i * axes[1].kernel + j, g, jnp.zeros((), g.dtype))

    return sums_of_readers(axes, (stored(g), stored(first)), term, g.dtype)
