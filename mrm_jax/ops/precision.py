"""In what precision sums over many values are taken."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def at_least_float32(x: jax.Array) -> jnp.dtype:
    """The dtype for reductions over floating `x`: float32 for narrower ones, else its own."""
    # Not jnp.promote_types: under strict promotion it refuses bfloat16 with float32.
    return x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.dtype(jnp.float32)
