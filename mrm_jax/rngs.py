"""Named random streams of one root key: a new consumer never shifts another's randomness."""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.errors import RunError
from mrm_jax.types import Array

KIND = "threefry2x32"
"""The generator of all our keys. Named with every key, as JAX_DEFAULT_PRNG_IMPL would change it."""


def root(seed: int) -> jax.Array:
    """The typed key of a seed in 0..2**32 - 1, the first key of all draws.

    The same whatever JAX_DEFAULT_PRNG_IMPL, JAX_RANDOM_SEED_OFFSET and JAX_ENABLE_X64 say.
    RunError where JAX was told to draw in another order, which no key can name.
    """
    if not jax.config.jax_threefry_partitionable:  # type: ignore[attr-defined]
        raise RunError(
            "JAX_THREEFRY_PARTITIONABLE is off: every draw would be another one than in "
            "other runs, and depend on the number of devices",
            "unset it.",
            field="JAX_THREEFRY_PARTITIONABLE",
            value=False,
        )
    return typed(np.array([0, seed], np.uint32))  # as jax.random.key has it


def typed(data: Array) -> jax.Array:
    """The typed key of plain key data u32[2], as states, draws and checkpoints hold it; a typed key
    stays as it is."""
    data = jnp.asarray(data)
    if jnp.issubdtype(data.dtype, jax.dtypes.prng_key):
        return data
    return jax.random.wrap_key_data(data, impl=KIND)


def stream(root: jax.Array, name: str, step: Array | int) -> jax.Array:
    """The key of stream `name` at `step`: the root folded with the name's CRC-32, then the step."""
    return jax.random.fold_in(jax.random.fold_in(root, zlib.crc32(name.encode())), step)


def per_sample(key: jax.Array, index: Array) -> jax.Array:
    """One key for every global sample index i32[B], whatever the number of devices or hosts."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
