"""A run under way: what it holds, and what the loop does with it between steps. On several hosts
all of them call these alike; scores are the same on all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mrm_jax import sharding
from mrm_jax.config import Config
from mrm_jax.data.pipeline import Example
from mrm_jax.evaluation.scores import Evaluation, document
from mrm_jax.train import hooks, hosts
from mrm_jax.train import workdir as folders
from mrm_jax.train.checkpoint import Checkpoints
from mrm_jax.train.console import Screen
from mrm_jax.train.mirror import Mirror
from mrm_jax.train.sentinel import Sentinel
from mrm_jax.train.step import Program
from mrm_jax.train.writer import Writer
from mrm_jax.types import Batch, Frozen, RunError, TrainState, Unlabelled


class Done(NamedTuple):
    """A step given to the device; its metrics may still be on their way. `number` counts from 1."""

    number: int
    metrics: dict[str, jax.Array]
    batch: Batch


@dataclass
class Run:
    """What stays, and what a step changes: `state`, `good` (the latch of the compiled step),
    `unread`, `stopping` (the next save is the last) and `failure`, with which this host could not
    read its next batch.
    """

    config: Config
    workdir: Path
    mirror: Mirror | None
    screen: Screen
    mesh: jax.sharding.Mesh
    program: Program
    frozen: Frozen
    examples: Sequence[Example]
    crops: Unlabelled | None
    checkpoints: Checkpoints
    writer: Writer
    sentinel: Sentinel
    weights: dict[str, Any]
    pace: hooks.Pace
    step: Callable[..., Any]
    inspect: Callable[..., dict[str, jax.Array]]
    state: TrainState
    good: jax.Array
    unread: deque[Done] = field(default_factory=deque)
    stopping: bool = False
    failure: Exception | None = None


def evaluate(run: Run, number: int) -> dict[str, float]:
    """Scores after step `number`, with labels and without, under their metrics.jsonl names; writes
    them down and sounds the alarms that follow. Where that fails on one host it does on all.
    """
    here = sharding.local(replace(run.state, opt_state={}), run.mesh)
    scores = hosts.from_main(
        lambda: hooks.select(run.config, run.program.networks, here, run.crops)
    )
    found: dict[str, Evaluation] = {}
    if run.examples:
        found = hooks.evaluate(run.config, here, run.examples, workdir=run.workdir, step=number)
    hosts.together(lambda: _tell(run, number, scores, found))
    return scores | hooks.score_metrics(found)


def _tell(run: Run, number: int, scores: dict[str, float], found: Mapping[str, Evaluation]) -> None:
    run.screen.picks(number, scores)
    if found:
        folders.write_json(run.workdir / "evaluation.json", document(found, step=number))
        run.screen.scores(number, found)
    if values := scores | hooks.score_metrics(found):
        run.writer.write(number, values)
    for network, evaluation in found.items():
        alarms = run.sentinel.see_scores(network, evaluation.per_class(), number)
        alarm(run, number, f"IoU/{network}", alarms)


def alarm(run: Run, number: int, kind: str, alarms: dict[str, str]) -> None:
    """Shows and writes down {class: sentence} of step `number`."""
    for name, sentence in alarms.items():
        run.screen.warn(sentence)
        run.writer.write(number, {f"alarm/{kind}/{name}": sentence})


def save(run: Run, number: int, scores: dict[str, float]) -> None:
    """Begins the checkpoint of step `number`, with the scores of its evaluation, if any."""
    hosts.beat(number, "saving")
    push(run)  # first: a checkpoint without the lines before it would leave a gap
    run.checkpoints.save(number, run.state, facts(run, scores))


def push(run: Run) -> None:
    """Brings the small files of a run in a bucket there; one that does not answer now costs no
    steps: it is asked again at the next save and at the end."""
    if run.mirror is None:
        return
    run.writer.flush()
    try:
        run.mirror.push()
    except RunError as error:
        run.screen.warn(str(error))


def facts(run: Run, scores: dict[str, float]) -> dict[str, Any]:
    """What is stored beside the arrays of a checkpoint."""
    memory = run.sentinel.memory()
    return hooks.facts(run.config, scores=scores, sentinel=memory, weights=run.weights)
