"""Whole and sliding-window inference of a segmentor against the reference."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from compare import check, tolerance
from golden import Case, cases, load

from mrm_jax.convert import describe, export_torch, import_torch
from mrm_jax.evaluation.inference import predict
from mrm_jax.models.build import build_segmentor


def _probabilities(case: Case, state: networks.State) -> dict[str, np.ndarray]:
    """Softmax [B, K, H, W] at the original size, for every mode the case stores."""
    classes = describe(state, "segmentor")["decoder"]["num_classes"]
    config = networks.segmentor_config(state, "segmentor", case.meta["model"])
    model = build_segmentor(config, classes)
    variables, slide = import_torch(state, "segmentor"), case.meta["slide"]
    image = jnp.asarray(networks.nhwc(case.groups["in"]["x"]))
    modes = {name.split("_")[0] for name in case.groups["out"]}
    found = {}
    for mode in modes:
        size = tuple(case.meta["ori_shape"][:2])
        options: dict[str, Any] = {"mode": mode, "size": size}
        if mode == "slide":
            options |= {"window": tuple(slide["crop"]), "stride": tuple(slide["stride"])}
        logits = predict(model, variables, image, **options)
        found[mode] = np.asarray(networks.nchw(jax.nn.softmax(logits, axis=-1)))
    return found


def _sampled(case: Case, probabilities: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {}
    for name in case.groups["out"]:
        if match := re.fullmatch(r"(\w+)_softmax_every(\d+)", name):
            step = int(match[2])
            found[name] = probabilities[match[1]][..., ::step, ::step]
    return found


@pytest.mark.parametrize("name", cases("inference"))
def test_inference(name: str) -> None:
    case = load(name)
    probabilities = _probabilities(case, case.groups["sd"])
    check(case, _sampled(case, probabilities))
    for mode, ours in probabilities.items():
        stored = case.groups["out"][f"{mode}_argmax"].astype(np.int64)[:, None]
        chosen = np.take_along_axis(ours, stored, axis=1)[:, 0]
        # Two classes may swap only where they are equal up to rounding.
        behind = float((ours.max(axis=1) - chosen).max())
        assert behind <= tolerance(case), f"{mode}: a stored class is {behind:.3g} behind ours"


@pytest.mark.parametrize("name", cases("inference"))
def test_a_changed_weight_turns_the_comparison_red(name: str) -> None:
    case = load(name)
    head = export_torch(import_torch(case.groups["sd"], "segmentor"), "segmentor")
    key = next(key for key in head if key.endswith(("linear_pred.weight", "conv_seg.weight")))
    state = {**case.groups["sd"], key: case.groups["sd"][key] * np.float32(1.01)}
    with pytest.raises(AssertionError, match="differs: "):
        check(case, _sampled(case, _probabilities(case, state)))
