"""One whole training step, and several in a row, against the reference: same weights, pictures and
random choices, in float64."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
import steps
from compare import difference
from golden import FAMILIES, Case, cases, family, load

# Stored quantity -> largest difference, as a share of each number. Reached by DeepLabV2 on ResNet:
# losses 3e-14, gradients 4e-13, movements 3e-10 (Adam divides by the gradient's size, so the small
# ones lose digits). The rest is room for deeper networks and for several steps in a row.
LIMITS = {
    "log": 1e-10,
    "pseudo_weight": 1e-12,
    "grad_l2": 1e-9,
    "p_before": 1e-10,
    "p_after": 1e-8,
    "delta": 1e-7,
    "ema_norm": 1e-12,
}
# Running averages were stored from the reference's float32 run only. Reached: 1e-6 of the largest.
FLOAT32 = 2e-5


def _names() -> list[str]:
    return [name for name in cases("") if FAMILIES.get(family(name) or "") == "test_step.py"]


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@functools.cache
def _opened(name: str) -> tuple[Case, steps.Compiled]:
    case = load(name)
    return case, steps.compiled(case)


def _relative(ours: Any, stored: np.ndarray) -> float:
    """Largest difference as a share of the stored number; a place without one must be NaN in ours
    too. Numbers below 1e-12 of the largest are rounding and count as share of that."""
    ours, stored = np.asarray(ours, np.float64), np.asarray(stored, np.float64)
    assert ours.shape == stored.shape, f"shape {ours.shape} where the reference has {stored.shape}"
    known = ~(np.isnan(stored) & np.isnan(ours))
    size, error = np.abs(stored[known]), np.abs(ours - stored)[known]
    if size.max() == 0:  # the distance of a network to itself
        return float(error.max())
    return float((error / np.maximum(size, 1e-12 * size.max())).max())


def _without_gradient(case: Case, i: int) -> np.ndarray:
    """Parameters whose true gradient is 0, so that the stored one is rounding and Adam's step too:
    biases that a BatchNorm takes off again, behind nothing but 1x1 convolutions (the embeddings of
    HRDA's attention head)."""
    norms = np.nan_to_num(case.groups["out64"][f"grad_l2_{i}"], nan=np.inf)
    found = norms < 1e-12 * norms[np.isfinite(norms)].max()
    names = np.array(case.meta["param_order"])[found]
    assert all(re.fullmatch(r".*embed_layers\.\d\.proj\.bias", name) for name in names), names
    return found


def _differences(case: Case, i: int, found: steps.Arrays) -> dict[str, float]:
    """Difference of every stored number of iteration i that our step has too, by name."""
    stored = case.groups["out64"]
    result = {}
    for key in stored.keys() & found.keys():
        ours, theirs = found[key], stored[key]
        if key.startswith("grad_l2_cumulative"):
            theirs = theirs[-1]  # after the last backward pass
        if key.startswith(("p_before", "p_after", "delta", f"grad_l2_{i}")):
            # The position table is a constant of ours, not a parameter.
            kept = ~np.isnan(ours) & ~_without_gradient(case, i)
            ours, theirs = ours[kept], theirs[kept]
        result[key] = _relative(ours, theirs)
    label = case.groups["out"][f"pseudo_label_{i}"]
    ours = np.asarray(found[f"pseudo_class_share_{i}"]) * label.size
    moved = np.abs(ours - np.bincount(label.ravel(), minlength=len(ours)))
    result[f"pseudo_label_{i}"] = float(moved.sum() / 2)
    return result


def _limit(case: Case, key: str) -> float:
    if key.startswith("pseudo_label"):
        # Pixels. The stored labels are those of the float32 run.
        return case.meta["f32_vs_f64"]["pseudo_label_disagree"] + 1e-6
    return next(limit for prefix, limit in LIMITS.items() if key.startswith(prefix))


@pytest.mark.parametrize("name", _names())
def test_step(name: str) -> None:
    case, ours = _opened(name)
    found: steps.Arrays = {}
    for i, found in enumerate(steps.iterations(case, ours)):
        different = _differences(case, i, found)
        stored = {k for k in case.groups["out64"] if re.search(rf"_{i}(/|$)", k)}
        left = {k for k in stored - different.keys() if not re.fullmatch(steps.NOT_OURS, k)}
        assert not left, "stored and not compared"
        wrong = {k: v for k, v in different.items() if not v <= _limit(case, k)}
        assert not wrong
    averages = {k: v for k, v in case.groups["out"].items() if k.startswith("bn_after/")}
    # The reference's own float32 run drifts from its float64 run, the more so in several steps.
    limit = max(FLOAT32, 10 * case.meta["f32_vs_f64"]["loss_maxrel"])
    wrong = {k: d for k, v in averages.items() if not (d := difference(found[k], v)) <= limit}
    assert averages
    assert not wrong


# Weights spread over the network: a few of the student's, one of the teacher's, some of the
# Rebuilder's. `p_before` and the like would notice any; these have to show in what the step does.
def _samples(case: Case) -> list[tuple[str, str]]:
    found = []
    # At iteration 0 the teacher is the student's copy, whatever was stored for it.
    taught = int(case.meta["start_iter"] > 0)
    for group, count in (("sd_student", 3), ("sd_rebuilder", 2), ("sd_teacher", taught)):
        stored = case.groups.get(group, {})
        weights = [k for k, v in stored.items() if k.endswith("weight") and v.ndim > 1]
        picked = np.linspace(0, len(weights) - 1, count if weights else 0).astype(int)
        found += [(group, weights[place]) for place in picked]
    return found


@pytest.mark.parametrize("name", _names())
def test_one_percent_on_a_weight_turns_the_comparison_red(name: str) -> None:
    case, ours = _opened(name)
    hidden = []
    for group, key in _samples(case):
        weights = case.groups[group]
        moved = {**case.groups, group: {**weights, key: weights[key] * np.float32(1.01)}}
        changed = Case(case.name, case.meta, moved)
        different = _differences(case, 0, next(iter(steps.iterations(changed, ours))))
        seen = ("log", "grad_l2_cumulative")
        if not any(v > _limit(case, k) for k, v in different.items() if k.startswith(seen)):
            hidden.append(f"{group}/{key}")
    assert not hidden
