"""Pseudo-labels and weights from logits whose softmax is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax.uda import pseudo_label


def _logits(confidence):
    """Two-class logits [B, H, W, 2] whose class 1 has the probabilities `confidence`."""
    p = np.asarray(confidence, np.float32)
    return jnp.stack([jnp.zeros(p.shape), jnp.log(p / (1 - p))], -1)


P = [[[0.99, 0.99], [0.99, 0.6]], [[0.2, 0.01], [0.7, 0.7]]]


def test_the_weight_is_one_share_for_the_whole_batch():
    got = pseudo_label.make(_logits(P), np.ones((2, 2, 2), np.uint8), 0.968, weight_over="batch")
    np.testing.assert_array_equal(got.label, np.array(P) > 0.5)
    np.testing.assert_array_equal(got.weight, np.full((2, 2, 2), 4 / 8))
    assert got.confident_share == 0.5


def test_over_images_each_has_its_own_share():
    got = pseudo_label.make(_logits(P), np.ones((2, 2, 2), np.uint8), 0.968, weight_over="image")
    np.testing.assert_array_equal(got.weight[:, 0, 0], [3 / 4, 1 / 4])
    assert got.confident_share == 0.5


def test_invalid_pixels_weigh_nothing_but_count_in_the_share():
    valid = np.ones((2, 2, 2), np.uint8)
    valid[0, 0] = 0
    got = pseudo_label.make(_logits(P), valid, 0.968, weight_over="batch")
    np.testing.assert_array_equal(got.weight, valid * 0.5)


@pytest.mark.parametrize(("threshold", "share"), [(0.0, 1.0), (1.5, 0.0)])
def test_a_threshold_out_of_reach_counts_all_or_nothing(threshold, share):
    got = pseudo_label.make(
        _logits(P), np.ones((2, 2, 2), np.uint8), threshold, weight_over="batch"
    )
    np.testing.assert_array_equal(got.weight, np.full((2, 2, 2), share))


def test_class_shares_sum_to_one_over_all_pixels():
    got = pseudo_label.make(_logits(P), np.ones((2, 2, 2), np.uint8), 0.968, weight_over="batch")
    shares = pseudo_label.metrics(got, 3)["teacher/class_share"]
    np.testing.assert_allclose(shares, [2 / 8, 6 / 8, 0], rtol=1e-6)


def test_of_a_picture_and_its_mirror_image_probabilities_are_averaged():
    """By numpy, a pixel at a time; the mean of logits would be another label and confidence."""
    rng = np.random.default_rng(1)
    one, other = rng.normal(scale=3, size=(2, 2, 3, 5, 4)).astype(np.float32)
    valid = rng.integers(0, 2, (2, 3, 5)).astype(np.uint8)

    def softmax(x):
        e = np.exp(x.astype(float) - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    mean = np.zeros(one.shape)
    for column in range(5):
        mean[:, :, column] = (softmax(one[:, :, column]) + softmax(other[:, :, 4 - column])) / 2
    got = pseudo_label.make(one, valid, 0.7, weight_over="batch", mirrored=other)
    np.testing.assert_array_equal(got.label, mean.argmax(-1))
    share = (mean.max(-1) >= 0.7).mean()
    assert 0.1 < share < 0.9
    np.testing.assert_allclose(got.weight, share * valid, rtol=1e-6)
    assert (mean.argmax(-1) != ((one + other[:, :, ::-1]) / 2).argmax(-1)).any()
    alone = pseudo_label.make(one, valid, 0.7, weight_over="batch")
    assert (got.label != alone.label).any()
    # A mirror image that is looked at with the same result says nothing new.
    same = pseudo_label.make(one, valid, 0.7, weight_over="batch", mirrored=one[:, :, ::-1])
    np.testing.assert_array_equal(same.label, alone.label)
    np.testing.assert_allclose(same.weight, alone.weight, rtol=1e-6)
