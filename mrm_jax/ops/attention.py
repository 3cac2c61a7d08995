"""Multi-head attention whose scores and shares are at least float32, in one of two forms."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mrm_jax.ops.platform import is_portable
from mrm_jax.ops.precision import at_least_float32

Form = Literal["plain", "fused"]
"""plain: products, softmax, products, with all scores in memory. fused: on NVIDIA GPUs one kernel
of cuDNN (flash attention), which keeps no scores, where it fits: bfloat16 or float16, at most 128
channels a head and a multiple of 8, even numbers of queries and keys; plain everywhere else."""


@jax.custom_vjp
def _scores(query: jax.Array, key: jax.Array) -> jax.Array:
    """Products [B, heads, N, M] of `query` [B, heads, N, C] with `key` [B, heads, M, C], at least
    float32: rounded to bfloat16, a score of 16 would be off by up to 1/32, and its share by 3 %."""
    wide = at_least_float32(query)
    return jnp.einsum("bhnd,bhmd->bhnm", query, key, preferred_element_type=wide)


def _scores_forward(query: jax.Array, key: jax.Array) -> tuple[jax.Array, tuple]:
    return _scores(query, key), (query, key)


def _scores_backward(saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    query, key = saved
    # JAX's own rule would multiply in float32, at twice the time and traffic of bfloat16.
    g = g.astype(query.dtype)
    return jnp.einsum("bhnm,bhmd->bhnd", g, key), jnp.einsum("bhnm,bhnd->bhmd", g, query)


_scores.defvjp(_scores_forward, _scores_backward)


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, heads: int, form: Form = "plain"
) -> jax.Array:
    """Multi-head attention of `query` [B, N, C] over `key`, `value` [B, M, C]: [B, N, C]. Channels
    are split head-major."""
    plain, cudnn = partial(_plain, heads=heads), partial(fused, heads=heads, kernel="cudnn")
    if form == "plain" or is_portable() or not _takes(cudnn, query, key, value):
        return plain(query, key, value)
    return jax.lax.platform_dependent(query, key, value, cuda=cudnn, default=plain)


def _takes(kernel: Any, *arrays: jax.Array) -> bool:
    """Whether JAX's own checks of `kernel` and its gradient let `arrays` pass; they also refuse
    where cuDNN is not installed."""
    try:
        jax.eval_shape(lambda *arrays: jax.vjp(kernel, *arrays)[0], *arrays)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return True


def fused(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    heads: int,
    kernel: Literal["cudnn", "xla"],
) -> jax.Array:
    """`attend` by JAX's function; `kernel` "xla" has it compute the same on any device."""

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], x.shape[1], heads, -1)

    mixed = jax.nn.dot_product_attention(
        split(query), split(key), split(value), implementation=kernel
    )
    return mixed.reshape(query.shape)


def _plain(query: jax.Array, key: jax.Array, value: jax.Array, heads: int) -> jax.Array:
    batch, length, channels = query.shape
    width = channels // heads

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(batch, -1, heads, width).transpose(0, 2, 1, 3)

    # float32: a bfloat16 softmax over 256 keys loses the small shares.
    share = jax.nn.softmax(_scores(split(query), split(key)) * width**-0.5, axis=-1)
    mixed = jnp.einsum("bhnm,bhmd->bhnd", share.astype(value.dtype), split(value))
    return mixed.transpose(0, 2, 1, 3).reshape(batch, length, channels)
