"""The training loop.

The work of step n (n steps are done when it is over) has one order: step -> log -> evaluate -> save
-> panels. Each happens where n is a multiple of its cadence and at the last step; a save also where
an evaluation gave a new best score, by labels or without, so that the best network is kept whatever
the two cadences are, and where the run is asked to stop.

Metrics are fetched while the next step runs, so that the device never waits for the host; the loop
catches up before it evaluates or saves. A latch is compiled into the step: after one that is not
finite, later ones leave the state alone. So a fault that is noticed one step late still finds the
last good state.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mrm_jax import sharding
from mrm_jax.config import Config
from mrm_jax.data.pipeline import Example, evaluation_set, selection_crops, train_batches
from mrm_jax.data.rare_class import open_sampler
from mrm_jax.evaluation.evaluator import Evaluation, document
from mrm_jax.train import hooks
from mrm_jax.train import workdir as folders
from mrm_jax.train.allocator import keep_memory
from mrm_jax.train.checkpoint import FOLDER, Checkpoints, DamagedError
from mrm_jax.train.console import Screen, banner, pace_text
from mrm_jax.train.mirror import Mirror
from mrm_jax.train.programs import shared
from mrm_jax.train.sentinel import Sentinel, not_finite, save_fault
from mrm_jax.train.start import first_state, frozen_encoder, load
from mrm_jax.train.step import Program, build, structure
from mrm_jax.train.stop import StopSignal
from mrm_jax.train.writer import Writer
from mrm_jax.types import Batch, Frozen, RunError, TrainState, Unlabelled

FAULT = "fault"


class _Done(NamedTuple):
    """A step given to the device; its metrics may still be on their way. `number` counts from 1."""

    number: int
    metrics: dict[str, jax.Array]
    batch: Batch


@dataclass
class _Run:
    """A run under way: what stays, and what a step changes (`state`, `finite`, `unread`)."""

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
    finite: jax.Array
    unread: deque[_Done] = field(default_factory=deque)


def train(config: Config, workdir: Path, mirror: Mirror | None = None) -> int:
    """Trains in `workdir`, or goes on where it stopped; returns 0, also when it was asked to stop.

    mirror: where the run's folder is in a bucket, of which `workdir` holds the small files.

    Raises UsageError or RunError with one line for the user.
    """
    with Screen(config.train.steps) as screen:
        try:
            return _train(config, workdir, mirror, screen)
        except OSError as error:
            name = f" ({error.filename})" if error.filename else ""
            raise RunError(f"The run stopped: {error.strerror or error}{name}.") from error


def _train(config: Config, workdir: Path, mirror: Mirror | None, screen: Screen) -> int:
    mesh = sharding.run_mesh(config)
    keep_memory(mesh.devices.flat[0].platform)
    home = workdir if mirror is None else mirror.remote
    checkpoints = Checkpoints(home / FOLDER, keep=config.train.keep)
    for line in checkpoints.damaged:
        screen.warn(line)
    start = checkpoints.latest() or 0
    weights = load(config) if checkpoints.latest() is None else None
    anchor = frozen_encoder(config, workdir)
    examples = evaluation_set(config)
    _ = examples[:1] and examples[0]  # reads it: a wrong label table shows now, not hours later
    if start >= config.train.steps:
        screen.say(f"All {start} steps are done already; writing {home / 'report.html'} again.")
        checkpoints.close()
        hooks.write_report(workdir)
        return 0
    sampler = open_sampler(config, say=screen.say)
    batches = train_batches(
        config,
        sampler=sampler,
        start_step=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    first = sharding.put_batch(next(batches), mesh)  # faults in the data show before compilation
    crops = selection_crops(config)
    programs = shared(build, structure(config), mesh)
    program = programs.program
    sentinel = Sentinel(config.data.classes.names)
    try:
        state, facts = first_state(config, program, mesh, checkpoints, weights)
    except DamagedError:
        line = checkpoints.aside(start)
        if line is None:
            raise
        screen.warn(line)
        return _train(config, workdir, mirror, screen)
    if facts["sentinel"]:
        sentinel.remember(facts["sentinel"])
    told = () if weights is None else weights.lines()
    for line in (*banner(mesh, str(home), state, start), *told):
        screen.say(line)
    frozen = jax.device_put(program.frozen(config, anchor), sharding.replicated(mesh))
    finite = jax.device_put(np.True_, sharding.replicated(mesh))
    screen.say("compiling the step ...")
    began = time.perf_counter()
    step = programs.step(mesh, (state, finite, frozen, first))
    seconds = time.perf_counter() - began
    screen.say(f"compiled the step in {seconds:.1f} s")
    begun_with = {"weights": facts["weights"]} if facts["weights"] else {}
    if sampler:
        begun_with["rare_class_sampling"] = sampler.facts(config.data.classes.names)
    folders.begin(workdir, config, {**hooks.device_facts(mesh, start), **begun_with})
    writer = Writer(workdir, step=start)
    writer.write(start, {"perf/compile_seconds": seconds})
    run = _Run(
        config=config,
        workdir=workdir,
        mirror=mirror,
        screen=screen,
        mesh=mesh,
        program=program,
        frozen=frozen,
        examples=examples,
        crops=crops,
        checkpoints=checkpoints,
        writer=writer,
        sentinel=sentinel,
        weights=facts["weights"],
        pace=hooks.Pace(config.train.batch),
        step=step,
        inspect=programs.inspect,
        state=state,
        finite=finite,
    )
    _push(run)  # a run killed before its first checkpoint is known by its config all the same
    with contextlib.closing(writer):
        if start and not facts["scores"] and start % config.train.eval_every == 0:
            checkpoints.score(start, _evaluate(run, start))  # it was asked to stop before
        code = _steps(run, start, first, batches)
    if int(run.state.step) == config.train.steps:
        screen.say(f"report: {home / hooks.write_report(workdir).name}")
    return code


def _steps(run: _Run, start: int, batch: Batch, batches: Iterator[Batch]) -> int:
    """All steps from `start` on, or until a signal; returns the exit code. The last save is
    complete then.
    """
    steps, number = run.config.train.steps, start
    with StopSignal() as stop:
        try:
            for number in range(start + 1, steps + 1):
                with jax.transfer_guard("disallow"):
                    run.state, run.finite, metrics = run.step(
                        run.state, run.finite, run.frozen, batch
                    )
                run.unread.append(_Done(number, metrics, batch))
                run.pace.step()
                following = _next(run, number, batches) if number < steps else batch
                while len(run.unread) > 1:
                    _read(run, run.unread.popleft())
                stopping = stop.received is not None
                if stopping or _due(run.config, number):
                    _between(run, number, batch, stopping=stopping)
                run.screen.advance(number)
                batch = following
                if stopping and number < steps:
                    break
            run.checkpoints.close()
        except BaseException:
            with contextlib.suppress(RunError):  # the first error is the one to report
                run.checkpoints.close()
            raise
        if stop.received is not None:
            run.screen.say(
                f"stopped by {stop.received.name} after step {number}, which is saved; "
                "the same command goes on from there."
            )
        return 0


def _every(number: int, cadence: int, steps: int) -> bool:
    return number % cadence == 0 or number == steps


def _due(config: Config, number: int) -> bool:
    train = config.train
    cadences = (train.eval_every, train.checkpoint_every, train.panels_every)
    return any(_every(number, cadence, train.steps) for cadence in cadences)


def _next(run: _Run, number: int, batches: Iterator[Batch]) -> Batch:
    """The next batch on its way to the devices, while step `number` runs."""
    began = time.perf_counter()
    try:
        batch = next(batches)
    except Exception:
        _catch_up(run)
        _save(run, number, {})
        raise
    run.pace.wait(time.perf_counter() - began)
    return sharding.put_batch(batch, run.mesh)


def _catch_up(run: _Run) -> None:
    while run.unread:
        _read(run, run.unread.popleft())


def _read(run: _Run, done: _Done) -> None:
    """Waits for a step's metrics, checks them and logs them where they are due."""
    values = jax.device_get(done.metrics)
    if not values.pop("finite"):
        _stop_at_fault(run, done, values)
    shares = values.pop("teacher/class_share", None)
    alarms = {}
    if shares is not None:
        sure = float(values["teacher/confident_share"])
        alarms = run.sentinel.see_shares(shares, done.number, confident=sure)
    _alarm(run, done.number, "share", alarms)
    train = run.config.train
    if not _every(done.number, train.log_every, train.steps):
        return
    if shares is not None:
        names = run.config.data.classes.names
        values |= {f"teacher/class_share/{n}": s for n, s in zip(names, shares, strict=True)}
    rates = run.pace.read(train.steps - done.number)
    run.writer.write(done.number, {**values, **rates})
    text = pace_text(rates["perf/steps_per_second"], rates["perf/eta_seconds"])
    run.screen.metrics(done.number, values, text)
    run.screen.advance(done.number, text)


