"""Max pooling of maps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from mrm_jax.ops.convolution import Padding
from mrm_jax.ops.platform import is_portable


def max_pool(x: jax.Array, size: int, stride: int, padding: Padding) -> jax.Array:
    """The largest values f[B, H', W', C] of windows of `size` x `size` every `stride` cells of `x`
    f[B, H, W, C]; padding: cells at the borders that are never the largest.

    In portable programs by shifted slices: jax2onnx 0.17 writes a window over four axes, and ONNX
    runtimes pool over at most three.
    """
    if is_portable():
        return _by_slices(x, size, stride, padding)
    pads = ((0, 0), *padding, (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, size, size, 1), (1, stride, stride, 1), pads)


def _by_slices(x: jax.Array, size: int, stride: int, padding: Padding) -> jax.Array:
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    rows, columns = (length - size + 1 for length in x.shape[1:3])
    found = x[:, :rows:stride, :columns:stride]
    for i in range(size):
        for j in range(size):
            found = jnp.maximum(found, x[:, i : i + rows : stride, j : j + columns : stride])
    return found
