"""What a run compiles. Runs of one process that differ in traced numbers, seed and data alone share
it (`ablate`): their configs have one `step.structure`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mrm_jax import allocator, sharding
from mrm_jax.config import Config
from mrm_jax.train import kept
from mrm_jax.train.step import Program, build_step
from mrm_jax.types import Batch, Frozen, TrainState

GO_ON, STOP, FAILED = 0, 1, 2
"""What a host tells the others with the step that it starts. GO_ON: another step follows. STOP: it
was asked to stop, so this step is the last and is saved. FAILED: it could not read its pictures, so
this step is to change nothing and the run ends. One host cannot stop alone: the others would wait
for it in the next step for ever. So the step computes the largest of all hosts' wishes, its metric
`wish`, and all of them do what that says.
"""


class Fed(NamedTuple):
    """What a step is given besides the state: the batch, and each host's wish, i32[devices]."""

    batch: Batch
    wishes: jax.Array


class Programs:
    """The step and the pictures of its views, each compiled when it is first asked for."""

    def __init__(self, program: Program, mesh: jax.sharding.Mesh, config: Config, *, keep: bool):
        quick = sharding.quick(mesh)
        self.program = program
        self._config, self._keep = config, keep
        self.inspect = jax.jit(program.inspect, compiler_options=quick)  # runs a few times at most
        self._options = None if config.train.optimise else quick
        self._step: Any = None

    def step(self, mesh: jax.sharding.Mesh, arguments: tuple[Any, ...]) -> Any:
        """The latched step, compiled; see `lower`."""

        def make() -> Any:
            lowered = lower(self.program, mesh, arguments)
            return lowered.compile(compiler_options=self._options)

        if self._step is None:
            key = (self._config, self._options)
            self._step = kept.step(key, arguments, make) if self._keep else make()
            allocator.release()
        return self._step


def lower(program: Program, mesh: jax.sharding.Mesh, arguments: tuple[Any, ...]) -> Any:
    """The latched step, lowered for `arguments`, which may be abstract: (state, good, frozen, fed)
    -> (state, good, metrics); `state` is donated. After a step that is not finite or that failed,
    none changes the state.
    """

    def latched(state: TrainState, good: jax.Array, frozen: Frozen, fed: Fed) -> Any:
        new, metrics = program.train_step(state, frozen, fed.batch)
        wish = fed.wishes.max()
        good &= wish < FAILED
        kept = jax.tree.map(lambda ours, theirs: jnp.where(good, ours, theirs), new, state)
        return kept, good & metrics["finite"], {**metrics, "wish": wish}

    with _uncollected():
        return sharding.jit_step(latched, arguments[0], mesh, carried=1).lower(*arguments)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's collection of cycles: of the many objects of a trace hardly any is rubbish,
    and to look for it took a quarter of the time of tracing and lowering the quickstart's step."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@functools.lru_cache(maxsize=1)  # runs of one structure come in a row
def shared(make: Callable[[Config], Program], config: Config, mesh: jax.sharding.Mesh) -> Programs:
    """The programs of a `structure`, those of the last run where its structure was the same.

    make: `step.build_step`, part of the key so that tests may replace it: such a step is not kept.
    """
    return Programs(make(config), mesh, config, keep=make is build_step)
