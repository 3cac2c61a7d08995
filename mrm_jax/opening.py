"""Trained networks by the path of their run: what `mrm_jax.load` gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from mrm_jax import backend
from mrm_jax.config import Config, detail_crop
from mrm_jax.errors import UsageError
from mrm_jax.evaluation.network import TrainedNetwork, on_device
from mrm_jax.models.build import build_segmentor
from mrm_jax.runs.checkpoint import LoadedRun, load_run


def load(
    path: str | Path,
    network: Literal["student", "teacher"] = "student",
    which: str | int = "last",
) -> TrainedNetwork:
    """The network of a run, ready to segment pictures, with its variables on the device.

    path: a run's folder, one of its checkpoints, or a converted network. which: "last", "best" (by
    labels), "picked" (without) or a step. Raises UsageError where there is none, or no teacher, or
    where JAX_PLATFORMS asks for a device that is not there.
    """
    if network not in ("student", "teacher"):
        raise UsageError.of("network", network, "", "use student or teacher.")
    try:
        return opened_networks(load_run(path, which), network)[network]
    except Exception as error:
        if line := backend.device_refusal(error):
            raise line from error
        raise


def opened_networks(
    loaded: LoadedRun, which: str, protocol: Callable[[Config], Config] = lambda config: config
) -> dict[str, TrainedNetwork]:
    """The networks of a checkpoint by name, the student first; which: student, teacher or both.
    `protocol` gives the config to look at pictures by from the checkpoint's own. Raises UsageError
    for a teacher that is not there and for weights that are no whole network."""
    config = protocol(loaded.config)
    module = build_segmentor(config.model, len(config.data.classes.names), detail_crop(config))
    return {
        name: TrainedNetwork(config, module, on_device(variables), name, loaded.step)
        for name, variables in _chosen(loaded, which).items()
    }


def _chosen(loaded: LoadedRun, which: str) -> dict[str, dict[str, Any]]:
    if loaded.student["params"].keys() == {"encoder"}:
        raise UsageError(
            "These weights are an encoder alone, which segments nothing",
            "train with them by --config.model.encoder.weights.",
            field="config.model.encoder.weights",
        )
    if loaded.facts.get("converted") and (missing := loaded.facts["weights"].get("missing")):
        raise UsageError(
            f"These weights lack {len(missing)} leaves, {missing[0]} the first",
            "train with them by --config.train.init_from.",
            field=missing[0],
        )
    found = {"student": loaded.student}
    if loaded.teacher is not None:
        found["teacher"] = loaded.teacher
    if which == "both":
        return found
    if which not in found:
        raise UsageError(
            f"network {which}: this checkpoint ({loaded.config.method.kind}) holds no {which}",
            "use student." if which == "teacher" else "use student or teacher.",
            field="network",
            value=which,
        )
    return {which: found[which]}
