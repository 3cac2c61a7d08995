"""Means and norms of nothing."""

import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.ops import safe


def test_masked_mean_of_nothing_is_zero_and_has_zero_gradient():
    x, nothing = jnp.array([1.0, jnp.inf]), jnp.zeros(2, bool)
    value, gradient = jax.value_and_grad(safe.masked_mean)(x, nothing)
    assert value == 0
    np.testing.assert_array_equal(gradient, [0, 0])


def test_masked_mean_is_the_mean_of_the_selected():
    x, mask = jnp.array([1.0, 2.0, 7.0]), jnp.array([True, False, True])
    assert safe.masked_mean(x, mask) == 4
    np.testing.assert_array_equal(jax.grad(safe.masked_mean)(x, mask), [0.5, 0, 0.5])


def test_norm_has_zero_gradient_at_zero_and_the_unit_vector_elsewhere():
    x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_array_equal(safe.norm(x), [0, 5])
    gradient = jax.grad(lambda v: safe.norm(v).sum())(x)
    np.testing.assert_allclose(gradient, [[0, 0], [0.6, 0.8]], rtol=1e-6)
