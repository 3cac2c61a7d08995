"""Encoders that are pretrained on ImageNet: maps, logits and classes of the stored cases."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden import Case, family
from networks import nchw, nhwc

from mrm_jax import config
from mrm_jax.convert import Misfit, describe, import_torch
from mrm_jax.convert.network import model_of
from mrm_jax.models.build import build_classifier, build_encoder
from mrm_jax.registry import InputStats

State = Mapping[str, np.ndarray]

# Of every family the layouts that its weights may have; the names of two families may be alike.
KINDS = {
    "encoder_pvt_v2": ("pvt_v2", "timm_pvt_v2"),
    "encoder_efficientnet_lite": ("efficientnet_lite", "timm_efficientnet_lite"),
    "encoder_mobilenet_v2": ("mobilenet_v2", "timm_mobilenet_v2"),
}


def _described(case: Case) -> tuple[str, dict[str, Any]]:
    """The kind of the weights, and what `describe` says of them, the classifier included."""
    problems = []
    for kind in KINDS[family(case.name) or ""]:
        try:
            return kind, describe(case.groups["sd"], kind, classifier=True)
        except Misfit as error:
            problems.append(str(error))
    raise AssertionError(f"{case.name}: {problems}")


def _images(case: Case, stats: InputStats) -> dict[str, jax.Array]:
    """Size -> the picture f32[B, H, W, 3] that a network is given: stored so, or a photograph."""
    found = {}
    for name, value in case.groups["in"].items():
        what, _, size = name.partition("_")
        if what == "photo":
            mean, std = (np.asarray(part, np.float32) for part in stats)
            value = ((value.astype(np.float32) - mean) / std)[None]
        else:
            value = nhwc(value)
        found[size] = jnp.asarray(value)
    return found


def _model(case: Case, shown: Mapping[str, Any]) -> config.Model:
    model, _ = model_of(shown)
    heads = case.meta["config"].get("num_heads")
    encoder = replace(model.encoder, heads=tuple(heads)) if heads else model.encoder
    # Looped blocks give the same numbers and compile in half the time.
    return config.Model(encoder=encoder, unroll=False)


def run(case: Case) -> Callable[[State], dict[str, Any]]:
    """Outputs `featI_HxW` (`_everyN`: every N-th row and column) and, where the weights have a
    classifier of ours, `logits_HxW` and `top5_ids`."""
    kind, shown = _described(case)
    model, facts = _model(case, shown), shown["encoder"]
    classes = facts.get("num_classes")
    if classes:
        module = build_classifier(model, classes, facts["head_width"])
    else:
        module = build_encoder(model)
    images = _images(case, config.input_stats(model))

    @jax.jit
    def outputs(variables: Any) -> dict[str, jax.Array]:
        found = {}
        for size, image in images.items():
            given = module.apply(variables, image, "eval")
            maps, logits = given if classes else (given, None)
            found |= {f"feat{i}_{size}": nchw(x) for i, x in enumerate(maps)}
            found |= {} if logits is None else {f"logits_{size}": logits}
        return found

    def run(weights: State) -> dict[str, Any]:
        variables = import_torch(weights, kind, classifier=bool(classes))
        return _named(case.groups["out"], outputs(variables))

    return run


def _named(stored: Mapping[str, Any], maps: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Our outputs under the names of the stored ones."""
    found: dict[str, Any] = {}
    for name in stored:
        if name == "top5_ids":
            # Those of the picture whose logits are stored.
            of = next(other for other in stored if other.startswith("logits_"))
            found[name] = jnp.argsort(-maps[of], axis=-1)[:, : stored[name].shape[1]]
        elif match := re.fullmatch(r"(.+)_every(\d+)", name):
            step = int(match[2])
            found[name] = maps[match[1]][:, :, ::step, ::step]
        elif name in maps:
            found[name] = maps[name]
    return found
