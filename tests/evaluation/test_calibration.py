"""Counts of confident and right pixels, against the definition written out."""

import numpy as np
import pytest

from mrm_jax.evaluation.calibration import (
    BINS,
    LEVELS,
    confidence_counts,
    expected_calibration_error,
)
from mrm_jax.label_ids import IGNORE


def drawn(seed: int = 0):
    """Confidences with their ends, classes that are right as often as its square, labels."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.2, 1.0, (3, 40, 50)).astype(np.float32)
    confidence[0, 0, :2] = 0.0, 1.0
    label = rng.integers(0, 5, confidence.shape).astype(np.uint8)
    wrong = rng.uniform(size=label.shape) > confidence**2
    prediction = np.where(wrong, (label + 1) % 5, label).astype(np.uint8)
    label[1, :10] = IGNORE
    return confidence, prediction, label


def test_the_error_is_that_of_the_definition():
    confidence, prediction, label = drawn()
    counts = np.asarray(confidence_counts(confidence, prediction, label))
    seen = label != IGNORE
    sure, right = confidence[seen].astype(np.float64), (prediction == label)[seen]
    expected = 0.0
    for low in np.arange(BINS) / BINS:
        inside = (sure >= low) & ((sure < low + 1 / BINS) | (low + 1 / BINS >= 1))
        if inside.any():
            expected += inside.mean() * abs(sure[inside].mean() - right[inside].mean())
    assert counts.sum() == seen.sum()
    assert expected > 0.1
    # Half a level is the most that a confidence can be off.
    assert expected_calibration_error(counts) == pytest.approx(expected, abs=0.5 / LEVELS)


def test_sums_over_parts_are_exact_and_what_is_ignored_counts_nowhere():
    confidence, prediction, label = drawn(1)
    whole = np.asarray(confidence_counts(confidence, prediction, label))
    parts = [confidence_counts(*(a[i] for a in (confidence, prediction, label))) for i in range(3)]
    assert (whole == sum(np.asarray(part) for part in parts)).all()
    ignored = confidence_counts(confidence, prediction, np.full_like(label, IGNORE))
    assert np.isnan(expected_calibration_error(np.asarray(ignored)))
