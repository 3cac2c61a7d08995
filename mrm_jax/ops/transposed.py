"""Transposed convolutions that exactly double a map, each equal to the plain `lax` one in value and
gradient, in the form that a backend runs fast."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from mrm_jax.ops.platform import by_platform

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def transposed_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution 4x4, stride 2, that exactly doubles the size: `x` [B, H, W, I],
    `kernel` [4, 4, I, O].

    The kernel is oriented as `lax.conv_transpose` reads it; PyTorch's is the same flipped in both
    directions.
    """
    return by_platform(x, kernel, cpu=_by_windows, default=_by_lax)


def _by_lax(x: jax.Array, kernel: jax.Array) -> jax.Array:
    padding = ((2, 2), (2, 2))
    return lax.conv_transpose(x, kernel, (2, 2), padding, dimension_numbers=_LAYOUT)


def _by_windows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One matrix product over 2x2 windows of the padded map: exactly the sums needed, no zeros.

    Window n covers input rows n-1 and n and makes output rows 2n-1 and 2n: the first reads taps 1
    and 3, the second taps 0 and 2. So tap = 2 * (row in the window) + 1 - (row among the two
    outputs).
    """
    batch, height, width, channels = x.shape
    out = kernel.shape[-1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
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
