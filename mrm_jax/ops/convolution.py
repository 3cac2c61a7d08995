"""Convolutions in the forms that XLA runs fast, each equal to the plain `lax` one in value and
gradient.

Sources of the choices: timings on CPU and libtpu's cost model; `models/layers.py` gives them
parameters.
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

_ROW_GROUPS = 8
"""Groups of rows that the kernel gradient adds up before it sums over places: more compile longer
and are hardly faster."""


class _Axis(NamedTuple):
    """One direction of a depthwise convolution. Tap `i` of output `o` reads input
    `stride * o + dilation * i - low`."""

    size: int
    kernel: int
    stride: int
    dilation: int
    low: int
    high: int

    @property
    def out(self) -> int:
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


def depthwise(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    padding: Padding | None = None,
    dilation: int = 1,
) -> jax.Array:
    """Depthwise convolution: [B, H', W', C] from `x` [B, H, W, C] and `kernel` [k, l, 1, C] in
    `x`'s dtype.

    `padding`: zeros at each side, by default `dilation * (k // 2)` (the size stays where the
    stride is 1). Shifted products, summed in at least float32, with the gradient written in the
    same form: XLA's grouped convolution is 20 to 400 times slower on CPU, and slower on TPU by its
    own cost model.
    """
    if padding is None:
        rows, columns = (dilation * (size // 2) for size in kernel.shape[:2])
        padding = ((rows, rows), (columns, columns))
    axes = tuple(
        _Axis(size, taps, stride, dilation, *pads)
        for size, taps, pads in zip(x.shape[1:3], kernel.shape[:2], padding, strict=True)
    )
    return jnp.asarray(_depthwise(x, kernel, axes))


def conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, dilation: int = 1
) -> jax.Array:
    """Dense convolution: [B, H', W', O] from `x` [B, H, W, I] and `kernel` [k, l, I, O], one
    dtype."""
    axes = tuple(
        _Axis(size, taps, stride, dilation, *pads)
        for size, taps, pads in zip(x.shape[1:3], kernel.shape[:2], padding, strict=True)
    )
    return jnp.asarray(_conv(x, kernel, axes))


def same_padding(size: tuple[int, int], kernel: int, stride: int) -> Padding:
    """TensorFlow's "SAME" of a map [H, W]: ceil(size / stride) outputs, the smaller half first."""
    totals = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in size]
    return ((totals[0] // 2, -(-totals[0] // 2)), (totals[1] // 2, -(-totals[1] // 2)))


def _padded(x: jax.Array, axes: tuple[_Axis, _Axis], below: int = 0) -> jax.Array:
    rows, columns = axes
    rows_pad = (rows.low, rows.high + below)
    return jnp.pad(x, ((0, 0), rows_pad, (columns.low, columns.high), (0, 0)))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: jax.Array, kernel: jax.Array, axes: tuple[_Axis, _Axis]) -> jax.Array:
    rows, columns = axes
    wide = at_least_float32(x)
    padded, weights = _padded(x, axes).astype(wide), kernel.astype(wide)
    total = jnp.zeros((), wide)
    for i in rows.taps:
        for j in columns.taps:
            total += padded[:, rows.reads(i), columns.reads(j)] * weights[i, j].reshape(
                (1, 1, 1, -1)
            )
    return total.astype(x.dtype)


def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, axes: tuple[_Axis, _Axis]
) -> tuple[jax.Array, tuple]:
    return _depthwise(x, kernel, axes), (x, kernel)


def _kernel_gradient(axes: tuple[_Axis, _Axis], x: jax.Array, g: jax.Array) -> jax.Array:
    """[taps, C], at least float32, of `x` [B, H, W, C] and `g` [B, H', W', C], tap by tap: a sum
    each. What is read is widened, not the maps: XLA for TPUs would store them so."""
    rows, columns = axes
    padded, wide = _padded(x, axes), at_least_float32(x)
    return jnp.stack(
        [
            (padded[:, rows.reads(i), columns.reads(j)].astype(wide) * g.astype(wide)).sum(
                (0, 1, 2)
            )
            for i in rows.taps
            for j in columns.taps
        ]
    )


