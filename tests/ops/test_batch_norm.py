"""Batch normalisation with its gradient written out, against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax.ops import batch_norm as module
from mrm_jax.ops.batch_norm import batch_norm

EPS = 1e-3


def plain(x, scale, bias):
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    return (x - mean) / jnp.sqrt(var + EPS) * scale + bias, mean, var


# 6 rows: as many groups; 26: two groups of 13; 13: a single one.
@pytest.mark.parametrize("shape", [(2, 6, 5, 3), (2, 26, 4, 3), (2, 13, 2, 3), (7, 3), (2, 5, 3)])
def test_batch_norm_equals_the_plain_one_in_value_and_gradient(shape):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, scale, bias, g = (jnp.asarray(rng.normal(size=s)) for s in (shape, 3, 3, shape))

        @jax.jit
        def both(x, scale, bias):
            results = []
            for form in (lambda *a: batch_norm(*a, EPS), plain):
                outputs, pull = jax.vjp(form, x, scale, bias)
                zero = jnp.zeros_like(outputs[1])
                results.append([*outputs, *pull((g, zero, zero))])
            return results

        # A hundred times float64's rounding of sums of about 200 values.
        for mine, other in zip(*both(x, scale, bias), strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 12, 5, 3), (2, 11, 5, 3), (9, 3), (2, 1, 3, 8, 2, 4)])
def test_the_two_forms_of_the_sums_over_places_agree(shape):
    x = np.random.default_rng(1).normal(size=shape)
    with jax.enable_x64(True):
        sums = module._sums_cpu(jnp.asarray(x))
    np.testing.assert_allclose(sums, x.sum(tuple(range(x.ndim - 1))), atol=1e-12)


def test_batch_norm_in_bfloat16_rounds_once():
    x = jnp.asarray(np.random.default_rng(2).normal(3, 1, (2, 8, 8, 3)), jnp.bfloat16)
    y, mean, var = batch_norm(x, jnp.ones(3), jnp.zeros(3), EPS)
    exact = plain(x.astype(jnp.float32), jnp.ones(3), jnp.zeros(3))
    assert (y.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    # Half a bfloat16 step (2^-9) of each value: one rounding, at the end.
    np.testing.assert_allclose(np.asarray(y, np.float32), exact[0], rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(mean, exact[1], rtol=1e-5)
    np.testing.assert_allclose(var, exact[2], rtol=1e-5)
