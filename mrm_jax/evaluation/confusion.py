"""Confusion matrices, counted on the device and added up on the host, and the scores that follow
from them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.label_ids import IGNORE
from mrm_jax.types import Array


def confusion_matrix(prediction: Array, label: Array, classes: int) -> jax.Array:
    """Confusion i32[K,K] of classes u8/i32[...] predicted for train ids of the same shape: rows
    truth, columns prediction.

    Pixels whose label is 255 count nowhere, so padding is exact: give it that label. Integer sums,
    so the result does not depend on batches or on how they lie on devices. One call may hold up to
    2**31 - 1 pixels; add calls up in int64. A label from K to 254 counts nowhere either: check
    labels where they are read.
    """
    label, prediction = jnp.asarray(label, jnp.int32), jnp.asarray(prediction, jnp.int32)
    counted = (label != IGNORE) & (label < classes)
    cell = jnp.where(counted, label * classes + prediction, classes * classes)
    cells = jnp.zeros(classes * classes + 1, jnp.int32).at[cell.ravel()].add(1)
    return cells[:-1].reshape(classes, classes)


class Scores(NamedTuple):
    """Shares of 1; `iou` f64[K] is NaN for a class that neither truth nor prediction has."""

    iou: np.ndarray
    mean_iou: float
    pixel_accuracy: float


def scores(confusion: np.ndarray, counted: tuple[int, ...] | None = None) -> Scores:
    """Scores of a confusion int[K,K] (rows truth): IoU of every class, its mean over the classes
    `counted`, and accuracy.

    The mean leaves NaN out, and is NaN if nothing is left; `counted` None: all classes. Predictions
    of a class that is not counted still miss where another one is the truth. Peer: mmseg
    `eval_metrics`, cityscapesScripts.
    """
    confusion = np.asarray(confusion, np.int64)
    hit = np.diagonal(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hit
    total = confusion.sum()
    iou = np.full(len(hit), np.nan)
    np.divide(hit, union, out=iou, where=union > 0)
    chosen = iou if counted is None else iou[list(counted)]
    present = chosen[~np.isnan(chosen)]
    return Scores(
        iou=iou,
        mean_iou=float(present.mean()) if present.size else float("nan"),
        pixel_accuracy=float(hit.sum() / total) if total else float("nan"),
    )
