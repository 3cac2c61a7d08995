"""Every network against the reference: same weights, same input, outputs equal up to rounding."""

from __future__ import annotations

import re

import networks
import numpy as np
import pytest
from compare import check, difference, tolerance
from golden import Case, cases, family, load

RUNNERS = {
    "backbone_mit": networks.run_encoder,
    "head_daformer": networks.run_decoder,
    "head_segformer": networks.run_decoder,
    "rebuilder_multi": networks.run_rebuilder,
    "rebuilder_single": networks.run_rebuilder,
    "hf_segformer": networks.run_segformer,
}


def _names() -> list[str]:
    return [name for prefix in RUNNERS for name in cases(prefix)]


def _runner(case: Case) -> networks.Runner:
    prefix = family(case.name)
    assert prefix is not None
    return RUNNERS[prefix](case)


def _smallest(prefix: str) -> str:
    """The case of a family with the fewest weights: every one of its tensors can be tried.

    Cases that were made to show the LayerNorm's eps have tiny weights, which add next to nothing
    to the residual stream: 1 % of them is below rounding, so they are the last choice.
    """

    def order(name: str) -> tuple[bool, int]:
        case = load(name)
        tiny = "maxrel_change_if_uniform_eps" in case.meta
        return tiny, sum(weight.size for weight in case.groups["sd"].values())

    return min(cases(prefix), key=order)


def _moved(case: Case, found: dict[str, object]) -> bool:
    """Whether the comparison of this case would fail."""
    stored, limit = case.groups["out"], tolerance(case)
    return any(not difference(found[key], stored[key]) <= limit for key in stored)


@pytest.mark.parametrize("name", _names())
def test_network(name: str) -> None:
    case = load(name)
    found = _runner(case)(case.groups["sd"])
    assert set(found) == set(case.groups["out"]), "an output is not compared"
    print(name, {key: f"{value:.1e}" for key, value in check(case, found).items()})


# (layout of the case, pattern of the tensor) -> why its value cannot matter.
WITHOUT_INFLUENCE = {
    ("rebuilder", r"transformer\.pos_embed"): "a fixed table: import_torch refuses any other",
    ("head_segformer", r"conv_seg\.(weight|bias)"): "the head never calls it",
    ("hf_segformer", r".*(\.k_proj|\.key)\.bias"): "softmax ignores what is the same for all keys",
}


@pytest.mark.parametrize("name", [_smallest(prefix) for prefix in RUNNERS if cases(prefix)])
def test_one_percent_on_any_one_weight_turns_the_comparison_red(name: str) -> None:
    case = load(name)
    run, weights = _runner(case), case.groups["sd"]
    unseen = []
    for key, weight in weights.items():
        if any(name.startswith(f) and re.fullmatch(p, key) for f, p in WITHOUT_INFLUENCE):
            continue
        if not _moved(case, run({**weights, key: weight * np.float32(1.01)})):
            unseen.append(key)
    assert not unseen, f"{len(unseen)} of {len(weights)} go unnoticed: {unseen}"
