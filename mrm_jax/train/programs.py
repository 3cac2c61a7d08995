"""What a run compiles. Runs of one process that differ in traced numbers, seed and data alone share
it (`ablate`): their configs have one `step.structure`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mrm_jax import sharding
from mrm_jax.config import Config
from mrm_jax.train.step import Program
from mrm_jax.types import Batch, Frozen, TrainState

GO_ON, STOP, FAILED = 0, 1, 2
"""What a host wishes of a step: that it is one of many, that it is the last, or, where its pictures
could not be read, that it changes nothing. All hosts get the highest as the metric `wish`, and so
do the same after the same step.
"""


class Fed(NamedTuple):
    """What a step is given besides the state: the batch, and each host's wish, i32[devices]."""

    batch: Batch
    wishes: jax.Array


class Programs:
    """The step and the pictures of its views, each compiled when it is first asked for."""

    def __init__(self, program: Program, mesh: jax.sharding.Mesh, *, optimise: bool):
        quick = sharding.quick(mesh)
        self.program = program
        self.inspect = jax.jit(program.inspect, compiler_options=quick)  # runs a few times at most
        self._options = None if optimise else quick
        self._step: Any = None

    def step(self, mesh: jax.sharding.Mesh, arguments: tuple[Any, ...]) -> Any:
        """The latched step, compiled; see `lower`."""
        if self._step is None:
            lowered = lower(self.program, mesh, arguments)
            self._step = lowered.compile(compiler_options=self._options)
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

    return sharding.jit_step(latched, arguments[0], mesh, carried=1).lower(*arguments)


@functools.lru_cache(maxsize=1)  # runs of one structure come in a row
def shared(make: Callable[[Config], Program], config: Config, mesh: jax.sharding.Mesh) -> Programs:
    """The programs of a `structure`, those of the last run where its structure was the same.

    make: `step.build_step`, part of the key so that tests may replace it.
    """
    return Programs(make(config), mesh, optimise=config.train.optimise)
