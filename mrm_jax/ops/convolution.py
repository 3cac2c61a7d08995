"""Convolutions in the forms that XLA runs fast, each equal to the plain `lax` one in value and
gradient.

Sources of the choices: timings on CPU and libtpu's cost model; `models/layers.py` gives them
parameters.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mrm_jax.ops.precision import at_least_float32


def _shifts(size: tuple[int, int], dilation: int) -> list[tuple[int, int]]:
    """The taps of a 3x3 kernel that reach the map at all: with a large dilation the outer ones see
    only padding."""
    rows = range(3) if dilation < size[0] else (1,)
    columns = range(3) if dilation < size[1] else (1,)
    return [(i, j) for i in rows for j in columns]


def _shifted(
    padded: jax.Array, tap: tuple[int, int], dilation: int, size: tuple[int, int]
) -> jax.Array:
    top, left = tap[0] * dilation, tap[1] * dilation
    return padded[:, top : top + size[0], left : left + size[1]]


def _pad(x: jax.Array, border: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))


def depthwise3x3(x: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
    """Depthwise 3x3 convolution, padding = dilation: `x` [B, H, W, C], `kernel` [3, 3, 1, C] in
    `x`'s dtype; same shape as `x`.

    Nine shifted products, summed in at least float32, with the gradient written in the same form:
    XLA's grouped convolution is 20 to 400 times slower on CPU, and slower on TPU by its own cost
    model.
    """
    return jnp.asarray(_depthwise(x, kernel, dilation))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    size, wide = (x.shape[1], x.shape[2]), at_least_float32(x)
    padded, taps = _pad(x, dilation).astype(wide), kernel.astype(wide)
    total = jnp.zeros((), wide)
    for tap in _shifts(size, dilation):
        total += _shifted(padded, tap, dilation, size) * taps[tap].reshape((1, 1, 1, -1))
    return total.astype(x.dtype)


def _depthwise_forward(x: jax.Array, kernel: jax.Array, dilation: int) -> tuple[jax.Array, tuple]:
    return _depthwise(x, kernel, dilation), (x, kernel)


def _sums_apart(*products: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(product.sum((0, 1, 2)) for product in products)


def _sums_together(*products: jax.Array) -> tuple[jax.Array, ...]:
    """One reduction with many operands: on CPU it compiles twice as fast as one each."""
    zero = jnp.zeros((), products[0].dtype)
    zeros = (zero,) * len(products)

    def add(left: tuple, right: tuple) -> tuple:
        return tuple(a + b for a, b in zip(left, right, strict=True))

    return lax.reduce(products, zeros, add, (0, 1, 2))


def _depthwise_backward(dilation: int, saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    size, wide = (x.shape[1], x.shape[2]), at_least_float32(x)
    padded, wide_g = _pad(x, dilation).astype(wide), g.astype(wide)
    taps = _shifts(size, dilation)
    products = tuple(_shifted(padded, tap, dilation, size) * wide_g for tap in taps)
    sums = lax.platform_dependent(*products, cpu=_sums_together, default=_sums_apart)
    grad = jnp.zeros(kernel.shape, wide)
    for tap, value in zip(taps, sums, strict=True):
        grad = grad.at[tap[0], tap[1], 0].set(value)
    return _depthwise(g, kernel[::-1, ::-1], dilation), grad.astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def transposed_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution 4x4, stride 2, that exactly doubles the size: `x` [B, H, W, I],
    `kernel` [4, 4, I, O].

    The kernel is oriented as `lax.conv_transpose` reads it; PyTorch's is the same flipped in both
    directions.
    """
    return lax.platform_dependent(x, kernel, cpu=_by_windows, default=_by_lax)


def _by_lax(x: jax.Array, kernel: jax.Array) -> jax.Array:
    padding = ((2, 2), (2, 2))
    return lax.conv_transpose(
        x, kernel, (2, 2), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _by_windows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One matrix product over 2x2 windows of the padded map: exactly the sums needed, no zeros.

    Window n covers input rows n-1 and n and makes output rows 2n-1 and 2n: the first reads taps 1
    and 3, the second taps 0 and 2. So tap = 2 * (row in the window) + 1 - (row among the two
    outputs).
    """
    batch, height, width, channels = x.shape
    out = kernel.shape[-1]
    padded = _pad(x, 1)
    corners = [padded[:, i : i + height + 1, j : j + width + 1] for i in range(2) for j in range(2)]
    taps = kernel.reshape(2, 2, 2, 2, channels, out)[:, ::-1, :, ::-1]
    weight = taps.transpose(0, 2, 4, 1, 3, 5).reshape(4 * channels, 4 * out)
    y = jnp.concatenate(corners, -1) @ weight
    y = y.reshape(batch, height + 1, width + 1, 2, 2, out).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(batch, 2 * height + 2, 2 * width + 2, out)[:, 1:-1, 1:-1]


def doubled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution 2x2, stride 2: `x` [B, H, W, I], `kernel` [2, 2, I, O], oriented as
    `transposed_conv`'s: [B, 2H, 2W, O]. Each input makes four outputs, so it is one product."""
    batch, height, width, channels = x.shape
    weight = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(channels, -1)
    y = (x @ weight).reshape(batch, height, width, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(batch, 2 * height, 2 * width, -1)
