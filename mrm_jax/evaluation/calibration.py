"""Whether a network is as often right as it is sure: counts of confident and right pixels, and the
expected calibration error that follows from them.

Source: Naeini et al. (AAAI 2015) and Guo et al. (ICML 2017), with their 15 bins of equal width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.label_ids import IGNORE
from mrm_jax.types import Array

BINS = 15
LEVELS = 100 * BINS
"""Steps in which a confidence is counted. Counts are integers, so that sums do not depend on
batches or devices; a bin's mean confidence is known to half a step, 0.00033."""


def confidence_counts(confidence: Array, prediction: Array, label: Array) -> jax.Array:
    """i32[LEVELS,2]: of pixels at every level of `confidence` f[...] in 0..1, how many were wrong
    and how many right, for classes u8/i32[...] predicted of the same shape as train ids `label`.

    Pixels whose label is 255 count nowhere. One call may hold up to 2**31 - 1 pixels.
    """
    label, prediction = jnp.asarray(label, jnp.int32), jnp.asarray(prediction, jnp.int32)
    level = jnp.clip((confidence * LEVELS).astype(jnp.int32), 0, LEVELS - 1)
    cell = jnp.where(label != IGNORE, 2 * level + (prediction == label), 2 * LEVELS)
    cells = jnp.zeros(2 * LEVELS + 1, jnp.int32).at[cell.ravel()].add(1)
    return cells[:-1].reshape(LEVELS, 2)


def expected_calibration_error(counts: np.ndarray) -> float:
    """Mean over pixels of |confidence - accuracy| of a pixel's bin, in 0..1, from counts
    int[LEVELS,2]; NaN without pixels."""
    by_bin = np.asarray(counts, np.float64).reshape(BINS, -1, 2)
    middle = (np.arange(LEVELS).reshape(BINS, -1) + 0.5) / LEVELS
    sure, right = (by_bin.sum(-1) * middle).sum(-1), by_bin[..., 1].sum(-1)
    total = by_bin.sum()
    return float(np.abs(sure - right).sum() / total) if total else float("nan")
