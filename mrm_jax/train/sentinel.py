"""What watches a run: classes that collapse, and numbers that are no longer finite.

UDA runs lose single classes without any sign in the loss: here every class is compared with its own
past.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.paths import replaced

SHARE_FELL_TO = 1 / 20
"""A class has collapsed when its smoothed pseudo-label share is below this part of its earlier
maximum.
"""
SMOOTHING_STEPS = 100
"""Time constant of the smoothing: single batches often lack a class."""
RARE = 1e-4
"""Smoothed share that a class must have reached to be watched: below it one batch decides."""
AWAKE = 0.05
"""Confident share of the teacher from which on shares are watched: what a network says before it
has learnt anything is chance, and losing it is no collapse.
"""
IOU_WAS, IOU_FELL_TO = 0.10, 0.01
"""A class has collapsed when its IoU falls from above the first to below the second."""


class Sentinel:
    """Watches the pseudo-label share and the IoU of every class; each is reported once until it
    recovers.
    """

    def __init__(self, classes: Sequence[str]):
        self._classes = tuple(classes)
        self._steps = 0
        self._share = np.zeros(len(classes))
        self._top_share = np.zeros(len(classes))
        self._top_iou: dict[str, float] = {}
        self._down: set[str] = set()

    def see_shares(
        self, shares: np.ndarray, step: int, *, confident: float = 1.0
    ) -> dict[str, str]:
        """Takes `teacher/class_share` f[K] and `teacher/confident_share` of one step; returns
        alarms as {class: sentence}.
        """
        if not self._steps and confident < AWAKE:
            return {}
        self._steps += 1
        # An average over all steps at first, so that the start at zero leaves no trace.
        rate = max(1 / self._steps, 1 / SMOOTHING_STEPS)
        self._share += rate * (np.nan_to_num(np.asarray(shares, np.float64)) - self._share)
        alarms = {}
        if self._steps < SMOOTHING_STEPS:
            return alarms
        for name, share, top in zip(self._classes, self._share, self._top_share, strict=True):
            fell = bool(top >= RARE and share < top * SHARE_FELL_TO)
            if self._changed(f"share/{name}", fell, recovered=bool(share > top / 2)):
                alarms[name] = (
                    f"class {name}: its share of the pseudo-labels fell to {share:.3%} "
                    f"by step {step}; it was {top:.2%}."
                )
        self._top_share = np.maximum(self._top_share, self._share)
        return alarms

    def see_scores(
        self, network: str, iou: Mapping[str, float | None], step: int
    ) -> dict[str, str]:
        """Takes the IoU of every class at an evaluation; returns alarms as {class: sentence}."""
        alarms = {}
        for name, value in iou.items():
            if value is None or np.isnan(value):
                continue
            key = f"{network}/{name}"
            top = self._top_iou.get(key, 0.0)
            fell = top > IOU_WAS and value < IOU_FELL_TO
            if self._changed(f"iou/{key}", fell, recovered=value > top / 2):
                alarms[name] = (
                    f"class {name}: the {network}'s IoU fell to {value:.1%} at step {step}; "
                    f"it was {top:.1%}."
                )
            self._top_iou[key] = max(top, value)
        return alarms

    def _changed(self, key: str, fell: bool, *, recovered: bool) -> bool:
        new = fell and key not in self._down
        if new:
            self._down.add(key)
        elif recovered:
            self._down.discard(key)
        return new

    def memory(self) -> dict[str, Any]:
        """What it has seen, as JSON: a resumed run alarms where an uninterrupted one would."""
        return {
            "steps": self._steps,
            "share": self._share.tolist(),
            "top_share": self._top_share.tolist(),
            "top_iou": self._top_iou,
            "down": sorted(self._down),
        }

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Takes back what `memory` returned; {} says nothing."""
        if not memory:
            return
        self._steps = memory["steps"]
        self._share = np.asarray(memory["share"])
        self._top_share = np.asarray(memory["top_share"])
        self._top_iou = dict(memory["top_iou"])
        self._down = set(memory["down"])


def not_finite(values: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the metrics of a step that hold NaN or infinity."""
    return [name for name, value in values.items() if not np.isfinite(value).all()]


def save_fault(folder: Path, step: int, batch: Any, draws: Any, metrics: Any) -> Path:
    """Writes all that the faulty step computed from: `step_<n>.npz`, every array under its dotted
    name.

    `batch.*` is what the loader gave (uint8 pictures), `draws.*` every random choice, `metrics.*`
    what came out: `step_with(state, frozen, normalised batch, draws)` on the last good checkpoint
    repeats the step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step}.npz"
    tree = {"batch": batch, "draws": draws, "metrics": metrics}
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(jax.tree.map(_plain, tree)))[0]
    arrays = {
        jax.tree_util.keystr(place, simple=True, separator="."): np.asarray(leaf)
        for place, leaf in leaves
    }
    with replaced(path) as new, new.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path


def _plain(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf
