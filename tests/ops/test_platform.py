"""Portable programs: no choice by platform, no pooling over four axes, the same values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax.ops.platform import portable
from mrm_jax.ops.pool import max_pool
from mrm_jax.ops.resize import resize


def test_a_portable_program_chooses_by_no_platform_and_computes_the_same():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 128, 32)), jnp.float32)

    def doubled(x):  # of so many numbers that CPUs have a form of their own
        return resize(x, (128, 256))

    assert "platform_index" in str(jax.make_jaxpr(doubled)(x))
    with portable():
        assert "platform_index" not in str(jax.make_jaxpr(lambda x: doubled(x))(x))
        found = doubled(x)
    np.testing.assert_allclose(found, doubled(x), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding"),
    [
        ((2, 9, 12, 3), 3, 2, ((1, 1), (1, 1))),
        ((1, 5, 8, 2), 2, 2, ((0, 1), (0, 0))),
        ((1, 3, 3, 1), 3, 1, ((0, 0), (0, 0))),
    ],
)
def test_portable_pools_are_the_others(shape, size, stride, padding):
    x = -np.abs(np.random.default_rng(1).normal(size=shape)).astype(np.float32)
    wanted = max_pool(x, size, stride, padding)
    with portable():
        program = str(jax.make_jaxpr(lambda x: max_pool(x, size, stride, padding))(x))
        found = max_pool(jnp.asarray(x), size, stride, padding)
    assert "reduce_window" not in program
    np.testing.assert_array_equal(found, wanted)
    assert found.shape[1] == (shape[1] + sum(padding[0]) - size) // stride + 1
