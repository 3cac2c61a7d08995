"""Masks drawn on a coarse grid of tokens, seen on finer grids."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mrm_jax.ops.resize import resize
from mrm_jax.types import Array


def block_grid(size: tuple[int, int], block: int) -> tuple[int, int]:
    """Rows and columns of blocks of `block` px in a picture of `size`, at least one of each.

    Rounded half to even, as the reference does (MIC; peer: mmseg `masking_transforms.py`).
    """
    return max(round(size[0] / block), 1), max(round(size[1] / block), 1)


def hidden_tokens(uniforms: Array, ratio: Array | float, size: tuple[int, int]) -> jax.Array:
    """Which cells of a map of `size` are masked: bool[B, *size].

    uniforms: f[B, rows, columns] in [0, 1). A token is hidden where its draw is not above `ratio`;
    a cell follows the token it lies in (nearest neighbour).
    """
    mask = (jnp.asarray(uniforms) <= ratio)[..., None]
    return resize(mask, size, method="nearest")[..., 0]
