"""The training loop.

The work of step n (n steps are done when it is over) has one order: step -> log -> save -> evaluate
-> panels. Each happens where n is a multiple of its cadence and at the last step; a save also after
an evaluation that gave a new best score, by labels or without, so that the best network is kept
whatever the two cadences are, and where the run is asked to stop (`run.between`). The first step is
shown on the screen in any case.

Metrics are fetched while the next step runs, so that the device never waits for the host; the loop
catches up before it evaluates or saves. A latch is compiled into the step: after one that is not
finite, later ones leave the state alone. So a fault that is noticed one step late still finds the
last good state.

On several hosts each runs this loop. What one of them alone knows, that it was asked to stop or
cannot read a picture, travels with its next step (`programs.Fed`), so that all save the same step.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mrm_jax import sharding
from mrm_jax.config import Config
from mrm_jax.data import coverage
from mrm_jax.data.identity import identities
from mrm_jax.data.pipeline import evaluation_set, selection_crops, train_batches
from mrm_jax.data.rare_class import open_sampler
from mrm_jax.errors import RunError, UsageError
from mrm_jax.hosts import group
from mrm_jax.runs import workdir as folders
from mrm_jax.runs.checkpoint import FOLDER, Checkpoints, DamagedError
from mrm_jax.runs.mirror import Mirror
from mrm_jax.runs.saved import read_facts
from mrm_jax.runs.trackers import tracker_of
from mrm_jax.runs.writer import Writer
from mrm_jax.stop import ENDED, LOOKED, RAISED, SHUT, Stop, Stopped, heard
from mrm_jax.train import ahead, hooks
from mrm_jax.train.console import Screen, banner, pace_text
from mrm_jax.train.programs import FAILED, GO_ON, STOP, Fed, Programs, shared
from mrm_jax.train.run import (
    EVALUATION,
    Done,
    Run,
    alarm,
    between,
    due,
    every,
    finish,
    left_undone,
    push,
    stop_at_failure,
    stop_at_fault,
)
from mrm_jax.train.sentinel import Sentinel
from mrm_jax.train.start import (
    abstract_state,
    drawn_from,
    first_state,
    from_random,
    frozen_encoder,
    load_start,
    set_aside,
)
from mrm_jax.train.step import build_step, structure
from mrm_jax.train.trace import Trace
from mrm_jax.types import Batch
from mrm_jax.uda.methods import looks_at_target


def train(config: Config, workdir: Path, mirror: Mirror | None = None) -> int:
    """Trains in `workdir`, or goes on where it stopped; returns 0, also when it was asked to stop.

    mirror: where the run's folder is elsewhere (in a bucket, or host 0's) and `workdir` holds the
    small files.

    Raises UsageError or RunError with one line for the user, and Stopped where it was asked to stop
    before anything was saved.
    """
    with heard() as stop, Screen(config.train.steps, quiet=not group.is_main()) as screen:
        stop.doing, stop.saved = "starting", folders.newest(workdir)
        try:
            return _train(config, workdir, mirror, screen, stop)
        except Stopped:
            if stop.saved is None or group.host_count() > 1:  # then the others are to be told
                raise
            screen.say(stop.last_words()[0])
            return 0
        except OSError as error:
            name = f" ({error.filename})" if error.filename else ""
            raise RunError(
                f"The run stopped: {error.strerror or error}{name}.", field=error.filename or ""
            ) from error


def _train(config: Config, workdir: Path, mirror: Mirror | None, screen: Screen, stop: Stop) -> int:
    mesh = sharding.run_mesh(config)
    home = workdir if mirror is None else mirror.remote
    checkpoints = Checkpoints(home / FOLDER, keep=config.train.keep)
    for line in checkpoints.damaged:
        screen.warn(line)
    start, undone = checkpoints.latest() or 0, group.from_main(lambda: _undone(config, checkpoints))
    weights = load_start(config) if checkpoints.latest() is None else None
    anchor = frozen_encoder(config, workdir)
    examples = evaluation_set(config)
    _ = examples[:1] and examples[0]  # reads it: a wrong label table shows now, not hours later
    if start >= config.train.steps and not undone:
        screen.say(f"All {start} steps are done already; writing {home / 'report.html'} again.")
        checkpoints.close()
        _report(workdir, home, screen, stop)
        return 0
    sampler, target = open_sampler(config, say=screen.say), looks_at_target(config.method)
    noticed = coverage.notice(config, target=target)
    for line in noticed.lines:
        screen.say(line)
    for line in noticed.warnings:
        screen.warn(line)
    batches = train_batches(
        config,
        sampler=sampler,
        start_step=start - bool(undone),  # the batch of that step, which a panel shows
        process_index=group.host_index(),
        process_count=group.host_count(),
        target=target,
    )
    first = sharding.put_batch(next(batches), mesh)  # faults in the data show before compilation
    crops = selection_crops(config)
    if crops is None and config.evaluation.selection_pictures:
        screen.say("config.data.target.path is empty: no scores without labels.")
    programs = shared(build_step, structure(config), mesh)
    like = abstract_state(config, programs.program, mesh)
    try:
        made = first_state(config, programs.program, like, mesh, checkpoints, weights)
    except DamagedError as error:
        batches.close()  # it reads ahead from the damaged one's step on
        screen.warn(set_aside(checkpoints, start, error))
        return _train(config, workdir, mirror, screen, stop)
    for line in (*banner(mesh, str(home), like, start), *(weights.lines() if weights else ())):
        screen.say(line)
    if random := from_random(config):
        screen.warn(str(random))
    frozen = jax.device_put(programs.program.frozen(config, anchor), sharding.replicated(mesh))
    good = jax.device_put(np.True_, sharding.replicated(mesh))
    arguments = (like, good, frozen, Fed(first, sharding.put_wish(GO_ON, mesh)))
    stop.doing = "compiling the step"
    group.beat(start, "compiling")
    begin = start < config.train.steps
    step, seconds = _compiled(programs, mesh, arguments, screen) if begin else (None, 0.0)
    state, known = made()
    sentinel = Sentinel(config.data.classes.names)
    sentinel.remember(known["sentinel"])
    begun_with = {**hooks.device_facts(mesh, start), **drawn_from(config, known, sampler, noticed)}
    begun_with[folders.DATA] = identities(config) if group.is_main() else {}
    with stop.within(SHUT):
        folders.begin(workdir, config, begun_with)
        tracker = tracker_of(config, home, say=screen.say, warn=screen.warn)
        writer = Writer(workdir, step=start, unscored=EVALUATION in undone, tracker=tracker)
        writer.write(start, {"perf/compile_seconds": seconds})
        run = Run(
            config=config,
            workdir=workdir,
            mirror=mirror,
            screen=screen,
            mesh=mesh,
            program=programs.program,
            frozen=frozen,
            examples=examples,
            crops=crops,
            checkpoints=checkpoints,
            writer=writer,
            sentinel=sentinel,
            weights=known["weights"],
            pace=hooks.Pace(config.train.batch),
            stop=stop,
            step=step,
            inspect=programs.inspect,
            ahead=ahead.of_run(config, programs, (state, frozen, first), examples, crops),
            state=state,
            good=good,
            at=start,
            scores=known["scores"],
            undone=undone,
        )
        push(run)  # a run killed before its first checkpoint is known by its config all the same
        closing = contextlib.closing
        with writer, closing(run.ahead), closing(Trace(run, start)) as trace:
            _steps(run, start, first, batches, trace)
        if not run.stopping:
            _report(workdir, home, screen, stop)
    return 0


def _undone(config: Config, checkpoints: Checkpoints) -> list[str]:
    """What a stop left undone at the newest checkpoint."""
    if not (newest := checkpoints.latest()):
        return []
    return left_undone(config, newest, read_facts(checkpoints.directory / str(newest)))


def _compiled(
    programs: Programs, mesh: jax.sharding.Mesh, arguments: tuple[Any, ...], screen: Screen
) -> tuple[Any, float]:
    """The step, and the seconds that it took to compile."""
    screen.say("compiling the step ...")
    began = time.perf_counter()
    step = programs.step(mesh, arguments)
    seconds = time.perf_counter() - began
    screen.say(f"compiled the step in {seconds:.1f} s")
    return step, seconds


def _report(workdir: Path, home: Path, screen: Screen, stop: Stop) -> None:
    """Writes the report, unless it is asked to stop: then the same command does so later."""
    if not group.is_main():
        return
    stop.doing = "writing the report"
    try:
        with stop.within(ENDED if group.host_count() == 1 else LOOKED):
            hooks.write_report(workdir)
    except Stopped:
        screen.say(stop.last_words()[0])
    else:
        screen.say(f"report: {home / 'report.html'}")


def _steps(run: Run, start: int, batch: Batch, batches: Iterator[Batch], trace: Trace) -> None:
    """What is undone at `start` and all steps after it, or until a signal. The last save is
    complete then.

    batch: that of step `start` where anything is undone there, or else of the one after.
    """
    steps, number = run.config.train.steps, start
    wishes = {wish: sharding.put_wish(wish, run.mesh) for wish in (GO_ON, STOP, FAILED)}
    try:
        if run.undone:
            finish(run, batch)
            batch = batch if start == steps else _next(run, start, batches, batch)
        while number < steps and not run.stopping:
            number += 1
            fed = Fed(batch, wishes[_wish(run)])
            with trace.step(number), jax.transfer_guard("disallow"):
                run.state, run.good, metrics = run.step(run.state, run.good, run.frozen, fed)
            run.unread.append(Done(number, metrics, batch))
            run.pace.step()
            following = _next(run, number, batches, batch) if number < steps else batch
            while len(run.unread) > 1:
                _read(run, run.unread.popleft())
            trace.after(number)
            if group.host_count() == 1:
                run.stopping = run.stop.received is not None
            if run.stopping or _due(run.config, number):
                _catch_up(run)
                between(run, number, batch)
            run.screen.advance(number)
            batch = following
        run.checkpoints.close()
    except BaseException as error:
        # With a host that is gone no save ever completes.
        if group.host_count() == 1 or isinstance(error, UsageError | RunError):
            with contextlib.suppress(RunError):  # the first error is the one to report
                run.checkpoints.close()
        raise
    run.stop.saved = number
    if run.stopping:
        run.writer.stopped()
        name = "another host" if run.stop.received is None else run.stop.received.name
        run.screen.say(
            f"stopped by {name} after step {number}, which is saved; "
            "the same command goes on from there."
        )


def _wish(run: Run) -> int:
    wish = GO_ON if run.stop.received is None else STOP
    return wish if run.failure is None else FAILED


def _due(config: Config, number: int) -> bool:
    saved = every(number, config.train.checkpoint_every, config.train.steps)
    return saved or bool(due(config, number))


def _next(run: Run, number: int, batches: Iterator[Batch], batch: Batch) -> Batch:
    """The next batch on its way to the devices, while step `number` runs; where it cannot be read
    `batch` again, for steps that change nothing, and where a stop does not wait for it."""
    group.beat(number, "reading")
    if run.failure is None:
        began = time.perf_counter()
        try:
            with run.stop.within(RAISED if group.host_count() == 1 else SHUT):
                read = next(batches)
        except Stopped:
            run.stopping = True
            return batch
        except Exception as error:
            run.failure = error
        else:
            run.pace.wait(time.perf_counter() - began)
            return sharding.put_batch(read, run.mesh)
    return batch


def _catch_up(run: Run) -> None:
    while run.unread:
        _read(run, run.unread.popleft())


def _read(run: Run, done: Done) -> None:
    """Waits for a step's metrics, checks them and logs them where they are due."""
    group.beat(done.number + len(run.unread), "computing")
    values = jax.device_get(done.metrics)
    wish = int(values.pop("wish"))
    run.stopping |= wish == STOP
    if wish == FAILED:
        stop_at_failure(run)
    if not values.pop("finite"):
        stop_at_fault(run, done, values)
    shares = values.pop("teacher/class_share", None)
    alarms = {}
    if shares is not None:
        sure = float(values["teacher/confident_share"])
        alarms = run.sentinel.see_shares(shares, done.number, confident=sure)
    alarm(run, done.number, "share", alarms)
    regular = every(done.number, run.config.train.log_every, run.config.train.steps)
    if not regular:
        if done.number == 1:  # shows that all is well; it also loads and allocates: no rate
            run.screen.metrics(1, values, "")
        return
    if shares is not None:
        names = run.config.data.classes.names
        values |= {f"teacher/class_share/{n}": s for n, s in zip(names, shares, strict=True)}
    rates = run.pace.read(run.config.train.steps - done.number)
    run.writer.write(done.number, {**values, **rates})
    text = pace_text(rates["perf/steps_per_second"], rates["perf/eta_seconds"])
    run.screen.metrics(done.number, values, text)
    run.screen.advance(done.number, text)
    run.ahead.begin()  # not before: it would slow down what the first rate is taken of
