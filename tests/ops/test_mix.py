"""ClassMix against loops over images and pixels."""

import math

import numpy as np
import pytest

from mrm_jax.ops.mix import class_mask, paste

CLASSES = 6


def _labels(rng, count=3):
    label = rng.integers(0, CLASSES, (count, 8, 10)).astype(np.int32)
    label[0, :, :4] = 255
    label[1] = np.where(label[1] > 2, 1, label[1])  # image 1 lacks classes that the batch has
    label[label == 4] = 5  # nobody has class 4
    return label


def _brute_force(label, scores, classes_of):
    mask = np.zeros(label.shape, bool)
    for i in range(len(label)):
        present = np.unique(label if classes_of == "batch" else label[i])
        ranked = sorted(present, key=lambda value: -scores[i, value])
        chosen = set(ranked[: math.ceil(len(present) / 2)])
        mask[i] = [[value in chosen for value in row] for row in label[i]]
    return mask


@pytest.mark.parametrize("classes_of", ["batch", "image"])
@pytest.mark.parametrize("seed", range(5))
def test_each_image_pastes_the_higher_half_of_the_values_present(seed, classes_of):
    rng = np.random.default_rng(seed)
    label, scores = _labels(rng), rng.uniform(size=(3, 256)).astype(np.float32)
    got = class_mask(label, scores, num_classes=CLASSES, classes_of=classes_of)
    np.testing.assert_array_equal(got, _brute_force(label, scores, classes_of))


def test_half_is_rounded_up_and_taken_of_the_whole_batch():
    label = np.array([[[0, 1]], [[2, 2]]], np.int32)  # three values: two are chosen
    scores = np.zeros((2, 256), np.float32)
    scores[:, :3] = [[0.9, 0.8, 0.1], [0.9, 0.8, 0.1]]
    mask = class_mask(label, scores, num_classes=3, classes_of="batch")
    np.testing.assert_array_equal(mask, [[[True, True]], [[False, False]]])


def test_ignored_pixels_are_a_class_that_can_be_pasted():
    label = np.array([[[255, 0]]], np.int32)
    scores = np.zeros((1, 256), np.float32)
    scores[0, 255] = 1
    mask = class_mask(label, scores, num_classes=2, classes_of="batch")
    np.testing.assert_array_equal(mask, [[[True, False]]])


def test_equal_scores_still_choose_half():
    label = np.arange(4, dtype=np.int32).reshape(1, 2, 2)
    mask = class_mask(label, np.zeros((1, 256), np.float32), num_classes=4, classes_of="batch")
    assert int(mask.sum()) == 2


def test_paste_takes_the_source_under_the_mask_only():
    mask = np.array([[[True, False]]])
    image = paste(mask, np.ones((1, 1, 2, 3), np.float32), np.zeros((1, 1, 2, 3), np.float32))
    np.testing.assert_array_equal(image, [[[[1, 1, 1], [0, 0, 0]]]])
