"""`after`: the same values, and an order that XLA's CPU compiler keeps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax.ops.order import after


@pytest.mark.parametrize("first", [0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.uint8])
def test_values_are_those_of_x_whatever_the_number_is(first, dtype) -> None:
    x = jnp.asarray([[3, 0], [1, 255]], dtype)
    for number in (jnp.asarray(first), jnp.full((2, 1), first, jnp.bfloat16)):
        found = jax.jit(after)(x, number)
        assert found.dtype == x.dtype
        np.testing.assert_array_equal(found, x)


def test_signs_of_zero_and_nan_stay() -> None:
    x = jnp.asarray([-0.0, np.nan, np.inf])
    found = np.asarray(jax.jit(after)(x, jnp.ones(())))
    np.testing.assert_array_equal(found, x)
    assert np.signbit(found[0])


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the CPU compiler's order is tested")
def test_what_comes_after_is_computed_then_and_not_kept_from_before() -> None:
    """`grown` is asked for twice, with much in between: once for it, and once at the end."""

    def used_twice(again, x, kernels):
        def grown(x):
            return jnp.tile(jnp.exp(x), (1, 8))

        first = y = grown(x) @ kernels[0].T
        for kernel in kernels:
            y = jnp.tanh(y @ kernel) @ kernel.T
        last = grown(after(x, y[:, :1])) if again else grown(x)
        return y.sum() + (last.T @ (first + y)).sum()

    def temporaries(again):
        x, kernels = jnp.ones((512, 64)), jnp.ones((4, 64, 512))
        lowered = jax.jit(used_twice, static_argnums=0).lower(again, x, kernels)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    # One map of [512, 512] floats of 4 bytes is what `grown` gives.
    assert temporaries(again=True) + 0.9 * 512 * 512 * 4 <= temporaries(again=False)
