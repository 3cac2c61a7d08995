"""Masks drawn on a coarse grid of tokens, seen on finer grids."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mrm_jax.ops.resize import resize
from mrm_jax.types import Array


def hidden(uniforms: Array, ratio: Array | float, size: tuple[int, int]) -> jax.Array:
    """Which cells of a map of `size` a Rebuilder does not see: bool[B, *size].

    uniforms: f[B, rows, columns] in [0, 1). A token is hidden where its draw is not above `ratio`;
    a cell follows the token it lies in (nearest neighbour).
    """
    mask = (jnp.asarray(uniforms) <= ratio)[..., None]
    return resize(mask, size, method="nearest")[..., 0]
