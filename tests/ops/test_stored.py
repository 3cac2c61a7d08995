"""`stored`: the same values and gradients, no chain that is computed again, and no copy of what is
stored; `in_turn`: as `map`, and no memory before it is needed."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax.ops.stored import in_turn, stored


@pytest.mark.parametrize("shape", [(2, 3, 4), (5, 3, 1), (3,)])
def test_values_and_gradients_are_those_of_x(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x.flat[0], x.flat[1] = -0.0, np.inf

    def squared(x: jax.Array) -> jax.Array:
        return jnp.square(stored(x)).sum()

    kept = np.asarray(jax.jit(stored)(x))
    np.testing.assert_array_equal(kept, x)
    assert np.signbit(kept.flat[0])
    np.testing.assert_array_equal(jax.jit(jax.grad(squared))(x), 2 * x)
    assert jax.jit(stored)(jnp.float32(3)) == 3
    unknown = np.where(x > 0, x, np.nan)
    np.testing.assert_array_equal(jax.jit(stored)(unknown), unknown)


def _compiled(store: bool, blocks: int) -> jax.stages.Compiled:
    """A network of residual blocks, compiled for CPU; a map has 128 KiB."""

    def network(x: jax.Array, kernels: jax.Array) -> jax.Array:
        for kernel in kernels:
            x = jax.nn.relu(x + x @ kernel)
            x = stored(x) if store else x
        return x.T @ x

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((512, 64), (blocks, 64, 64))]
    return jax.jit(network).lower(*shapes).compile()


def _most_operands(store: bool) -> int:
    """Operands of the largest fusion of eight blocks."""
    fusions = re.findall(r"= \S+ fusion\(([^)]*)\)", _compiled(store, 8).as_text())
    return max(operands.count("%") for operands in fusions)


only_cpu = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="only on CPU is anything stored"
)


@only_cpu
def test_no_chain_of_blocks_is_fused_into_what_reads_its_end() -> None:
    assert _most_operands(store=False) >= 8
    assert _most_operands(store=True) < 8


@only_cpu
def test_what_is_stored_is_written_once() -> None:
    shape = jax.ShapeDtypeStruct((8, 1 << 16), jnp.float32)
    compiled = jax.jit(lambda x: stored(2 * x).sum()).lower(shape).compile()
    # The map and a few numbers; before, what the loop began with was a copy of it.
    assert compiled.memory_analysis().temp_size_in_bytes < 1.1 * 4 * shape.size
    assert not re.search(r"f32\[8,65536\]\S* copy\(", compiled.as_text())


@only_cpu
def test_a_loop_holds_no_memory_before_it_begins() -> None:
    few, many = (_compiled(True, n).memory_analysis().temp_size_in_bytes for n in (4, 12))
    # With `lax.map` eight blocks more hold eight maps more, 1 MiB, from the first block on.
    assert many < few + 2 * 512 * 64 * 4


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_in_turn_is_map(dtype: type) -> None:
    xs = np.arange(12).reshape(3, 4).astype(dtype)
    xs[0, 0] = 7  # the value that memory is filled with where the shapes are different
    for f in (lambda x: 2 * x, lambda x: x.sum(keepdims=True) / 2, lambda x: x[:2, None] > 3):
        found, wanted = jax.jit(lambda xs, f=f: in_turn(f, xs))(xs), jax.lax.map(f, xs)
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