def _kernel_gradient_cpu(axes: tuple[_Axis, _Axis], x: jax.Array, g: jax.Array) -> jax.Array:
    """The same where XLA vectorises products of whole maps and matrix products, but no sum that
    products are fused into: rows are added up in groups first, ones @ [places, C] sums the rest.

    At [2, 64, 64, 1024] 19 ms where sums of products take 35 and one sum with nine operands 130
    (one core with AVX2).
    """
    rows, columns = axes
    group = -(-rows.out // min(_ROW_GROUPS, rows.out))
    groups = -(-rows.out // group)
    below = groups * group - rows.out
    x, g = (array.astype(at_least_float32(x)) for array in (x, g))
    padded = _padded(x, axes, below * rows.stride)
    g = jnp.pad(g, ((0, 0), (0, below), (0, 0), (0, 0)))
    ones = jnp.ones((x.shape[0] * group * columns.out,), g.dtype)

    def tap(i: int, j: int) -> jax.Array:
        total = jnp.zeros((), g.dtype)
        for first in range(0, rows.out, group):
            read = padded[:, rows.reads(i, first, group), columns.reads(j)]
            total += read * g[:, first : first + group]
        return ones @ total.reshape(-1, total.shape[-1])

    return jnp.stack([tap(i, j) for i in rows.taps for j in columns.taps])


class _Phase(NamedTuple):
    """The inputs `start`, `start + stride`, ... of one axis, which the same taps read: input
    `start + stride * m` is read by tap `i` for output `m + offsets[i]`."""

    start: int
    offsets: dict[int, int]


def _phases(axis: _Axis) -> list[_Phase]:
    """By `start`."""
    phases = []
    for start in range(axis.stride):
        at = {i: start + axis.low - axis.dilation * i for i in axis.taps}
        offsets = {i: n // axis.stride for i, n in at.items() if n % axis.stride == 0}
        phases.append(_Phase(start, offsets))
    return phases


def _input_gradient(axes: tuple[_Axis, _Axis], kernel: jax.Array, g: jax.Array) -> jax.Array:
    """[B, H, W, C] of `g` [B, H', W', C], in its dtype; `kernel` is at least float32. Each of the
    stride x stride phases of the input is a convolution of `g` by some of the taps; no zero is put
    between the values of `g`."""
    phases = [_phases(axis) for axis in axes]
    counts = [-(-axis.size // axis.stride) for axis in axes]
    offsets = [[n for phase in of for n in phase.offsets.values()] for of in phases]
    lows = [max(0, -min(of)) for of in offsets]
    highs = [
        max(0, max(of) + count - axis.out)
        for of, count, axis in zip(offsets, counts, axes, strict=True)
    ]
    padded = jnp.pad(g, ((0, 0), (lows[0], highs[0]), (lows[1], highs[1]), (0, 0)))

    def phase(rows: _Phase, columns: _Phase) -> jax.Array:
        total = jnp.zeros((g.shape[0], *counts, g.shape[-1]), kernel.dtype)
        for i, top in rows.offsets.items():
            for j, left in columns.offsets.items():
                top_, left_ = top + lows[0], left + lows[1]
                read = padded[:, top_ : top_ + counts[0], left_ : left_ + counts[1]]
                total += read.astype(kernel.dtype) * kernel[i, j].reshape((1, 1, 1, -1))
        return total.astype(g.dtype)

    if axes[0].stride == 1:
        return phase(phases[0][0], phases[1][0])
    grid = [jnp.stack([phase(rows, columns) for columns in phases[1]], 3) for rows in phases[0]]
    whole = jnp.stack(grid, 2)
    stride = axes[0].stride
    whole = whole.reshape(g.shape[0], counts[0] * stride, counts[1] * stride, g.shape[-1])
    return whole[:, : axes[0].size, : axes[1].size]


def _input_gradient_cpu(axes: tuple[_Axis, _Axis], kernel: jax.Array, g: jax.Array) -> jax.Array:
    """The same, a picture at a time. Nothing is fused across a loop: otherwise XLA computes this
    again inside of every copy that transposes it, as the gradient of a resize does. DAFormer's head
    at [2, 56, 56], forward and backward: 2.26 s of one core without the loop, 0.99 s with it.
    """

    def one(picture: jax.Array) -> jax.Array:
        return _input_gradient(axes, kernel, picture[None])[0]

    return lax.map(one, g)


def _depthwise_backward(
    axes: tuple[_Axis, _Axis], saved: tuple, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    rows, columns = axes
    wide = at_least_float32(x)
    sums = by_platform(
        x,
        g,
        cpu=partial(_kernel_gradient_cpu, axes),
        default=partial(_kernel_gradient, axes),
    )
    grad = jnp.zeros(kernel.shape, wide)
    taps = [(i, j) for i in rows.taps for j in columns.taps]
    at = tuple(jnp.asarray(index) for index in zip(*taps, strict=True))
    grad = grad.at[at[0], at[1], 0].set(sums)
    back = by_platform(
        kernel.astype(wide),
        g,
        cpu=partial(_input_gradient_cpu, axes),
        default=partial(_input_gradient, axes),
    )
    return back, grad.astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _lax_conv(axes: tuple[_Axis, _Axis], x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=[axis.stride for axis in axes],
        padding=[(axis.low, axis.high) for axis in axes],
        rhs_dilation=[axis.dilation for axis in axes],
        dimension_numbers=_LAYOUT,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, kernel: jax.Array, axes: tuple[_Axis, _Axis]) -> jax.Array:
    return _lax_conv(axes, x, kernel)


def _conv_forward(
    x: jax.Array, kernel: jax.Array, axes: tuple[_Axis, _Axis]
) -> tuple[jax.Array, tuple]:
    return _conv(x, kernel, axes), (x, kernel)


def _conv_kernel_gradient(
    axes: tuple[_Axis, _Axis], x: jax.Array, kernel: jax.Array, g: jax.Array
) -> jax.Array:
    return jax.linear_transpose(partial(_lax_conv, axes, x), kernel)(g)[0]


def _conv_kernel_gradient_cpu(
    axes: tuple[_Axis, _Axis], x: jax.Array, kernel: jax.Array, g: jax.Array
) -> jax.Array:
    """A matrix product a tap. XLA's own form is a convolution with a kernel of the map's size and
    the batch as channels: 336 ms at [2, 56, 56] from 1024 to 256 channels, where this takes 151 and
    the forward 156 (one core with AVX-512)."""
    rows, columns = axes
    padded = _padded(x, axes)
    turned = lax.optimization_barrier(g.reshape(-1, g.shape[-1]).T)
    taps = [
        lax.optimization_barrier(
            turned @ padded[:, rows.reads(i), columns.reads(j)].reshape(-1, x.shape[-1])
        ).T
        for i in range(rows.kernel)
        for j in range(columns.kernel)
    ]
    return jnp.stack(taps).reshape(kernel.shape)


def _conv_backward(
    axes: tuple[_Axis, _Axis], saved: tuple, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    back = jax.linear_transpose(lambda x: _lax_conv(axes, x, kernel), x)(g)[0]
    grad = by_platform(
        x,
        kernel,
        g,
        cpu=partial(_conv_kernel_gradient_cpu, axes),
        default=partial(_conv_kernel_gradient, axes),
    )
    return back, grad


_conv.defvjp(_conv_forward, _conv_backward)
