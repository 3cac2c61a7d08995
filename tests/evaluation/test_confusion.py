"""Confusion matrices, against counting pixel by pixel."""

import jax
import numpy as np
import pytest

from mrm_jax.evaluation.confusion import confusion_matrix, scores

CLASSES = 5


def pixels(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES + 1, shape).astype(np.uint8)
    label[label == CLASSES] = 255
    return rng.integers(0, CLASSES, shape).astype(np.uint8), label


def by_hand(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    table = np.zeros((CLASSES, CLASSES), np.int64)
    for guess, truth in zip(prediction.ravel(), label.ravel(), strict=True):
        if truth != 255:
            table[truth, guess] += 1
    return table


def test_counts_are_those_of_a_loop_over_pixels():
    prediction, label = pixels(0, (3, 7, 11))
    assert np.array_equal(confusion_matrix(prediction, label, CLASSES), by_hand(prediction, label))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_padding_and_another_batch_size_change_no_count(batch):
    prediction, label = pixels(1, (5, 6, 4))
    total = np.zeros((CLASSES, CLASSES), np.int64)
    for first in range(0, 5, batch):
        p, y = prediction[first : first + batch], label[first : first + batch]
        rows, columns = batch - len(p), 3
        p = np.pad(p, ((0, rows), (0, 2), (0, columns)), constant_values=4)
        y = np.pad(y, ((0, rows), (0, 2), (0, columns)), constant_values=255)
        total += np.asarray(confusion_matrix(p, y, CLASSES))
    assert np.array_equal(total, by_hand(prediction, label))


def test_a_batch_spread_over_devices_gives_the_same_counts():
    if jax.device_count() < 2:
        pytest.skip("needs two devices; conftest asks for them where the platform is a CPU")
    prediction, label = pixels(2, (4, 6, 4))
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    spread = [jax.device_put(x, rows) for x in (prediction, label)]
    counted = jax.jit(confusion_matrix, static_argnums=2)(*spread, CLASSES)
    assert np.array_equal(counted, by_hand(prediction, label))


def test_scores_of_a_case_worked_out_by_hand():
    # Class 2 never occurs; class 3 is only predicted, which is a miss, not an absence.
    confusion = np.array([[6, 2, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    found = scores(confusion)
    assert found.iou[:2].tolist() == pytest.approx([6 / 8, 1 / 4])
    assert np.isnan(found.iou[2])
    assert found.iou[3] == 0
    assert found.mean_iou == pytest.approx((6 / 8 + 1 / 4 + 0) / 3)
    assert found.pixel_accuracy == pytest.approx(7 / 10)


def test_classes_not_counted_leave_the_mean_but_not_the_unions():
    confusion = np.array([[6, 2], [4, 8]])
    found = scores(confusion, counted=(0,))
    assert found.mean_iou == pytest.approx(6 / 12)
    assert found.pixel_accuracy == pytest.approx(14 / 20)


def test_an_empty_confusion_scores_nan_and_warns_of_nothing():
    found = scores(np.zeros((3, 3), np.int64))
    assert np.isnan(found.mean_iou)
    assert np.isnan(found.pixel_accuracy)
