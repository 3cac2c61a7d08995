"""`stored`: the same values and gradients, and no chain that is computed again."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax.ops.stored import stored


@pytest.mark.parametrize("shape", [(2, 3, 4), (5, 3, 1)])
def test_values_and_gradients_are_those_of_x(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x.flat[0] = -0.0

    def squared(x: jax.Array) -> jax.Array:
        return jnp.square(stored(x)).sum()

    kept = np.asarray(jax.jit(stored)(x))
    np.testing.assert_array_equal(kept, x)
    assert np.signbit(kept.flat[0])
    np.testing.assert_array_equal(jax.jit(jax.grad(squared))(x), 2 * x)


def _most_operands(store: bool) -> int:
    """Operands of the largest fusion of a network of eight residual blocks, compiled for CPU."""

    def network(x: jax.Array, kernels: jax.Array) -> jax.Array:
        for kernel in kernels:
            x = jax.nn.relu(x + x @ kernel)
            x = stored(x) if store else x
        return x.T @ x

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((512, 64), (8, 64, 64))]
    text = jax.jit(network).lower(*shapes).compile().as_text()
    fusions = re.findall(r"= \S+ fusion\(([^)]*)\)", text)
    return max(operands.count("%") for operands in fusions)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only on CPU is anything stored")
def test_no_chain_of_blocks_is_fused_into_what_reads_its_end() -> None:
    assert _most_operands(store=False) >= 8
    assert _most_operands(store=True) < 8