def _alarm(run: _Run, number: int, kind: str, alarms: dict[str, str]) -> None:
    for name, sentence in alarms.items():
        run.screen.warn(sentence)
        run.writer.write(number, {f"alarm/{kind}/{name}": sentence})


def _stop_at_fault(run: _Run, done: _Done, values: dict[str, np.ndarray]) -> None:
    """Saves the last good state and what the faulty step computed from. Raises RunError."""
    good = int(run.state.step)
    draws = jax.jit(run.program.draw)(run.state.root_key, run.state.step, done.batch.index)
    path = save_fault(run.workdir / FAULT, done.number, done.batch, draws, values)
    run.writer.write(done.number, {"alarm/not_finite": f"step {done.number} is not finite"})
    if good:
        _save(run, good, {})
    names = ", ".join(not_finite(values)) or "a gradient"
    raise RunError(
        f"Step {done.number} is not finite ({names}) and was not applied; the state after step "
        f"{good} is kept. Its pictures, labels and draws are in {path}: look whether one of them "
        f"is odd; if none is, lower the learning rates, lengthen optimizer.warmup or use "
        f"model.dtype=float32 in a new workdir."
    )


def _between(run: _Run, number: int, batch: Batch, *, stopping: bool) -> None:
    """Evaluate, save, panels: what is due after step `number`.

    Whoever asks to stop may not wait for an evaluation: it is made up for on resuming.
    """
    _catch_up(run)
    began = time.perf_counter()
    train = run.config.train
    if stopping and number < train.steps:
        _save(run, number, {})
        return
    scores: dict[str, float] = {}
    if _every(number, train.eval_every, train.steps):
        try:
            scores = _evaluate(run, number)
        except Exception:
            _save(run, number, {})  # a broken picture must not cost the steps since the last one
            raise
    best = run.checkpoints.is_best(_facts(run, scores))
    if best or _every(number, train.checkpoint_every, train.steps):
        _save(run, number, scores)
    if _every(number, train.panels_every, train.steps):
        hooks.save_views(run.config, run.workdir, number, run.inspect(run.state, run.frozen, batch))
    run.writer.flush()
    _push(run)
    run.pace.pause(time.perf_counter() - began)


