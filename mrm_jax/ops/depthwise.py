"""Depthwise convolution in the forms that XLA runs fast, equal to the grouped `lax` one in value
and gradient.

Sources of the choices: timings on CPU and libtpu's cost model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mrm_jax.ops.convolution import Axes, Axis, Padding, pad_map
from mrm_jax.ops.platform import by_platform
from mrm_jax.ops.precision import at_least_float32
from mrm_jax.ops.stored import in_turn

_ROW_GROUPS = 8
"""Groups of rows that the kernel gradient adds up before it sums over places: more compile longer
and are hardly faster."""


def depthwise(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    padding: Padding | None = None,
    dilation: int = 1,
    *,
    held: bool = False,
) -> jax.Array:
    """Depthwise convolution: [B, H', W', C] from `x` [B, H, W, C] and `kernel` [k, l, 1, C] in
    `x`'s dtype.

    `padding`: zeros at each side, by default `dilation * (k // 2)` (the size stays where the
    stride is 1). Shifted products, summed in at least float32, with the gradient written in the
    same form: XLA's grouped convolution is 20 to 400 times slower on CPU, and slower on TPU by its
    own cost model. held: on CPU the output's gradient is computed once and held for the kernel's;
    XLA computes a cheap one, such as BatchNorm's, again for every tap.
    """
    if padding is None:
        rows, columns = (dilation * (size // 2) for size in kernel.shape[:2])
        padding = ((rows, rows), (columns, columns))
    axes = tuple(
        Axis(size, taps, stride, dilation, *pads)
        for size, taps, pads in zip(x.shape[1:3], kernel.shape[:2], padding, strict=True)
    )
    return jnp.asarray(_depthwise(x, kernel, axes, held))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: jax.Array, kernel: jax.Array, axes: Axes, held: bool) -> jax.Array:
    del held
    rows, columns = axes
    wide = at_least_float32(x)
    padded, weights = pad_map(x, axes).astype(wide), kernel.astype(wide)
    total = jnp.zeros((), wide)
    for i in rows.taps:
        for j in columns.taps:
            total += padded[:, rows.reads(i), columns.reads(j)] * weights[i, j].reshape(
                (1, 1, 1, -1)
            )
    return total.astype(x.dtype)


def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, axes: Axes, held: bool
) -> tuple[jax.Array, tuple]:
    return _depthwise(x, kernel, axes, held), (x, kernel)


def _kernel_gradient(axes: Axes, x: jax.Array, g: jax.Array) -> jax.Array:
    """[taps, C], at least float32, of `x` [B, H, W, C] and `g` [B, H', W', C], tap by tap: a sum
    each. What is read is widened, not the maps: XLA for TPUs would store them so."""
    rows, columns = axes
    padded, wide = pad_map(x, axes), at_least_float32(x)
    return jnp.stack(
        [
            (padded[:, rows.reads(i), columns.reads(j)].astype(wide) * g.astype(wide)).sum(
                (0, 1, 2)
            )
            for i in rows.taps
            for j in columns.taps
        ]
    )


def _kernel_gradient_cpu(axes: Axes, x: jax.Array, g: jax.Array) -> jax.Array:
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
    padded = pad_map(x, axes, below * rows.stride)
    g = jnp.pad(g, ((0, 0), (0, below), (0, 0), (0, 0)))
    ones = jnp.ones((x.shape[0] * group * columns.out,), g.dtype)

    def tap(i: int, j: int) -> jax.Array:
        total = jnp.zeros((), g.dtype)
        for first in range(0, rows.out, group):
            read = padded[:, rows.reads(i, first, group), columns.reads(j)]
            total += read * g[:, first : first + group]
        return ones @ total.reshape(-1, total.shape[-1])

    return jnp.stack([tap(i, j) for i in rows.taps for j in columns.taps])


def _kernel_gradient_held(axes: Axes, x: jax.Array, g: jax.Array) -> jax.Array:
    """The same, a picture at a time. Nothing is fused across a loop: otherwise XLA computes the
    chain that gives `g` nine times. DAFormer's head on MiT-B0, 256 px, forward and backward: 3.3 s
    of one core without the loop, 2.6 s with it. Where `g` is held anyway the loop costs a little.
    """

    def turn(i: jax.Array, total: jax.Array) -> jax.Array:
        picture = (jax.lax.dynamic_slice_in_dim(array, i, 1) for array in (x, g))
        return total + _kernel_gradient_cpu(axes, *picture)

    taps = len(axes[0].taps) * len(axes[1].taps)
    start = jnp.zeros((taps, x.shape[-1]), at_least_float32(x))
    return jax.lax.fori_loop(0, len(x), turn, start)


class _Phase(NamedTuple):
    """The inputs `start`, `start + stride`, ... of one axis, which the same taps read: input
    `start + stride * m` is read by tap `i` for output `m + offsets[i]`."""

    start: int
    offsets: dict[int, int]


def _phases(axis: Axis) -> list[_Phase]:
    """By `start`."""
    phases = []
    for start in range(axis.stride):
        at = {i: start + axis.low - axis.dilation * i for i in axis.taps}
        offsets = {i: n // axis.stride for i, n in at.items() if n % axis.stride == 0}
        phases.append(_Phase(start, offsets))
    return phases


def sums_of_readers(
    axes: Axes, maps: tuple[jax.Array, ...], term: Callable[..., jax.Array], dtype: jnp.dtype
) -> jax.Array:
    """[B, H, W, C] in the dtype of the first of `maps` [B, H', W', C]: at each input the sum, in
    `dtype`, over the taps (i, j) that read it, of term(i, j, *what `maps` hold at the output that
    does), which is 0 where there is no such output.

    Each of the stride x stride phases of the input is read by taps of its own; no zero is put
    between the values of a map."""
    phases = [_phases(axis) for axis in axes]
    counts = [-(-axis.size // axis.stride) for axis in axes]
    offsets = [[n for phase in of for n in phase.offsets.values()] for of in phases]
    lows = [max(0, -min(of)) for of in offsets]
    highs = [
        max(0, max(of) + count - axis.out)
        for of, count, axis in zip(offsets, counts, axes, strict=True)
    ]
    edges = ((0, 0), (lows[0], highs[0]), (lows[1], highs[1]), (0, 0))
    padded = [jnp.pad(one, edges) for one in maps]
    batch, channels = maps[0].shape[0], maps[0].shape[-1]

    def phase(rows: _Phase, columns: _Phase) -> jax.Array:
        total = jnp.zeros((batch, *counts, channels), dtype)
        for i, top in rows.offsets.items():
            for j, left in columns.offsets.items():
                top_, left_ = top + lows[0], left + lows[1]
                reads = (
                    one[:, top_ : top_ + counts[0], left_ : left_ + counts[1]] for one in padded
                )
                total += term(i, j, *reads)
        return total.astype(maps[0].dtype)

    if axes[0].stride == 1:
        return phase(phases[0][0], phases[1][0])
    grid = [jnp.stack([phase(rows, columns) for columns in phases[1]], 3) for rows in phases[0]]
    whole = jnp.stack(grid, 2)
    stride = axes[0].stride
    whole = whole.reshape(batch, counts[0] * stride, counts[1] * stride, channels)
    return whole[:, : axes[0].size, : axes[1].size]


def _input_gradient(axes: Axes, kernel: jax.Array, g: jax.Array) -> jax.Array:
    """[B, H, W, C] of `g` [B, H', W', C], in its dtype; `kernel` is at least float32."""

    def term(i: int, j: int, read: jax.Array) -> jax.Array:
        return read.astype(kernel.dtype) * kernel[i, j].reshape((1, 1, 1, -1))

    return sums_of_readers(axes, (g,), term, kernel.dtype)


def _input_gradient_cpu(axes: Axes, kernel: jax.Array, g: jax.Array) -> jax.Array:
    """The same, a picture at a time. Nothing is fused across a loop: otherwise XLA computes this
    again inside of every copy that transposes it, as the gradient of a resize does. DAFormer's head
    at [2, 56, 56], forward and backward: 2.26 s of one core without the loop, 0.99 s with it.
    """

    def one(picture: jax.Array) -> jax.Array:
        return _input_gradient(axes, kernel, picture[None])[0]

    return in_turn(one, g)


def _depthwise_backward(
    axes: Axes, held: bool, saved: tuple, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    rows, columns = axes
    wide = at_least_float32(x)
    sums = by_platform(
        x,
        g,
        cpu=partial(_kernel_gradient_held if held else _kernel_gradient_cpu, axes),
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
