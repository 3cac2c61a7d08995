"""Values that a backend stores once instead of computing them again wherever they are used."""

from __future__ import annotations

import jax
from jax import lax

from mrm_jax.ops.platform import by_platform


@jax.custom_vjp
def stored(x: jax.Array) -> jax.Array:
    """`x`, and its gradient likewise. On CPU XLA fuses element-wise steps into all that uses them,
    however long the chain: the sum that block n of a residual network adds to would be computed
    anew, from the first block on, in every block. Nothing is fused across a loop, so this copies
    `x` in one of two turns; an array of an odd number of elements stays as it is."""
    return by_platform(x, cpu=_copied, default=lambda x: x)


def _copied(x: jax.Array) -> jax.Array:
    if x.size % 2:
        return x
    return lax.map(lambda half: half * 1, x.reshape(2, -1)).reshape(x.shape)


def _forward(x: jax.Array) -> tuple[jax.Array, None]:
    return stored(x), None


def _backward(_: None, g: jax.Array) -> tuple[jax.Array]:
    return (stored(g),)


stored.defvjp(_forward, _backward)
