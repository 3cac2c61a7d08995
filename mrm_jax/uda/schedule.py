"""The weight of MRM's loss over a run. The paper's is constant, which is the default."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mrm_jax.types import Array, Scalars


def at_step(scalars: Scalars, step: Array) -> Scalars:
    """The numbers of step 0, 1, ...: `scalars` with lambda where its ramps put it.

    It rises in a line from 0 at the first step to its weight at the ramp's end, and falls as a
    rise run backwards, to 0 at the last step. Either ramp is off where its length is 0.
    """
    weight = jnp.asarray(scalars["method.mrm.weight"])
    rise, fall = scalars["method.mrm.ramp"]
    done = jnp.asarray(step).astype(weight.dtype)
    left = jnp.asarray(scalars["train.steps"]) - 1 - done
    share = _ramp(done, rise) * _ramp(left, fall)
    return {**scalars, "method.mrm.weight": weight * share}


def _ramp(steps: jax.Array, length: Array) -> jax.Array:
    return jnp.where(length > 0, jnp.clip(steps / jnp.maximum(length, 1), 0, 1), 1)
