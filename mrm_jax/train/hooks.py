"""What is made of a state between steps: scores, sheets of pictures, the report; rates and memory.
`train/run.py` says when."""

from __future__ import annotations

import functools
import operator
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mrm_jax.config import Config, detail_crop
from mrm_jax.data.pipeline import Example
from mrm_jax.evaluation import evaluator, selection
from mrm_jax.evaluation.scores import Counts, EvaluationResult, scored
from mrm_jax.hosts import group
from mrm_jax.models.build import build_segmentor
from mrm_jax.runs import workdir as folders
from mrm_jax.train.state import Networks
from mrm_jax.types import TrainState, Unlabelled

SHOWN = 4
"""Pictures on a sheet of predictions, spread over the evaluation set."""


def evaluated_networks(state: TrainState) -> dict[str, dict[str, Any]]:
    """The networks of a state that can be evaluated, by name: variables of the segmentor."""
    found = {"student": {"params": state.params["segmentor"], "batch_stats": state.batch_stats}}
    if jax.tree.leaves(state.teacher_params):
        found["teacher"] = {
            "params": state.teacher_params,
            "batch_stats": state.teacher_batch_stats,
        }
    return found


def evaluate_on_hosts(
    config: Config, state: TrainState, examples: Sequence[Example], *, workdir: Path, step: int
) -> dict[str, EvaluationResult]:
    """Scores of student and teacher under the protocol of `config`.

    Every host counts on its share of the pictures. Predictions for a few of host 0's, with their
    ground truth, are written as one PNG, `views/evaluation_<n>.png`. state: with all of its arrays
    on this host (`sharding.on_this_host`).
    """
    from mrm_jax.report.panels import evaluation_panel, sheet_title

    model = build_segmentor(config.model, len(config.data.classes.names), detail_crop(config))
    began = time.perf_counter()
    mine = examples[group.host_index() :: group.host_count()]

    def progress(done: int, total: int) -> None:
        group.beat(step, f"evaluating {done}/{total}")

    def count() -> list[Any]:
        places = np.linspace(0, len(mine) - 1, min(SHOWN, len(mine))).astype(int)
        shown = [mine[place] for place in places] if group.is_main() else []
        names = {example.name for example in shown}
        kept: dict[str, dict[str, np.ndarray]] = {}

        def keep(network: str, name: str, ids: np.ndarray) -> None:
            if name in names:
                kept.setdefault(network, {})[name] = ids

        how = {"progress": progress, "on_prediction": keep if shown else None}
        counts = evaluator.count_predictions(config, model, evaluated_networks(state), mine, **how)
        predictions = {net: [ids[example.name] for example in shown] for net, ids in kept.items()}
        if shown:
            evaluation_panel(
                shown,
                predictions["student"],
                config.data.classes,
                folders.sheet(workdir, "evaluation", step),
                teacher=predictions.get("teacher"),
                title=sheet_title(f"Evaluation, step {step}", config.data.evaluation),
            )
        return counts.as_json()

    counts = functools.reduce(operator.add, map(Counts.from_json, group.together(count)))
    return scored(config, counts, time.perf_counter() - began)


def select(
    config: Config, modules: Networks, state: TrainState, crops: Unlabelled | None
) -> dict[str, float]:
    """Scores without labels under their metrics.jsonl names, `select/...`; none without crops."""
    if crops is None:
        return {}
    rebuilding = None
    # A decoder that never saw rebuilt features in training says nothing by what it makes of them.
    if modules.rebuilder is not None and config.method.mrm.target == "classes":
        rebuilding = selection.Rebuilding(modules.rebuilder, state.params["rebuilder"])
    found = selection.label_free(
        config, modules.segmentor, evaluated_networks(state), crops, rebuilding=rebuilding
    )
    return {f"{selection.PREFIX}{name}": value for name, value in found.items()}


def score_metrics(found: Mapping[str, EvaluationResult]) -> dict[str, float]:
    """Scores under their metrics.jsonl names, `eval/<network>/...`."""
    return {
        f"eval/{network}/{name}": value
        for network, evaluation in found.items()
        for name, value in evaluation.metrics().items()
    }


def device_facts(mesh: jax.sharding.Mesh, start: int) -> dict[str, Any]:
    """What environment.json says about the devices and the start of a run."""
    devices = list(mesh.devices.flat)
    return {
        "platform_of_devices": devices[0].platform,
        "devices": [device.device_kind for device in devices],
        "mesh": {name: size for name, size in mesh.shape.items()},
        "processes": jax.process_count(),
        "resumed_from": start,
    }


_PANELS = {
    "target/label": "pseudo_label",
    "target/weight": "pseudo_weight",
    "target/prediction": "prediction",
    "reconstructed/mask": "token_mask",
    "reconstructed/prediction": "reconstructed_prediction",
}
"""Views of `step.inspect` whose name on a sheet is not their own with an underscore."""


def sheet_name(view: str) -> str:
    """What a view of `Program.inspect` is called on a sheet."""
    return _PANELS.get(view) or view.replace("/", "_")


def save_views(config: Config, workdir: Path, step: int, views: Mapping[str, jax.Array]) -> Path:
    """Writes what a step looks at (`Program.inspect`) as one PNG, `views/training_<n>.png`."""
    from mrm_jax.report.panels import save_panels, sheet_title

    shown: dict[str, np.ndarray] = {}
    for name, value in jax.device_get(dict(views)).items():
        value = np.asarray(value)
        weight = name.endswith("/weight")
        shown[sheet_name(name)] = value / 255 if weight else value
    path = folders.sheet(workdir, "training", step)
    title = sheet_title(f"Training, step {step}", config.data.source, config.data.target)
    return save_panels(shown, config.data.classes, path, title=title)


def write_report(workdir: Path) -> Path:
    """Writes report.html from what the workdir holds."""
    from mrm_jax.report.html import write_report as write

    return write(workdir)


class Pace:
    """Rates since they were last asked for. Time in `pause` (evaluation, saving) does not count."""

    def __init__(self, batch: int):
        self._batch = batch
        self._rate, self._wait_share = float("inf"), 0.0
        self._reset(time.perf_counter())

    def _reset(self, now: float) -> None:
        self._since, self._steps, self._waited, self._paused = now, 0, 0.0, 0.0

    def step(self) -> None:
        """Counts a step."""
        self._steps += 1

    def wait(self, seconds: float) -> None:
        """Counts time in which the loop waited for data."""
        self._waited += seconds

    def pause(self, seconds: float) -> None:
        """Takes out time in which no steps were due."""
        self._paused += seconds

    def read(self, steps_left: int) -> dict[str, float]:
        """`perf/` metrics of the time since the last call; images are source pictures."""
        now = time.perf_counter()
        if self._steps:  # catching up reads several steps at once; the first has counted them all
            elapsed = max(now - self._since - self._paused, 1e-9)
            self._rate = self._steps / elapsed
            self._wait_share = min(1.0, self._waited / elapsed)
            self._reset(now)
        return {
            "perf/steps_per_second": self._rate,
            "perf/images_per_second": self._rate * self._batch,
            "perf/data_wait_share": self._wait_share,
            "perf/eta_seconds": steps_left / self._rate,
            **memory(),
        }


def memory() -> dict[str, float]:
    """Memory of this process and, where it says so, of its first device, in bytes."""
    values = {"perf/memory_bytes": float(resident_bytes())}
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        values["perf/device_peak_bytes"] = float(stats["peak_bytes_in_use"])
    return values


def resident_bytes() -> int:
    """Resident memory of this process; its peak where the system does not tell the present
    value.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
