"""DINOv2, VFM-UDA's head and network against the reference: every block, every layout."""

from __future__ import annotations

import re
from dataclasses import replace

import jax
import numpy as np
import pytest
import vit
from compare import difference
from golden import COMMITTED, Case, cases, family, folder, load

from mrm_jax.convert import describe, detect, export_torch, import_torch

RUNNERS = {
    "encoder_dinov2": vit.run_encoder,
    "head_vit_light": vit.run_head,
    "segmentor_dinov2_light": vit.run_segmentor,
}
NAMES = [name for prefix in RUNNERS for name in cases(prefix)]
# In float32 the reference differs from its own float64 run by the sidecar's figure; ten times that
# leaves room for sums in another order. In float64 only rounding is left.
NOISE_FACTOR, FLOOR, EXACT = 10.0, 1e-5, 1e-10


def _runner(case: Case) -> vit.Runner:
    prefix = family(case.name)
    assert prefix is not None
    return RUNNERS[prefix](case)


def _misses(case: Case, found: dict, group: str) -> list[str]:
    """Outputs that are farther from the stored ones than the tolerance of their precision."""
    noise, misses = case.meta["f32_vs_f64"], []
    for name, stored in case.groups[group].items():
        limit = EXACT if group == "out64" else max(FLOOR, NOISE_FACTOR * noise[name])
        away = difference(found[name], stored)
        misses += [] if away <= limit else [f"{name}: {away:.3g} > {limit:.3g}"]
    return misses


@pytest.mark.parametrize("name", NAMES)
def test_network(name: str) -> None:
    case = load(name)
    run, state = _runner(case), case.groups["sd"]
    found = run(state, np.float32)
    assert set(found) == set(case.groups["out"]), "an output is not compared"
    assert not _misses(case, found, "out")
    with jax.enable_x64(True):
        wide = {key: value.astype(np.float64) for key, value in state.items()}
        assert not _misses(case, _runner(case)(wide, np.float64), "out64")


# Keys add the same to every score of a query, and softmax ignores that; a mask token that hides
# nothing is not read.
WITHOUT_INFLUENCE = (".key.bias", ".k_proj.bias")
# Kernels without a bias before a LayerNorm, which takes a factor on all of it off again.
HALVES = ("upscale.0.weight", "upscale.3.weight", "upscale.5.weight")


def _moves(case: Case, run: vit.Runner, key: str, factor: float) -> bool:
    state = case.groups["sd"]
    value = state[key].copy()
    part = value[:, : value.shape[1] // 2] if key.endswith(HALVES) else value
    part *= np.float32(factor)
    changed = {**state, key: value}
    return bool(_misses(case, run(changed, np.float32), "out"))


def _smallest(case: Case) -> Case:
    """The case with the smallest of its pictures alone: every weight is in it."""
    given = case.groups["in"]
    sizes = {k[2:]: x.size for k, x in given.items() if re.fullmatch(r"x_\d+x\d+", k)}
    others = sorted(sizes, key=sizes.__getitem__)[1:]
    groups = {
        group: {k: v for k, v in values.items() if not any(f"_{size}" in k for size in others)}
        for group, values in case.groups.items()
    }
    return replace(case, groups=groups)


@pytest.mark.parametrize("name", [n for n in NAMES if "eps_sensitive" not in n])
def test_one_percent_on_any_one_weight_turns_the_comparison_red(name: str) -> None:
    case = _smallest(load(name))
    run, masked = _runner(case), any(key.startswith("mask") for key in case.groups["in"])
    tried = [
        key
        for key in case.groups["sd"]
        if not key.endswith(WITHOUT_INFLUENCE) and (masked or not key.endswith("mask_token"))
    ]
    hidden = [key for key in tried if not _moves(case, run, key, 1.01)]
    if folder() != COMMITTED:
        assert len(hidden) <= len(tried) // 20, f"{len(hidden)} of {len(tried)}: {hidden}"
        hidden = [key for key in hidden if not _moves(case, run, key, 2.0)]
    assert not hidden, f"{len(hidden)} of {len(tried)} go unnoticed: {hidden}"


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_back_bit_for_bit_under_the_names_they_had(name: str) -> None:
    state = load(name).groups["sd"]
    kind = detect(state)
    again = export_torch(import_torch(state, kind), kind)
    assert again.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)
    assert describe(again, kind) == describe(state, kind)
