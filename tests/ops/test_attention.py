"""Attention equals flax's, and loses in bfloat16 no more than its output's rounding must."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax.ops.attention import attend


def test_attention_equals_flax_dot_product_attention():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, n, 12)), jnp.float32) for n in (7, 4, 4))
    heads = [a.reshape(2, -1, 3, 4) for a in (q, k, v)]
    expected = nn.dot_product_attention(*heads).reshape(2, 7, 12)
    np.testing.assert_allclose(attend(q, k, v, 3), expected, atol=1e-6)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_attention_in_bfloat16_rounds_shares_and_output_and_nothing_else(scale):
    rng = np.random.default_rng(0)
    sizes = {"query": (64, scale), "key": (256, scale), "value": (256, 1)}
    narrow = [jnp.asarray(s * rng.normal(size=(2, n, 64)), jnp.bfloat16) for n, s in sizes.values()]
    ours = attend(*narrow, 2)
    assert ours.dtype == jnp.bfloat16
    with jax.enable_x64(True):
        exact = attend(*(jnp.asarray(np.asarray(x, np.float64)) for x in narrow), 2)
        assert exact.dtype == jnp.float64
    off = np.asarray(ours, np.float64) - np.asarray(exact)
    # Two roundings, each by half a step of eight bits: 2^-9 of the number at most.
    assert np.linalg.norm(off) / np.linalg.norm(exact) < 2 * 2**-9


def test_the_gradient_of_the_scores_is_that_of_plain_products():
    rng = np.random.default_rng(1)
    x = [jnp.asarray(rng.normal(size=(2, n, 12)), jnp.float32) for n in (7, 4, 4)]

    def plain(q, k, v):
        heads = [a.reshape(2, -1, 3, 4) for a in (q, k, v)]
        return nn.dot_product_attention(*heads).reshape(2, 7, 12)

    def loss(function):
        return lambda *x: jnp.square(function(*x)).sum()

    ours = jax.grad(loss(lambda *x: attend(*x, 3)), (0, 1, 2))(*x)
    for found, wanted in zip(ours, jax.grad(loss(plain), (0, 1, 2))(*x), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    narrow = jax.grad(lambda *x: attend(*x, 3).astype(jnp.float32).sum(), (0, 1, 2))
    assert {g.dtype for g in narrow(*(a.astype(jnp.bfloat16) for a in x))} == {
        jnp.dtype(jnp.bfloat16)
    }
