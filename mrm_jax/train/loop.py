"""The training loop.

The work of step n (n steps are done when it is over) has one order: step -> log -> evaluate -> save
-> panels. Each happens where n is a multiple of its cadence and at the last step; a save also where
an evaluation gave a new best score, by labels or without, so that the best network is kept whatever
the two cadences are, and where the run is asked to stop.

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
from mrm_jax.config import Config, UsageError
from mrm_jax.data.pipeline import evaluation_set, selection_crops, train_batches
from mrm_jax.data.rare_class import open_sampler
from mrm_jax.train import hooks, hosts
from mrm_jax.train import workdir as folders
from mrm_jax.train.allocator import keep_memory
from mrm_jax.train.checkpoint import FOLDER, Checkpoints, DamagedError
from mrm_jax.train.console import Screen, banner, pace_text
from mrm_jax.train.mirror import Mirror
from mrm_jax.train.programs import FAILED, GO_ON, STOP, Fed, Programs, shared
from mrm_jax.train.run import Done, Run, alarm, evaluate, facts, push, save
from mrm_jax.train.sentinel import Sentinel, not_finite, save_fault
from mrm_jax.train.start import first_state, frozen_encoder, load
from mrm_jax.train.step import build, structure
from mrm_jax.train.stop import StopSignal
from mrm_jax.train.writer import Writer
from mrm_jax.types import Batch, RunError

FAULT = "fault"


def train(config: Config, workdir: Path, mirror: Mirror | None = None) -> int:
    """Trains in `workdir`, or goes on where it stopped; returns 0, also when it was asked to stop.

    mirror: where the run's folder is elsewhere (in a bucket, or host 0's) and `workdir` holds the
    small files.

    Raises UsageError or RunError with one line for the user.
    """
    with Screen(config.train.steps, quiet=not hosts.is_main()) as screen:
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
        _report(workdir)
        return 0
    sampler = open_sampler(config, say=screen.say)
    batches = train_batches(
        config,
        sampler=sampler,
        start_step=start,
        process_index=hosts.index(),
        process_count=hosts.count(),
    )
    first = sharding.put_batch(next(batches), mesh)  # faults in the data show before compilation
    crops = selection_crops(config)
    programs = shared(build, structure(config), mesh)
    program = programs.program
    sentinel = Sentinel(config.data.classes.names)
    try:
        state, known = first_state(config, program, mesh, checkpoints, weights)
    except DamagedError as error:
        getattr(batches, "close", lambda: None)()  # it reads ahead from the damaged one's step on
        screen.warn(_set_aside(checkpoints, start, error))
        return _train(config, workdir, mirror, screen)
    if known["sentinel"]:
        sentinel.remember(known["sentinel"])
    told = () if weights is None else weights.lines()
    for line in (*banner(mesh, str(home), state, start), *told):
        screen.say(line)
    frozen = jax.device_put(program.frozen(config, anchor), sharding.replicated(mesh))
    good = jax.device_put(np.True_, sharding.replicated(mesh))
    hosts.beat(start, "compiling")
    fed = Fed(first, sharding.put_wish(GO_ON, mesh))
    step, seconds = _compiled(programs, mesh, (state, good, frozen, fed), screen)
    begun_with = hooks.device_facts(mesh, start)
    if known["weights"]:
        begun_with["weights"] = known["weights"]
    if sampler:
        begun_with["rare_class_sampling"] = sampler.facts(config.data.classes.names)
    folders.begin(workdir, config, begun_with)
    writer = Writer(workdir, step=start)
    writer.write(start, {"perf/compile_seconds": seconds})
    run = Run(
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
        weights=known["weights"],
        pace=hooks.Pace(config.train.batch),
        step=step,
        inspect=programs.inspect,
        state=state,
        good=good,
    )
    push(run)  # a run killed before its first checkpoint is known by its config all the same
    with contextlib.closing(writer):
        if start and not known["scores"] and start % config.train.eval_every == 0:
            checkpoints.score(start, evaluate(run, start))  # it was asked to stop before
        code = _steps(run, start, first, batches)
    if int(run.state.step) == config.train.steps:
        _report(workdir)
        screen.say(f"report: {home / 'report.html'}")
    return code


def _set_aside(checkpoints: Checkpoints, step: int, error: DamagedError) -> str:
    """Sets the checkpoint of `step` aside for the one before it; says so in a line. Raises `error`
    where there is none, RunError where other hosts may have read their part of it."""
    line = checkpoints.aside(step)
    if line is None:
        raise error
    if hosts.count() > 1:
        raise RunError(f"On host {hosts.index()} {line} Give the same command again.") from error
    return line


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


def _report(workdir: Path) -> None:
    if hosts.is_main():
        hooks.write_report(workdir)


def _steps(run: Run, start: int, batch: Batch, batches: Iterator[Batch]) -> int:
    """All steps from `start` on, or until a signal; returns the exit code. The last save is
    complete then.
    """
    steps, number = run.config.train.steps, start
    wishes = {wish: sharding.put_wish(wish, run.mesh) for wish in (GO_ON, STOP, FAILED)}
    with StopSignal() as stop:
        try:
            for number in range(start + 1, steps + 1):
                fed = Fed(batch, wishes[_wish(run, stop)])
                with jax.transfer_guard("disallow"):
                    run.state, run.good, metrics = run.step(run.state, run.good, run.frozen, fed)
                run.unread.append(Done(number, metrics, batch))
                run.pace.step()
                following = _next(run, number, batches) if number < steps else batch
                while len(run.unread) > 1:
                    _read(run, run.unread.popleft())
                if hosts.count() == 1:
                    run.stopping = stop.received is not None
                if run.stopping or _due(run.config, number):
                    _between(run, number, batch)
                run.screen.advance(number)
                batch = following
                if run.stopping and number < steps:
                    break
            run.checkpoints.close()
        except BaseException as error:
            # With a host that is gone no save ever completes.
            if hosts.count() == 1 or isinstance(error, UsageError | RunError):
                with contextlib.suppress(RunError):  # the first error is the one to report
                    run.checkpoints.close()
            raise
        if run.stopping:
            name = "another host" if stop.received is None else stop.received.name
            run.screen.say(
                f"stopped by {name} after step {number}, which is saved; "
                "the same command goes on from there."
            )
        return 0


def _wish(run: Run, stop: StopSignal) -> int:
    if run.failure is not None:
        return FAILED
    return GO_ON if stop.received is None else STOP


def _every(number: int, cadence: int, steps: int) -> bool:
    return number % cadence == 0 or number == steps


def _due(config: Config, number: int) -> bool:
    train = config.train
    cadences = (train.eval_every, train.checkpoint_every, train.panels_every)
    return any(_every(number, cadence, train.steps) for cadence in cadences)


def _next(run: Run, number: int, batches: Iterator[Batch]) -> Batch:
    """The next batch on its way to the devices, while step `number` runs; where it cannot be read
    this one again, for steps that change nothing."""
    hosts.beat(number, "reading")
    if run.failure is None:
        began = time.perf_counter()
        try:
            batch = next(batches)
        except Exception as error:
            run.failure = error
        else:
            run.pace.wait(time.perf_counter() - began)
            return sharding.put_batch(batch, run.mesh)
    return run.unread[-1].batch


def _catch_up(run: Run) -> None:
    while run.unread:
        _read(run, run.unread.popleft())


def _read(run: Run, done: Done) -> None:
    """Waits for a step's metrics, checks them and logs them where they are due."""
    hosts.beat(done.number + len(run.unread), "computing")
    values = jax.device_get(done.metrics)
    wish = int(values.pop("wish"))
    run.stopping |= wish == STOP
    if wish == FAILED:
        _stop_at_failure(run)
    if not values.pop("finite"):
        _stop_at_fault(run, done, values)
    shares = values.pop("teacher/class_share", None)
    alarms = {}
    if shares is not None:
        sure = float(values["teacher/confident_share"])
        alarms = run.sentinel.see_shares(shares, done.number, confident=sure)
    alarm(run, done.number, "share", alarms)
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


