"""A run under way: what it holds, and what the loop does with it between steps. On several hosts
all of them call these alike; scores are the same on all.

What is due after a step has one order: save -> evaluate -> panels. The state comes to disk first,
since whoever asks to stop waits for nothing else: what is not made then is a fact of the checkpoint
(`undone`) and is made when the run goes on, be it only to end.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mrm_jax import sharding
from mrm_jax.config import Config, has_evaluation
from mrm_jax.data.pipeline import Example
from mrm_jax.errors import RunError
from mrm_jax.evaluation.scores import EvaluationResult, evaluation_document
from mrm_jax.hosts import group
from mrm_jax.runs import workdir as folders
from mrm_jax.runs.checkpoint import Checkpoints
from mrm_jax.runs.mirror import Mirror
from mrm_jax.runs.saved import facts_under
from mrm_jax.runs.writer import Writer
from mrm_jax.stop import ENDED, LOOKED, Stop, Stopped
from mrm_jax.train import hooks
from mrm_jax.train.ahead import Ahead
from mrm_jax.train.console import Screen
from mrm_jax.train.sentinel import Sentinel, not_finite, save_fault
from mrm_jax.train.step import Program
from mrm_jax.types import Batch, Frozen, TrainState, Unlabelled

FAULT = "fault"
EVALUATION, PANELS = "evaluation", "panels"
"""Names of what may be undone at a checkpoint."""


class Done(NamedTuple):
    """A step given to the device; its metrics may still be on their way. `number` counts from 1."""

    number: int
    metrics: dict[str, jax.Array]
    batch: Batch


@dataclass
class Run:
    """What stays, and what a step changes: `state`, `good` (the latch of the compiled step),
    `unread`, `stopping` (the next save is the last), `failure`, with which this host could not read
    its next batch, and of step `at`, the last after which anything was due, its `scores` and what
    is `undone`.
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
    stop: Stop
    step: Any
    inspect: Callable[..., dict[str, jax.Array]]
    ahead: Ahead
    state: TrainState
    good: jax.Array
    unread: deque[Done] = field(default_factory=deque)
    stopping: bool = False
    failure: Exception | None = None
    at: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    undone: list[str] = field(default_factory=list)


def every(number: int, cadence: int, steps: int) -> bool:
    """Whether step `number` of `steps` is one of a cadence; the last one always is."""
    return number % cadence == 0 or number == steps


def due(config: Config, number: int) -> list[str]:
    """What is to be made after step `number` besides a checkpoint."""
    train = config.train
    scored = has_evaluation(config) or config.evaluation.selection_pictures > 0
    found = [EVALUATION] if scored and every(number, train.eval_every, train.steps) else []
    return [*found, PANELS] if every(number, train.panels_every, train.steps) else found


def left_undone(config: Config, number: int, known: Mapping[str, Any]) -> list[str]:
    """What of `due` is still to be made, by the facts of the checkpoint of step `number`; a cadence
    may have changed since."""
    listed = known.get(folders.UNDONE)
    left = listed if isinstance(listed, list) else []
    if not known["scores"]:
        left = [*left, *(what for what in due(config, number) if what == EVALUATION)]
    return [what for what in (EVALUATION, PANELS) if what in left]


def between(run: Run, number: int, batch: Batch) -> None:
    """Makes all that is due after step `number`, whose metrics are read; of what is not a
    checkpoint only as much as a stop allows."""
    began = time.perf_counter()
    train = run.config.train
    run.at, run.scores, run.undone = number, {}, due(run.config, number)
    if run.stopping or every(number, train.checkpoint_every, train.steps):
        save_checkpoint(run, number)
    finish(run, batch)
    run.writer.flush()
    push(run)
    run.pace.pause(time.perf_counter() - began)


def finish(run: Run, batch: Batch) -> None:
    """Makes what is undone at the present step, or sees to it that this is saved as undone."""
    try:
        if run.undone and not run.stopping:
            with stoppable(run, "compiling what evaluates"):
                run.ahead.wait()
        if EVALUATION in run.undone and not run.stopping:
            _score(run)
        if PANELS in run.undone and not run.stopping:
            _panels(run, batch)
    except Stopped:
        run.stopping = True
        save_checkpoint(run, run.at)


def _score(run: Run) -> None:
    """Evaluates; where the step is not saved and its scores are a new best, it is."""
    try:
        run.scores = evaluate_step(run, run.at)
    except Exception:
        save_checkpoint(run, run.at)  # a broken picture must not cost the steps since the last one
        raise
    _made(run, EVALUATION)
    if run.checkpoints.is_best(facts_of_step(run, run.at)):
        save_checkpoint(run, run.at)


def _panels(run: Run, batch: Batch) -> None:
    with stoppable(run, f"drawing what step {run.at} saw"):
        group.together(run.stop.look)
        views = sharding.gathered(run.inspect(run.state, run.frozen, batch), run.mesh)
        if group.is_main():
            hooks.save_views(run.config, run.workdir, run.at, views)
            _show(run, "training", run.at)
    _made(run, PANELS)


