"""From 8-bit pictures to the numbers that the networks see, and back. Runs on the device, so that
loaders hand out uint8.

Mean and deviation are the encoder's (`registry.EncoderKind.input`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mrm_jax.registry import InputStats
from mrm_jax.types import Array


def _constants(image: Array, stats: InputStats) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The picture, mean and deviation, ready to be combined without promotion."""
    shape = (1,) * (image.ndim - 1) + (3,)
    mean, std = (jnp.asarray(v, image.dtype).reshape(shape) for v in stats)
    return jnp.asarray(image), mean, std


def normalise(image: Array, stats: InputStats, dtype: jnp.dtype | type = jnp.float32) -> jax.Array:
    """`image` u8[..., 3] RGB as f[..., 3] with about zero mean and unit variance, in `dtype`."""
    image, mean, std = _constants(jnp.asarray(image).astype(dtype), stats)
    return (image - mean) / std


def to_unit(image: Array, stats: InputStats) -> jax.Array:
    """A normalised picture f[..., 3] as RGB in [0, 1] (not clipped)."""
    image, mean, std = _constants(image, stats)
    return (image * std + mean) / 255


def from_unit(image: Array, stats: InputStats) -> jax.Array:
    """RGB in [0, 1], f[..., 3], as a normalised picture: the inverse of `to_unit`."""
    image, mean, std = _constants(image, stats)
    return (image * 255 - mean) / std


def to_uint8(image: Array, stats: InputStats) -> jax.Array:
    """A normalised picture f[..., 3] as u8[..., 3] RGB to look at, rounded and clipped."""
    return jnp.clip(jnp.round(to_unit(image, stats) * 255), 0, 255).astype(jnp.uint8)