def _evaluate(run: _Run, number: int) -> dict[str, float]:
    scores = hooks.select(run.config, run.program.networks, run.state, run.crops)
    run.screen.picks(number, scores)
    found: dict[str, Evaluation] = {}
    if run.examples:
        found = hooks.evaluate(
            run.config, run.state, run.examples, workdir=run.workdir, step=number
        )
        folders.write_json(run.workdir / "evaluation.json", document(found, step=number))
        run.screen.scores(number, found)
        scores |= hooks.score_metrics(found)
    if scores:
        run.writer.write(number, scores)
    for network, evaluation in found.items():
        alarms = run.sentinel.see_scores(network, evaluation.per_class(), number)
        _alarm(run, number, f"IoU/{network}", alarms)
    return scores


def _save(run: _Run, number: int, scores: dict[str, float]) -> None:
    _push(run)  # first: a checkpoint without the lines before it would leave a gap
    run.checkpoints.save(number, run.state, _facts(run, scores))


def _push(run: _Run) -> None:
    """Brings the small files of a run in a bucket there; one that does not answer now costs no
    steps: it is asked again at the next save and at the end."""
    if run.mirror is None:
        return
    run.writer.flush()
    try:
        run.mirror.push()
    except RunError as error:
        run.screen.warn(str(error))


def _facts(run: _Run, scores: dict[str, float]) -> dict[str, Any]:
    memory = run.sentinel.memory()
    return hooks.facts(run.config, scores=scores, sentinel=memory, weights=run.weights)
