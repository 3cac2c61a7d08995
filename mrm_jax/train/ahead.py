"""What evaluations and panels will run, compiled by a thread beside the first steps, so that no
step waits for it and nothing is left to compile after the last one. XLA compiles without Python's
lock. It computes on a blank network, so a run's results know nothing of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mrm_jax.config import Config, detail_crop
from mrm_jax.data.pipeline import Example
from mrm_jax.evaluation.evaluator import count_predictions
from mrm_jax.models.build import build_segmentor
from mrm_jax.train import hooks
from mrm_jax.train.programs import Programs
from mrm_jax.types import TrainState, Unlabelled


class Ahead:
    """`pieces` of work, done one after the other in a thread from `begin` on. One that fails is
    left: who needs its program fails in the same way, and says so."""

    def __init__(self, pieces: Sequence[Callable[[], object]] = ()) -> None:
        self._pieces = list(pieces)
        # No daemon: a process that ends while one comes back from XLA would abort.
        self._thread = threading.Thread(target=self._work, name="ahead")

    def _work(self) -> None:
        while self._pieces:
            try:
                self._pieces.pop(0)()
            except BaseException:  # also Stopped, which is the main thread's to answer
                return

    def begin(self) -> None:
        """Starts the thread, once."""
        if self._pieces and self._thread.ident is None:
            self._thread.start()

    def wait(self) -> None:
        """Until all that was begun is done."""
        if self._thread.ident is not None:
            self._thread.join()

    def close(self) -> None:
        """Begins no further piece."""
        self._pieces.clear()


def of_run(
    config: Config,
    programs: Programs,
    arguments: tuple[Any, ...],
    examples: Sequence[Example],
    crops: Unlabelled | None,
) -> Ahead:
    """The pieces of a run on the CPUs of one host; none elsewhere: an accelerator has no memory to
    spare beside a step, and several hosts would have to agree.

    arguments: (state, frozen, batch), as a step gets them. examples, crops: as evaluation reads
    them; the programs are those for pictures of the first one's size.
    """
    shapes = jax.tree.map(_shape, arguments)
    leaf = jax.tree.leaves(arguments)[0]
    if jax.process_count() > 1 or leaf.sharding.mesh.devices.flat[0].platform != "cpu":
        return Ahead()

    def blank() -> TrainState:
        return jax.tree.map(_zeros, shapes[0].replace(opt_state={}))

    def select() -> None:
        some = jax.tree.map(lambda crop: crop[: config.evaluation.batch], crops)
        hooks.select(config, programs.program.networks, blank(), some)

    def evaluate() -> None:
        model = build_segmentor(config.model, len(config.data.classes.names), detail_crop(config))
        count_predictions(config, model, hooks.evaluated_networks(blank()), examples[:1])

    pieces: list[Callable[[], object]] = [lambda: programs.inspect.lower(*shapes).compile()]
    pieces = [evaluate, *pieces] if examples else pieces
    return Ahead([select, *pieces] if crops is not None else pieces)


def _shape(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
