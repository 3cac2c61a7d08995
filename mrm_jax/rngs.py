"""Named random streams of one root key: a new consumer never shifts another's randomness."""

from __future__ import annotations

import zlib

import jax

from mrm_jax.types import Array


def stream(root: jax.Array, name: str, step: Array | int) -> jax.Array:
    """The key of stream `name` at `step`: the root folded with the name's CRC-32, then the step."""
    return jax.random.fold_in(jax.random.fold_in(root, zlib.crc32(name.encode())), step)


def per_sample(key: jax.Array, index: Array) -> jax.Array:
    """One key for every global sample index i32[B], whatever the number of devices or hosts."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
