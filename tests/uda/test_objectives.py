"""Cross entropy: what counts and what it is divided by."""

import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.types import Scalars, SegOutput, View
from mrm_jax.uda.objectives import Call, cross_entropy, weighted_cross_entropy

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 4, 6, 5)).astype(np.float32)
LABEL = RNG.integers(0, 5, (2, 4, 6)).astype(np.int32)


def _by_hand(logits, label, weight):
    total = 0.0
    for index in np.ndindex(label.shape):
        if label[index] != 255:
            scores = logits[index].astype(np.float64)
            total += weight[index] * (np.log(np.exp(scores).sum()) - scores[label[index]])
    return total / label.size


def test_it_is_the_weighted_mean_over_all_pixels():
    weight = RNG.uniform(size=LABEL.shape).astype(np.float32)
    label = np.where(RNG.uniform(size=LABEL.shape) < 0.3, 255, LABEL)
    got = weighted_cross_entropy(LOGITS, label, weight)
    np.testing.assert_allclose(got, _by_hand(LOGITS, label, weight), rtol=1e-6)


def test_an_ignored_half_halves_the_loss():
    twice = np.concatenate([LOGITS, LOGITS]), np.concatenate([LABEL, np.full_like(LABEL, 255)])
    got, whole = weighted_cross_entropy(*twice), weighted_cross_entropy(LOGITS, LABEL)
    np.testing.assert_allclose(got, whole / 2, rtol=1e-6)


def test_all_ignored_is_zero_with_zero_gradient():
    value, gradient = jax.value_and_grad(weighted_cross_entropy)(
        jnp.asarray(LOGITS), np.full_like(LABEL, 255)
    )
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(LOGITS))


def test_half_precision_logits_are_summed_in_float32():
    got = weighted_cross_entropy(jnp.asarray(LOGITS, jnp.bfloat16), LABEL)
    assert got.dtype == jnp.float32
    # The same numbers, rounded to bfloat16 before and not during.
    rounded = np.asarray(jnp.asarray(LOGITS, jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(got, _by_hand(rounded, LABEL, np.ones(LABEL.shape)), rtol=1e-6)


def test_under_hrda_fused_and_detail_losses_are_mixed_nine_to_one():
    """The detail's loss is a mean over its own crop of labels and weights."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, (2, 16, 16)).astype(np.int32)
    weight = rng.random((2, 16, 16), np.float32)
    fused = rng.normal(size=(2, 4, 4, 4)).astype(np.float32)
    detail = rng.normal(size=(2, 2, 2, 4)).astype(np.float32)
    logits = {"main": jnp.asarray(fused), "detail": jnp.asarray(detail)}
    output = SegOutput(logits, (), jnp.array([8, 4]), (8, 8))
    scalars = Scalars(**dict.fromkeys(Scalars.__annotations__, jnp.float32(0.1)))
    view = View(jnp.zeros((2, 16, 16, 3)), jnp.asarray(label), jnp.asarray(weight))
    loss, metrics = cross_entropy(Call(output, view, scalars), jax.random.key(0))
    whole = weighted_cross_entropy(fused, label, weight)
    crop = weighted_cross_entropy(detail, label[:, 8:16, 4:12], weight[:, 8:16, 4:12])
    np.testing.assert_allclose(metrics["ce_fused"], whole, rtol=1e-6)
    np.testing.assert_allclose(metrics["ce_detail"], crop, rtol=1e-6)
    np.testing.assert_allclose(loss, 0.9 * whole + 0.1 * crop, rtol=1e-6)