def _stop_at_failure(run: Run) -> None:
    """Saves what was reached before a host could not read its pictures. Raises its error there."""
    if good := int(run.state.step):
        save(run, good, {})
    raise run.failure or RunError("Another host could not read its pictures; it says which.")


def _stop_at_fault(run: Run, done: Done, values: dict[str, np.ndarray]) -> None:
    """Saves the last good state and what the faulty step computed from. Raises RunError."""
    good = int(run.state.step)
    batch = sharding.gathered(done.batch, run.mesh)
    key, step = sharding.gathered((run.state.root_key, run.state.step), run.mesh)
    draws = jax.jit(run.program.draw)(key, step, batch.index)
    path = save_fault(run.workdir / FAULT, done.number, batch, draws, values)
    run.writer.write(done.number, {"alarm/not_finite": f"step {done.number} is not finite"})
    if good:
        save(run, good, {})
    names = ", ".join(not_finite(values)) or "a gradient"
    raise RunError(
        f"Step {done.number} is not finite ({names}) and was not applied; the state after step "
        f"{good} is kept. Its pictures, labels and draws are in {path}: look whether one of them "
        f"is odd; if none is, lower the learning rates, lengthen optimizer.warmup or use "
        f"model.dtype=float32 in a new workdir."
    )


def _between(run: Run, number: int, batch: Batch) -> None:
    """Evaluate, save, panels: what is due after step `number`.

    Whoever asks to stop may not wait for an evaluation: it is made up for on resuming.
    """
    _catch_up(run)
    began = time.perf_counter()
    train = run.config.train
    if run.stopping and number < train.steps:
        save(run, number, {})
        return
    scores: dict[str, float] = {}
    if _every(number, train.eval_every, train.steps):
        try:
            scores = evaluate(run, number)
        except Exception:
            save(run, number, {})  # a broken picture must not cost the steps since the last one
            raise
    best = run.checkpoints.is_best(facts(run, scores))
    if best or _every(number, train.checkpoint_every, train.steps):
        save(run, number, scores)
    if _every(number, train.panels_every, train.steps):
        views = sharding.gathered(run.inspect(run.state, run.frozen, batch), run.mesh)
        if hosts.is_main():
            hooks.save_views(run.config, run.workdir, number, views)
    run.writer.flush()
    push(run)
    run.pace.pause(time.perf_counter() - began)
