"""What the devices and the host did in a few steps of a run, written down by JAX's profiler."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from mrm_jax.config import profiled
from mrm_jax.hosts import group
from mrm_jax.paths import what_is_wrong
from mrm_jax.runs import workdir as folders
from mrm_jax.train.run import Run, push


class Trace:
    """Writes the steps of `config.train.profile` that `run` still makes to its
    `profile/host-<index>`, one folder a host; `close` ends it early."""

    def __init__(self, run: Run, start: int) -> None:
        self._run, self._span = run, profiled(run.config)
        self._folder = run.workdir / folders.PROFILE / f"host-{group.host_index()}"
        self._on = False
        if self._span and self._span[-1] <= start:
            asked = run.config.train.profile
            run.screen.say(f"config.train.profile={asked}: those steps are done; no trace.")

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the call of step `number`; nothing of the step before the first is traced."""
        if self._span is None or number not in self._span:
            yield
            return
        if not self._on:
            jax.block_until_ready(self._run.state)
            # Without every Python call, which would slow the host down.
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0
            jax.profiler.start_trace(
                self._folder, create_perfetto_trace=True, profiler_options=options
            )
            self._on = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def after(self, number: int) -> None:
        """Once step `number` was started and the next batch read."""
        if self._on and self._span is not None and number == self._span[-1]:
            jax.block_until_ready(self._run.state)
            self.close()

    def close(self) -> None:
        """Writes what was traced so far; where it cannot be written, the run goes on without."""
        if not self._on:
            return
        self._on, run = False, self._run
        asked = f"config.train.profile={run.config.train.profile}"
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError) as error:
            run.screen.warn(f"{asked}: the trace could not be written: {what_is_wrong(error)}.")
            return
        push(run, own=folders.PROFILE)
        home = run.workdir if run.mirror is None else run.mirror.remote
        run.screen.say(f"{asked}: the trace is in {home / folders.PROFILE / self._folder.name}")
