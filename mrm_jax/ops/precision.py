"""In what precision sums over many values are taken, and how what is narrower is rounded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, Literal

import jax
import jax.numpy as jnp

Products = Literal["default", "high", "highest"]
"""How float32 factors are rounded before products and convolutions, in JAX's words; narrower ones
are multiplied as they are. See `config.Model`."""


def at_least_float32(x: jax.Array) -> jnp.dtype:
    """The dtype for reductions over floating `x`: float32 for narrower ones, else its own."""
    # Not jnp.promote_types: under strict promotion it refuses bfloat16 with float32.
    return x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.dtype(jnp.float32)


def multiplying(precision: Products) -> AbstractContextManager[Any]:
    """For tracing, gradients too, within it: products and convolutions of float32 by `precision`.
    default leaves JAX's own setting."""
    return nullcontext() if precision == "default" else jax.default_matmul_precision(precision)


def multiplied(function: Callable[..., Any], precision: Products) -> Callable[..., Any]:
    """`function` traced within `multiplying(precision)`."""
    if precision == "default":
        return function

    @wraps(getattr(function, "func", function))  # of a partial: profiles show the name
    def traced(*args: Any, **kwargs: Any) -> Any:
        with multiplying(precision):
            return function(*args, **kwargs)

    return traced


def round_by_chance(x: jax.Array, key: jax.Array) -> jax.Array:
    """bfloat16 of float32 `x`: one of its two neighbours, the nearer one more often, so that the
    mean over many roundings is `x`. What is not finite stays so.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # bfloat16 is float32 without its last 16 bits: what is added carries over as often as they say.
    carried = bits + (jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32))
    cut = jax.lax.bitcast_convert_type(carried & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), cut, x).astype(jnp.bfloat16)
