"""Parameters of networks and how they start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError

Initializer = Callable[..., jax.Array]


def parameter(module: nn.Module, name: str, init: Initializer, shape: Sequence[int]) -> jax.Array:
    """The float32 parameter `name` [*shape] of `module`; `init` draws it where there is none yet.

    As `module.param`, which traces `init` at every use, to compare shapes: an eighth of the tracing
    of a step. Raises flax's `ScopeParamShapeError` where the shape is another.
    """
    if not module.has_variable("params", name):
        return module.param(name, init, shape, jnp.float32)
    value = module.get_variable("params", name)
    if value.shape != tuple(shape):
        path = "/".join(module.path)
        raise ScopeParamShapeError(name, path, value.shape, tuple(shape))
    return value


# Initialisers. Source: the reference's own rules, layer by layer (PyTorch's, timm's and mmcv's).


def uniform(bound: float) -> Initializer:
    """Uniform in [-bound, bound]."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, tuple(shape), dtype, -bound, bound)

    return init


def fan_out_normal(fan_out: int) -> Initializer:
    """Normal with standard deviation sqrt(2 / fan_out): Kaiming's rule for ReLU, counted on the
    output side."""
    return nn.initializers.normal((2.0 / fan_out) ** 0.5)
