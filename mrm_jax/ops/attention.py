"""Multi-head attention whose scores and shares are at least float32, in one of two forms."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mrm_jax.ops.platform import by_platform, is_portable
from mrm_jax.ops.precision import at_least_float32
from mrm_jax.ops.stored import in_turn

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
    return by_platform(query, key, value, cuda=cudnn, default=plain)


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

    arrays = split(query), split(key), split(value)
    rows = _rows_at_a_time(arrays[0], arrays[1])
    if rows is None:
        mixed = _at_once(*arrays)
    else:
        mixed = by_platform(*arrays, cpu=partial(_by_turns, rows), default=_at_once)
    return mixed.transpose(0, 2, 1, 3).reshape(batch, length, channels)


def _shares(query: jax.Array, key: jax.Array) -> jax.Array:
    """Softmax over keys, in float32: a bfloat16 one over 256 keys loses the small shares."""
    return jax.nn.softmax(_scores(query, key) * query.shape[-1] ** -0.5, axis=-1)


def _at_once(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """[B, heads, N, C] of `query` [B, heads, N, C], `key` and `value` [B, heads, M, C]."""
    share = _shares(query, key).astype(value.dtype)
    return jnp.einsum("bhnm,bhmd->bhnd", share, value)


# --- Some queries at a time, so that scores stay in a processor's cache -------------------------

_MANY = 1 << 18
"""Scores from which on they are computed by turns on a CPU."""

_A_TURN = 1 << 17
"""Scores of a turn, about."""


def _rows_at_a_time(query: jax.Array, key: jax.Array) -> int | None:
    """Queries of a turn; None: all at once."""
    (batch, heads, length, _), keys = query.shape, key.shape[2]
    of_one = batch * heads * keys
    if of_one * length < _MANY:
        return None
    most = max(64, _A_TURN // of_one)
    rows = max(n for n in range(1, most + 1) if length % n == 0)
    return rows if rows >= most // 4 and rows < length else None


def _by_turns(rows: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`_at_once`, keeping no scores; their gradient computes them again. Forward and backward at
    [2, 1, 16384, 32] over 256 keys take 52 ms (512 rows) and 13 MB, 127 ms and 134 MB at once,
    at [2, 1, 4096, 32] over 64 4.3 ms and 8.5 (one core with AMX, other work beside)."""
    # Heads are pictures: with an axis of their own, of one head, XLA copies scores between layouts.
    flat = [x.reshape(-1, *x.shape[2:]) for x in (query, key, value)]
    return jnp.reshape(_attend_by_turns(rows, *flat), query.shape)


def _turns(x: jax.Array, rows: int) -> jax.Array:
    return x.reshape(len(x), -1, rows, x.shape[-1]).swapaxes(0, 1)


def _whole(turns: jax.Array) -> jax.Array:
    return turns.swapaxes(0, 1).reshape(turns.shape[1], -1, turns.shape[-1])


def _turn_shares(query: jax.Array, key: jax.Array) -> jax.Array:
    """Softmax over keys, with the queries scaled, which are fewer numbers than the scores."""
    wide, scale = at_least_float32(query), query.shape[-1] ** -0.5
    scores = jnp.einsum("bnd,bmd->bnm", query.astype(wide) * scale, key.astype(wide))
    return jax.nn.softmax(scores, axis=-1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_by_turns(rows: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """[B, N, C] of `query` [B, N, C], `key` and `value` [B, M, C]."""

    def turn(some: jax.Array) -> jax.Array:
        share = _turn_shares(some, key).astype(value.dtype)
        return jnp.einsum("bnm,bmd->bnd", share, value)

    return _whole(in_turn(turn, _turns(query, rows)))


def _forward(
    rows: int, query: jax.Array, key: jax.Array, value: jax.Array
) -> tuple[jax.Array, tuple]:
    return _attend_by_turns(rows, query, key, value), (query, key, value)


def _backward(rows: int, saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    query, key, value = saved
    wide, scale = at_least_float32(query), query.shape[-1] ** -0.5

    queries, rises = _turns(query, rows), _turns(g, rows)

    def turn(i: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        to_key, to_value, back = found
        some, g = queries[i], rises[i]
        share = _turn_shares(some, key)
        moved = jnp.einsum("bnd,bmd->bnm", g, value).astype(wide)
        moved = share * (moved - (share * moved).sum(-1, keepdims=True)) * scale
        moved = moved.astype(query.dtype)
        to_key += _sum_over_queries(some, moved)
        to_value += _sum_over_queries(g, share.astype(g.dtype))
        return to_key, to_value, back.at[i].set(moved @ key)

    zeros = jnp.zeros(key.swapaxes(1, 2).shape, wide)
    start = zeros, zeros, queries  # whose memory is as large as that of the gradient: see `in_turn`
    *sums, back = jax.lax.fori_loop(0, len(queries), turn, start)
    to_key, to_value = (total.swapaxes(1, 2).astype(key.dtype) for total in sums)
    return _whole(back), to_key, to_value


def _sum_over_queries(x: jax.Array, by: jax.Array) -> jax.Array:
    """[B, C, M], at least float32, of `x` [B, N, C] and `by` [B, N, M]. `x` is transposed before
    the product: see `ops.product.outer`."""
    turned = jax.lax.optimization_barrier(x.swapaxes(1, 2))
    return jnp.matmul(turned, by, preferred_element_type=at_least_float32(x))


_attend_by_turns.defvjp(_forward, _backward)
