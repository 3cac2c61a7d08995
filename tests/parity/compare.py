"""How far our output may be from a stored one, in one place."""

from __future__ import annotations

from typing import Any

import numpy as np
from golden import Case

# Two implementations in float32 sum in different orders; the sidecar says what that alone costs
# the reference against its own float64 run. 4x leaves room for ours, 2e-5 is the floor for outputs
# whose noise is tiny.
FLOOR = 2e-5
NOISE_FACTOR = 4.0
# Encoders: their sidecars know the noise of every output.
ENCODER_FLOOR = 1e-5
ENCODER_FACTOR = 10.0


def tolerance(case: Case, key: str = "") -> float:
    """Largest difference allowed of the output `key`, as a share of its largest absolute value."""
    own = case.meta.get("f32_vs_f64", {})
    if case.name.startswith("encoder_") and isinstance(own, dict) and key in own:
        return max(ENCODER_FLOOR, ENCODER_FACTOR * float(own[key]))
    noise = [float(v) for k, v in case.meta.items() if k.startswith("f32_vs_f64_maxrel")]
    return max([FLOOR, *(NOISE_FACTOR * value for value in noise)])


def difference(ours: Any, stored: np.ndarray) -> float:
    """Largest absolute difference over the stored output's largest absolute value; shapes must
    agree."""
    ours = np.asarray(ours)
    if ours.shape != stored.shape:
        raise AssertionError(f"shape {ours.shape} where the reference has {stored.shape}")
    # The reference stores NaN where it has no value; there we must have none either.
    known = ~(np.isnan(stored) & np.isnan(ours))
    ours, stored = ours[known].astype(np.float64), stored[known].astype(np.float64)
    scale, error = float(np.abs(stored).max()), float(np.abs(ours - stored).max())
    return error / scale if scale > 0 else error


def check(case: Case, ours: dict[str, Any], *, limit: float | None = None) -> None:
    """Compares every entry of `ours` with the stored output of that name; all misses in one
    AssertionError."""
    found = {key: difference(value, case.groups["out"][key]) for key, value in ours.items()}
    limits = {key: tolerance(case, key) if limit is None else limit for key in found}
    misses = [
        f"{key}: {value:.3g} (at most {limits[key]:.3g})"
        for key, value in found.items()
        if not value <= limits[key]
    ]
    if misses:
        raise AssertionError(f"{case.name} differs: " + "; ".join(misses))
