"""Which of two values is computed first."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from mrm_jax.ops.platform import by_platform

_SIGNALLING = 0x7F800001
"""Bits of a signalling NaN of 32 bits. No arithmetic gives one (IEEE 754, section 6.2)."""


def after(x: jax.Array, number: jax.Array) -> jax.Array:
    """`x` as it is, but not to be had before `number` f[...], which broadcasts against it.

    XLA's CPU compiler drops optimization barriers before it orders a program and merges what is
    computed twice, so this is a true dependency: a comparison whose outcome no compiler knows.
    """
    never = lax.bitcast_convert_type(number.astype(jnp.float32), jnp.uint32) == _SIGNALLING
    return jnp.where(never, jnp.zeros((), x.dtype), x)


def again_after(x: jax.Array, number: jax.Array) -> jax.Array:
    """`after` on CPU, for what a gradient needs and can be had again: the values of a function, or
    a block's own kernel out of the stack. Elsewhere `x` as it is."""
    return by_platform(x, number, cpu=after, default=lambda x, _: x)
