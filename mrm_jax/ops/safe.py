"""Means and norms that answer 0, with zero gradient, where nothing is selected or everything is
zero.

The plain forms give NaN there, in the value (0 / 0) or in the gradient alone (the root's slope at
0), and one NaN in a sum of gradients spoils every weight.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of `x` over the positions where `mask` (bool, same shape) is true; 0 where there is
    none. At least float32.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # The selection comes before the sum: 0 * inf at a masked position would be NaN.
    total = jnp.where(mask, wide, jnp.zeros((), wide.dtype)).sum()
    return total / jnp.maximum(mask.sum(), 1).astype(wide.dtype)


def norm(x: jax.Array, axis: int = -1) -> jax.Array:
    """Euclidean norm over `axis`, in at least float32; its gradient at the zero vector is 0."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.square(wide).sum(axis)
    zero = square == 0
    root = jnp.sqrt(jnp.where(zero, jnp.ones((), wide.dtype), square))
    return jnp.where(zero, jnp.zeros((), wide.dtype), root)
