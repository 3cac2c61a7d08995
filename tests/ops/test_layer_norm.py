"""LayerNorm with its written-out gradient against plain automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.ops.layer_norm import layer_norm


def plain(x, scale, bias, eps):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    shape = (1,) * (x.ndim - 1) + (-1,)
    return (x - mean) / jnp.sqrt(var + eps) * scale.reshape(shape) + bias.reshape(shape)


def test_values_and_gradients_equal_the_plain_formula():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        inputs = [jnp.asarray(rng.normal(size=s)) for s in [(2, 3, 4, 7), (7,), (7,)]]
        cotangent = jnp.asarray(rng.normal(size=(2, 3, 4, 7)))
        ours, pull = jax.vjp(lambda *a: layer_norm(*a, 1e-2), *inputs)
        theirs, pull_theirs = jax.vjp(lambda *a: plain(*a, 1e-2), *inputs)
        np.testing.assert_allclose(ours, theirs, atol=1e-13)
        for mine, other in zip(pull(cotangent), pull_theirs(cotangent), strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-12)


def test_a_large_offset_does_not_swamp_a_small_variance():
    x = np.float32(1000) + np.asarray([[0.0, 0.25, 0.5, 0.75]], np.float32)
    one, zero = jnp.ones(4), jnp.zeros(4)
    expected = (x[0].astype(np.float64) - 1000.375) / np.sqrt(0.078125 + 1e-6)
    # E[x^2] - E[x]^2 would be wrong by 0.06 at 1e6: the whole variance.
    np.testing.assert_allclose(layer_norm(jnp.asarray(x), one, zero, 1e-6)[0], expected, atol=1e-5)


def test_bfloat16_goes_in_and_out_with_float32_between():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 64)), jnp.bfloat16)
    one, zero = jnp.ones(64), jnp.zeros(64)
    out = layer_norm(x, one, zero, 1e-6)
    exact = layer_norm(x.astype(jnp.float32), one, zero, 1e-6).astype(jnp.bfloat16)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), np.asarray(exact, np.float32))
