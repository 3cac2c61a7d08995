"""Losses: what counts and what it is divided by."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax.config import Config
from mrm_jax.options import numbers
from mrm_jax.types import SegOutput, View
from mrm_jax.uda.objectives import (
    Call,
    cross_entropy,
    feature_distance,
    feature_regression,
    majority_label,
    pixel_regression,
    weighted_cross_entropy,
)

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
    scalars = dict.fromkeys(numbers(Config()), jnp.float32(0.1))
    view = View(jnp.zeros((2, 16, 16, 3)), jnp.asarray(label), jnp.asarray(weight))
    loss, metrics = cross_entropy(Call(output, view, scalars), jax.random.key(0))
    whole = weighted_cross_entropy(fused, label, weight)
    crop = weighted_cross_entropy(detail, label[:, 8:16, 4:12], weight[:, 8:16, 4:12])
    np.testing.assert_allclose(metrics["ce_fused"], whole, rtol=1e-6)
    np.testing.assert_allclose(metrics["ce_detail"], crop, rtol=1e-6)
    np.testing.assert_allclose(loss, 0.9 * whole + 0.1 * crop, rtol=1e-6)


def test_a_cell_has_the_label_that_covers_three_quarters_of_it():
    rows = {1: [1] * 16, 3: [3] * 12 + [1] * 4, 255: [2] * 11 + [0] * 5}
    label = np.stack([np.reshape(pixels, (4, 4)) for pixels in rows.values()])
    found = majority_label(label, (1, 1), num_classes=4, min_share=0.75)
    np.testing.assert_array_equal(found[:, 0, 0], list(rows))
    ignored = np.full((1, 4, 4), 255)
    ignored[0, 0] = 1  # a quarter
    found = majority_label(ignored, (1, 1), num_classes=4, min_share=0.75)
    assert int(found[0, 0, 0]) == 255


def test_the_feature_distance_of_no_cell_and_of_equal_features_is_zero_with_zero_gradient():
    rng = np.random.default_rng(1)
    features, anchor = rng.normal(size=(2, 2, 1, 1, 5)).astype(np.float32)
    scalars = dict.fromkeys(numbers(Config()), jnp.float32(0.5))

    def loss(features, label, anchor):
        view = View(jnp.zeros((2, 4, 4, 3)), label, jnp.ones((2, 4, 4)), anchor)
        call = Call(SegOutput({}, (features,)), view, scalars)
        options = {"classes": (1,), "num_classes": 4, "min_share": 0.75}
        return feature_distance(call, jax.random.key(0), **options)[0]

    label = jnp.zeros((2, 4, 4), jnp.int32)
    expected = 0.5 * np.linalg.norm(features - anchor, axis=-1).mean()
    np.testing.assert_allclose(loss(features, label + 1, anchor), expected, rtol=1e-6)
    for given, other in ((label, anchor), (label + 1, features), (label + 255, anchor)):
        value, gradient = jax.value_and_grad(loss)(features, given, other)
        assert float(value) == 0
        np.testing.assert_array_equal(gradient, np.zeros_like(features))


def _call(**fields):
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(2, 8, 8, 3)), jnp.float32)
    scalars = dict.fromkeys(numbers(Config()), jnp.float32(0.5))
    view = View(image, jnp.zeros((2, 8, 8), jnp.int32), jnp.ones((2, 8, 8)))
    call = Call(SegOutput({}, ()), view, scalars, **fields)
    return call, lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("of", ["student", "teacher"])
def test_feature_targets_are_constants_and_only_hidden_cells_of_rebuilt_stages_count(of):
    mask = jnp.array([[[True, False]], [[False, False]]])
    call, normal = _call(stages=(1,), mask=mask)
    given, rebuilt = (normal(2, 4, 4, 3), normal(2, 2, 2, 5)), (normal(2, 4, 4, 3),) * 2
    rebuilt = (rebuilt[0], normal(2, 2, 2, 5))

    def loss(given, rebuilt):
        whole = {"output": SegOutput({}, given)} if of == "student" else {}
        view = call.view if of == "student" else replace(call.view, taught=given)
        asked = replace(call, maps=rebuilt, view=view, **whole)
        return feature_regression(asked, jax.random.key(0), of=of)[0]

    value, (target, maps) = jax.value_and_grad(loss, (0, 1))(given, rebuilt)
    by_hand = np.square(np.asarray(rebuilt[1] - given[1]))[0, :, 0].mean()
    np.testing.assert_allclose(value, by_hand, rtol=1e-6)
    assert not any(np.any(np.asarray(leaf)) for leaf in (*target, maps[0]))
    cells = np.asarray(maps[1]).any(-1)
    np.testing.assert_array_equal(cells[0], [[True, False]] * 2)
    assert not cells[1].any()


def test_pixels_are_compared_where_they_are_hidden_at_the_size_that_the_head_reads():
    mask = jnp.array([[[True, False]], [[False, False]]])
    call, normal = _call(mask=mask, heads={"pixels": lambda x: x})
    found = normal(2, 4, 4, 3)  # half the picture's size, as under HRDA
    loss, _ = pixel_regression(replace(call, maps=(found,)), jax.random.key(0))
    shown = np.asarray(call.view.image).reshape(2, 4, 2, 4, 2, 3).mean((2, 4))
    by_hand = np.abs(np.asarray(found) - shown)[0, :, :2].mean()
    np.testing.assert_allclose(loss, by_hand, rtol=1e-5)
