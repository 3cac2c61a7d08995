"""Convolutions in the forms that XLA runs fast, each equal to the plain `lax` one in value and
gradient.

Sources of the choices: timings on CPU and libtpu's cost model; `models/layers.py` gives them
parameters. Depthwise ones are in `ops/depthwise.py`.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mrm_jax.ops.platform import by_platform
from mrm_jax.ops.precision import at_least_float32

Padding = tuple[tuple[int, int], tuple[int, int]]
"""Zeros ((above, below), (left, right))."""

_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Axis(NamedTuple):
    """One direction of a convolution. Tap `i` of output `o` reads input
    `stride * o + dilation * i - low`."""

    size: int
    kernel: int
    stride: int
    dilation: int
    low: int
    high: int

    @property
    def out(self) -> int:
        """Outputs."""
        reach = self.dilation * (self.kernel - 1) + 1
        return (self.size + self.low + self.high - reach) // self.stride + 1

    @property
    def taps(self) -> list[int]:
        """Those that reach the map at all: with a large dilation the outer ones see only zeros."""
        last = self.stride * (self.out - 1)
        starts = [self.dilation * tap - self.low for tap in range(self.kernel)]
        return [tap for tap, at in enumerate(starts) if at < self.size and at + last >= 0]

    def reads(self, tap: int, first: int = 0, count: int | None = None) -> slice:
        """What `tap` reads of the padded map for `count` outputs from `first` on."""
        start = self.dilation * tap + self.stride * first
        count = self.out if count is None else count
        return slice(start, start + self.stride * (count - 1) + 1, self.stride)


Axes = tuple[Axis, Axis]
"""Rows, columns."""


def conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, dilation: int = 1
) -> jax.Array:
    """Dense convolution: [B, H', W', O] from `x` [B, H, W, I] and `kernel` [k, l, I, O], one
    dtype."""
    axes = tuple(
        Axis(size, taps, stride, dilation, *pads)
        for size, taps, pads in zip(x.shape[1:3], kernel.shape[:2], padding, strict=True)
    )
    return jnp.asarray(_conv(x, kernel, axes))


def same_padding(size: tuple[int, int], kernel: int, stride: int) -> Padding:
    """TensorFlow's "SAME" of a map [H, W]: ceil(size / stride) outputs, the smaller half first."""
    totals = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in size]
    return ((totals[0] // 2, -(-totals[0] // 2)), (totals[1] // 2, -(-totals[1] // 2)))


def pad_map(x: jax.Array, axes: Axes, below: int = 0) -> jax.Array:
    """`x` [B, H, W, C] with the zeros of `axes` around it, and `below` rows more."""
    rows, columns = axes
    rows_pad = (rows.low, rows.high + below)
    return jnp.pad(x, ((0, 0), rows_pad, (columns.low, columns.high), (0, 0)))


def _lax_conv(axes: Axes, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=[axis.stride for axis in axes],
        padding=[(axis.low, axis.high) for axis in axes],
        rhs_dilation=[axis.dilation for axis in axes],
        dimension_numbers=_LAYOUT,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, kernel: jax.Array, axes: Axes) -> jax.Array:
    if not _few_outputs(axes, kernel):
        return _lax_conv(axes, x, kernel)
    cpu, default = partial(_by_product, axes), partial(_lax_conv, axes)
    return by_platform(x, kernel, cpu=cpu, default=default)


def _forward(x: jax.Array, kernel: jax.Array, axes: Axes) -> tuple[jax.Array, tuple]:
    return _conv(x, kernel, axes), (x, kernel)


def _backward(axes: Axes, saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    cpu, default = partial(_map_gradient_cpu, axes), partial(_map_gradient, axes)
    back = by_platform(x, kernel, g, cpu=cpu, default=default)
    cpu, default = partial(_kernel_gradient_cpu, axes), partial(_kernel_gradient, axes)
    return back, by_platform(x, kernel, g, cpu=cpu, default=default)


_conv.defvjp(_forward, _backward)


def _map_gradient(axes: Axes, x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
    return jax.linear_transpose(lambda x: _lax_conv(axes, x, kernel), x)(g)[0]


def _map_gradient_cpu(axes: Axes, x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
    """The same convolution of `g`, with the kernel turned to [k, l, O, I] here. JAX leaves that to
    XLA, whose CPU compiler does so outside of loops alone and in loops runs scalar code: 35 ms at
    [2, 24, 48] between 320 and 64 channels, where this takes 2.4 (one core with AVX-512)."""
    pads = []
    for axis in axes:
        reach, spread = axis.dilation * (axis.kernel - 1), axis.stride * (axis.out - 1) + 1
        pads.append((reach - axis.low, axis.size + axis.low - spread))
    return lax.conv_general_dilated(
        g,
        kernel[::-1, ::-1].swapaxes(2, 3),
        window_strides=(1, 1),
        padding=pads,
        lhs_dilation=[axis.stride for axis in axes],
        rhs_dilation=[axis.dilation for axis in axes],
        dimension_numbers=_LAYOUT,
    )


def _kernel_gradient(axes: Axes, x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
    return jax.linear_transpose(partial(_lax_conv, axes, x), kernel)(g)[0]


def _kernel_gradient_cpu(axes: Axes, x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
    """A matrix product a tap, one after the other: of nine in a row XLA first copies all that they
    read, nine maps. Its own form is a convolution with a kernel of the map's size and the batch as
    channels: 336 ms at [2, 56, 56] from 1024 to 256 channels, where products take 151 and the
    forward 156 (one core with AVX-512)."""
    if _few_outputs(axes, kernel):
        return _one_product(axes, x, g)
    rows, columns = axes
    padded = pad_map(x, axes)
    turned = lax.optimization_barrier(g.reshape(-1, g.shape[-1]).T)
    reach = [axis.stride * (axis.out - 1) + 1 for axis in axes]
    size = (len(x), *reach, x.shape[-1])

    def tap(n: jax.Array, taps: jax.Array) -> jax.Array:
        at = (0, rows.dilation * (n // columns.kernel), columns.dilation * (n % columns.kernel), 0)
        read = lax.dynamic_slice(padded, at, size)[:, :: rows.stride, :: columns.stride]
        product = turned @ read.reshape(-1, x.shape[-1])
        return lax.dynamic_update_index_in_dim(taps, product, n, 0)

    count = rows.kernel * columns.kernel
    # Of a number of `g`, so that its memory is not taken before: see `in_turn`.
    start = jnp.broadcast_to(turned[0, 0], (count, g.shape[-1], x.shape[-1]))
    taps = lax.fori_loop(0, count, tap, start)
    return taps.swapaxes(1, 2).reshape(kernel.shape)


# --- Few outputs: nothing as wide as the input is moved -----------------------------------------


def _mirrors(axes: Axes) -> bool:
    return all(a.stride == 1 and max(a.low, a.high) <= a.dilation * (a.kernel - 1) for a in axes)


def _mirrored(axes: Axes) -> Axes:
    """Of the convolution that makes the map's gradient of the result's, by the kernel upside
    down."""
    rows, columns = (
        Axis(a.out, a.kernel, 1, a.dilation, reach - a.low, reach - a.high)
        for a in axes
        for reach in [a.dilation * (a.kernel - 1)]
    )
    return rows, columns


def _few_outputs(axes: Axes, kernel: jax.Array) -> bool:
    """Whether those of all taps together are no more than the inputs."""
    taps, (inputs, outputs) = kernel.shape[0] * kernel.shape[1], kernel.shape[2:]
    return taps > 1 and taps * outputs <= inputs and _mirrors(axes)


def _by_product(axes: Axes, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One product for all taps, whose results are moved and summed: at [2, 32, 32] from 2048 to 19
    channels 15 ms where the convolution takes 30 (one core with AMX)."""
    rows, columns = axes
    outputs, wide = kernel.shape[-1], at_least_float32(x)
    flat = kernel.transpose(2, 0, 1, 3).reshape(x.shape[-1], -1)
    taps = pad_map(jnp.matmul(x, flat, preferred_element_type=wide), axes)
    total = jnp.zeros((), wide)
    for i in range(rows.kernel):
        for j in range(columns.kernel):
            first = (i * columns.kernel + j) * outputs
            total += taps[:, rows.reads(i), columns.reads(j), first : first + outputs]
    return total.astype(x.dtype)


def _one_product(axes: Axes, x: jax.Array, g: jax.Array) -> jax.Array:
    """The kernel's gradient: 14 ms where a product a tap takes 70."""
    rows, columns = _mirrored(axes)
    padded = pad_map(g, (rows, columns))
    moved = [
        padded[:, rows.reads(i), columns.reads(j)]
        for i in reversed(range(rows.kernel))
        for j in reversed(range(columns.kernel))
    ]
    stacked = jnp.concatenate(moved, -1)
    turned = lax.optimization_barrier(stacked.reshape(-1, stacked.shape[-1]).T)
    taps = lax.optimization_barrier(turned @ x.reshape(-1, x.shape[-1]))
    taps = taps.reshape(rows.kernel, columns.kernel, g.shape[-1], x.shape[-1])
    return taps.swapaxes(2, 3)
