"""Probabilities of rare class sampling against the reference."""

import numpy as np
import pytest
from golden import cases, load

from mrm_jax.config import Classes, Config, Data, Domain, RareClass
from mrm_jax.data.class_statistics import Statistics
from mrm_jax.data.rare_class import make_sampler


def _statistics(case, classes):
    """Counts per label as the sidecar lists them, in the reference's file format."""
    counts = np.zeros((len(case.meta["stats_json"]), classes), np.int64)
    for row, entry in zip(counts, case.meta["stats_json"], strict=True):
        for key, value in entry.items():
            if key != "file":
                row[int(key)] = value
    sizes = np.stack([np.ones(len(counts), np.int64), counts.sum(1)], 1)
    return Statistics(counts, sizes)


@pytest.mark.parametrize("name", cases("rcs_probs"))
def test_class_probabilities(name):
    case = load(name)
    given, out = case.groups["in"], case.groups["out"]
    classes = len(given["pixel_counts"])
    statistics = _statistics(case, classes)
    np.testing.assert_array_equal(statistics.counts.sum(0), given["pixel_counts"])
    temperatures = [key.removeprefix("probs_") for key in out if key.startswith("probs_")]
    assert temperatures
    for text in temperatures:
        # Thresholds of no pixel at all: every class that occurs is in the draw.
        rare = RareClass(enabled=True, temperature=float(text), min_pixels=0, on_missing="warn")
        names = tuple(map(str, range(classes)))
        data = Data(classes=Classes(names=names), source=Domain(), rare_class=rare)
        sampler = make_sampler(Config(data=data), statistics, warn=lambda line: None)
        np.testing.assert_array_equal(sampler.classes, out[f"classes_{text}"])
        assert sampler.probabilities.dtype == out[f"probs_{text}"].dtype
        # A rounding of (1 - f) / T, of 6e-8 / T at most, moves a probability by that share of
        # itself; exp and the sum add a few of 6e-8.
        limit = 2**-23 / float(text) + 2e-6
        np.testing.assert_allclose(sampler.probabilities, out[f"probs_{text}"], rtol=limit)