def _show(run: Run, what: str, number: int) -> None:
    path = folders.sheet(run.workdir, what, number)
    run.writer.picture(number, f"{folders.VIEWS}/{what}", path)


def _made(run: Run, what: str) -> None:
    run.undone.remove(what)
    if run.checkpoints.latest() == run.at:
        run.checkpoints.score(run.at, run.scores, **_changing(run, run.at))


@contextmanager
def stoppable(run: Run, doing: str) -> Iterator[None]:
    """For what may be made up for later: a stop ends it. On several hosts only where all agree, in
    `group.together`. Raises Stopped."""

    def keep() -> None:
        save_checkpoint(run, run.at)
        run.checkpoints.wait()
        run.stop.saved = run.at
        push(run)

    run.stop.doing = doing
    with run.stop.before_end(keep), run.stop.within(ENDED if group.host_count() == 1 else LOOKED):
        yield


def evaluate_step(run: Run, number: int) -> dict[str, float]:
    """Scores after step `number`, with labels and without, under their metrics.jsonl names; writes
    them down and sounds the alarms that follow. Where that fails on one host it does on all.
    """
    here = sharding.on_this_host(replace(run.state, opt_state={}), run.mesh)
    found: dict[str, EvaluationResult] = {}
    with stoppable(run, f"evaluating step {number}"):
        scores = group.from_main(
            lambda: hooks.select(run.config, run.program.networks, here, run.crops)
        )
        if run.examples:
            found = hooks.evaluate_on_hosts(
                run.config, here, run.examples, workdir=run.workdir, step=number
            )
    group.together(lambda: _tell(run, number, scores, found))
    return scores | hooks.score_metrics(found)


def _tell(
    run: Run, number: int, scores: dict[str, float], found: Mapping[str, EvaluationResult]
) -> None:
    run.screen.picks(number, scores)
    if found:
        folders.write_json(run.workdir / "evaluation.json", evaluation_document(found, step=number))
        run.screen.scores(number, found)
        _show(run, "evaluation", number)
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


def save_checkpoint(run: Run, number: int) -> None:
    """Begins the checkpoint of step `number` where there is none yet, with the scores of its
    evaluation, if any."""
    if number == run.checkpoints.latest():
        return
    group.beat(number, "saving")
    push(run)  # first: a checkpoint without the lines before it would leave a gap
    run.checkpoints.save(number, run.state, facts_of_step(run, number))


def push(run: Run, own: str = "") -> None:
    """Brings the small files of a run in a bucket there; one that does not answer now costs no
    steps: it is asked again at the next save and at the end. own: see `Mirror.push`."""
    if run.mirror is None:
        return
    run.writer.flush()
    try:
        run.mirror.push(own)
    except RunError as error:
        run.screen.warn(str(error))


def facts_of_step(run: Run, number: int) -> dict[str, Any]:
    """What is stored beside the arrays of the checkpoint of step `number`."""
    scores = run.scores if number == run.at else {}
    changing = _changing(run, number)
    return facts_under(run.config, scores=scores, weights=run.weights, **changing)


def _changing(run: Run, number: int) -> dict[str, Any]:
    """Facts that what is made after the save changes, besides the scores."""
    undone = run.undone if number == run.at else due(run.config, number)
    return {"sentinel": run.sentinel.memory(), folders.UNDONE: list(undone)}


def stop_at_failure(run: Run) -> None:
    """Saves what was reached before a host could not read its pictures. Raises its error there."""
    if good := int(run.state.step):
        save_checkpoint(run, good)
    raise run.failure or RunError(
        "Another host could not read its pictures; it says which.", field="host"
    )


def stop_at_fault(run: Run, done: Done, values: dict[str, np.ndarray]) -> None:
    """Saves the last good state and what the faulty step computed from. Raises RunError."""
    good = int(run.state.step)
    batch = sharding.gathered(done.batch, run.mesh)
    key, step = sharding.gathered((run.state.root_key, run.state.step), run.mesh)
    draws = jax.jit(run.program.draw)(key, step, batch.index)
    path = save_fault(run.workdir / FAULT, done.number, batch, draws, values)
    run.writer.write(done.number, {"alarm/not_finite": f"step {done.number} is not finite"})
    if good:
        save_checkpoint(run, good)
    names = ", ".join(not_finite(values)) or "a gradient"
    raise RunError(
        f"Step {done.number} is not finite ({names}) and was not applied; the state after step "
        f"{good} is kept. Its pictures, labels and draws are in {path}:",
        "check whether one of them "
        "is unusual; if none is, lower the learning rates, lengthen optimizer.warmup or use "
        "model.dtype=float32 in a new workdir.",
        field=names,
        value=done.number,
    )
