"""Digests of arrays, by which a bit that flipped on a disk is noticed.

Every word of an array (an element's bits; of 8 bytes two words) is mixed with its place, and the
results are added up modulo 2**32, twice with other constants. Whole numbers in any order give one
sum, so the digest of an array is the same however it is split over devices and hosts, and each
device adds up what it holds: no array moves. Mixing is invertible for a given place, so a change of
one word always shows; of others one in 2**64 is missed by chance. It is no protection against
somebody who means to deceive.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ROUNDS = (
    (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35),
    (0xB5297A4D, 0x7FEB352D, 0x846CA68B),
)
"""Odd factors of either sum: of the place, and of the two multiplications that spread its bits."""
_CHUNK = 1 << 16
"""Words that are mixed at a time on the host: they stay in the processor's cache."""
_UNSIGNED = {1: "u1", 2: "u2", 4: "u4", 8: "u4"}


def digests(tree: Any) -> dict[str, str]:
    """Path of every leaf, with slashes -> "<dtype>[<shape>] <16 hex digits>".

    Leaves are numpy or jax arrays of numbers or booleans, no typed keys. Of arrays that are split
    over several hosts all of them have to ask, and all get the same.
    """
    leaves = _by_path(tree)
    far = {name: leaf for name, leaf in leaves.items() if not _is_here(leaf)}
    sums: dict[str, Any] = dict(zip(far, on_devices([*far.values()]), strict=True))
    here = [name for name in leaves if name not in sums]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # numpy lets go
        mine = pool.map(lambda name: on_host(_here(leaves[name])), here)
        sums.update(zip(here, mine, strict=True))
    return {name: f"{kind} {_hex(sums[name])}" for name, kind in signatures(tree).items()}


def signatures(tree: Any) -> dict[str, str]:
    """What the digests of a tree, which may be abstract, begin with: "<dtype>[<shape>]" by path."""
    return {name: _signature(leaf) for name, leaf in _by_path(tree).items()}


def _by_path(tree: Any) -> dict[str, Any]:
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _signature(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def differing(found: Mapping[str, str], wanted: Mapping[str, str]) -> str | None:
    """The first path whose digest is not the wanted one, or that only one of them has."""
    return next((n for n in {**wanted, **found} if found.get(n) != wanted.get(n)), None)


def _hex(sums: Any) -> str:
    first, second = np.asarray(sums).tolist()
    return f"{first:08x}{second:08x}"


def _is_here(leaf: Any) -> bool:
    """Whether all of it lies in this machine's memory, where numpy needs no compilation."""
    if not isinstance(leaf, jax.Array):
        return True
    platform = next(iter(leaf.sharding.device_set)).platform
    return platform == "cpu" and (leaf.is_fully_replicated or leaf.is_fully_addressable)


def _here(leaf: Any) -> np.ndarray:
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    # Not by np.asarray, after which the array would keep the copy.
    whole = np.empty(leaf.shape, leaf.dtype)
    for shard in leaf.addressable_shards:
        whole[shard.index] = shard.data
    return whole


def on_host(array: np.ndarray) -> np.ndarray:
    """u32[2] of an array in this machine's memory."""
    words = np.ascontiguousarray(array).reshape(-1).view(_UNSIGNED[array.itemsize])
    sums = np.zeros((2, 1), np.uint32)  # arrays: of scalars numpy says that they wrap
    for start in range(0, words.size, _CHUNK):
        chunk = words[start : start + _CHUNK]
        places = np.arange(start, start + chunk.size, dtype=np.uint32)
        for total, factors in zip(sums, _ROUNDS, strict=True):
            place, *spread = map(np.uint32, factors)
            total += _mixed_in_place(chunk, places * place, *spread)
    return sums[:, 0]


def _mixed_in_place(words: np.ndarray, mixed: np.ndarray, first: Any, second: Any) -> np.uint32:
    """What `_sums` adds up; `mixed`, the factored places, is overwritten."""
    mixed ^= words
    shifted = mixed >> np.uint32(16)
    mixed ^= shifted
    mixed *= first
    np.right_shift(mixed, np.uint32(13), out=shifted)
    mixed ^= shifted
    mixed *= second
    np.right_shift(mixed, np.uint32(16), out=shifted)
    mixed ^= shifted
    return mixed.sum(dtype=np.uint32)


def on_devices(arrays: Sequence[jax.Array]) -> list[Any]:
    """u32[2] of each array where it lies, on every device; XLA adds up over devices."""
    if arrays and next(iter(arrays[0].sharding.device_set)).platform == "cpu":
        # One program for all: it is compiled sooner than many, runs once in a while, and CPUs of
        # several hosts would begin many in another order each and wait for one another.
        return jax.block_until_ready(_all_sums(list(arrays)))
    return [_one_sum(array) for array in arrays]  # asked for one after the other, not waited for


def _sums(array: jax.Array) -> jax.Array:
    words, lanes = _words(array)
    place = jnp.zeros((), jnp.uint32)
    step = lanes
    for axis in reversed(range(array.ndim)):
        counted = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place = place + counted * np.uint32(step % 2**32)
        step *= array.shape[axis]
    if lanes == 2:
        place = place + jax.lax.broadcasted_iota(jnp.uint32, words.shape, array.ndim)
    sums = []
    for factors in _ROUNDS:
        factor, first, second = map(np.uint32, factors)
        mixed = words ^ (place * factor)
        mixed = (mixed ^ (mixed >> 16)) * first
        mixed = (mixed ^ (mixed >> 13)) * second
        sums.append(jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32))
    return jnp.stack(sums)


_one_sum = jax.jit(_sums)
_all_sums = jax.jit(
    lambda arrays: [_sums(array) for array in arrays],
    compiler_options={"xla_backend_optimization_level": 0},
)


def _words(array: jax.Array) -> tuple[jax.Array, int]:
    """u32 of the array's shape, or of 8-byte elements with an axis of 2 more, and how many each."""
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    size = array.dtype.itemsize
    unsigned = jnp.dtype(_UNSIGNED[size])
    return jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32), 1 + size // 8
