"""HRDA's network against the reference: training forward at stored crop boxes, and windows."""

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

from mrm_jax.convert import describe, import_torch
from mrm_jax.evaluation.inference import predict
from mrm_jax.models.build import build_segmentor
from mrm_jax.types import View
from mrm_jax.uda.objectives import Call, cross_entropy

DETAIL = "model.multires.detail_weight"


def _outputs(case: Case, state: networks.State) -> dict[str, Any]:
    """Everything that the case stores but the class maps, under its names."""
    given, meta = case.groups["in"], case.meta["model"]
    classes = describe(state, "segmentor")["decoder"]["num_classes"]
    config = networks.segmentor_config(state, "segmentor", meta)
    model, variables = build_segmentor(config, classes), import_torch(state, "segmentor")
    image = jnp.asarray(networks.nhwc(given["x"]))
    scalars = {DETAIL: jnp.asarray(config.multires.detail_weight)}
    weight = jnp.asarray(given["seg_weight"])
    view = View(image, jnp.asarray(given["gt"][:, 0].astype(np.int32)), weight)

    @jax.jit
    def crop(variables: Any, offset: jax.Array) -> dict[str, jax.Array]:
        output = model.apply(variables, image, mode="eval", offset=offset)
        _, metrics = cross_entropy(Call(output, view, scalars), jax.random.key(0))
        share = scalars[DETAIL]
        return {
            "train_fused": networks.nchw(output.logits["main"]),
            "train_lr": networks.nchw(output.logits["context"]),
            "train_hr": networks.nchw(output.logits["detail"]),
            "decode.loss_seg": (1 - share) * metrics["ce_fused"],
            "decode.hr.loss_seg": share * metrics["ce_detail"],
            "lr_feat3": networks.nchw(output.features[3]),
        }

    found: dict[str, Any] = {}
    for key, box in given.items():
        if match := re.fullmatch(r"crop_box_(\d+)", key):
            outputs = crop(variables, jnp.asarray(box[[0, 2]], jnp.int32))
            found |= {f"{name}_{match[1]}": value for name, value in outputs.items()}
    whole = jax.jit(lambda v, x: model.apply(v, x, mode="eval").logits["main"])(variables, image)
    found["encode_decode_lowres"] = networks.nchw(whole)
    test = meta["test_cfg"]
    logits = predict(
        model,
        variables,
        jnp.asarray(networks.nhwc(given["x_test"])),
        mode="slide",
        window=tuple(test["crop_size"]),
        stride=tuple(test["stride"]),
    )
    found["slide_softmax"] = np.asarray(networks.nchw(jax.nn.softmax(logits, axis=-1)))
    return found


def _sampled(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    """`found` as the case stores it: the softmax only at every so many pixels."""
    sampled = {name: value for name, value in found.items() if name != "slide_softmax"}
    for name in case.groups["out"]:
        if match := re.fullmatch(r"slide_softmax_every(\d+)", name):
            step = int(match[1])
            sampled[name] = found["slide_softmax"][..., ::step, ::step]
    return sampled


@pytest.mark.parametrize("name", cases("hrda_forward"))
def test_hrda(name: str) -> None:
    case = load(name)
    found = _outputs(case, case.groups["sd"])
    sampled = _sampled(case, found)
    assert set(sampled) == set(case.groups["out"]) - {"slide_argmax"}, "an output is not compared"
    check(case, sampled)
    stored = case.groups["out"]["slide_argmax"].astype(np.int64)[:, None]
    chosen = np.take_along_axis(found["slide_softmax"], stored, axis=1)[:, 0]
    # Two classes may swap only where they are equal up to rounding.
    behind = float((found["slide_softmax"].max(axis=1) - chosen).max())
    assert behind <= tolerance(case), f"a stored class is {behind:.3g} behind ours"


@pytest.mark.parametrize("part", ["backbone.", "decode_head.head.", "decode_head.scale_attention."])
@pytest.mark.parametrize("name", cases("hrda_forward"))
def test_a_changed_weight_turns_the_comparison_red(name: str, part: str) -> None:
    case = load(name)
    key = next(k for k in case.groups["sd"] if k.startswith(part) and k.endswith(".weight"))
    state = {**case.groups["sd"], key: case.groups["sd"][key] * np.float32(1.01)}
    with pytest.raises(AssertionError, match="differs: "):
        check(case, _sampled(case, _outputs(case, state)))
