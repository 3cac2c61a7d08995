"""The end of the pipeline: what grain reads ahead, as batches, and the end of who reads it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import grain
import numpy as np
from absl import flags

from mrm_jax import children

if TYPE_CHECKING:
    from mrm_jax.types import Batch


class Batches(Iterator["Batch"]):
    """Batches of the arrays that grain's `dataset` gives, read ahead in threads, or in `workers`
    processes, which start with the first batch. `close` ends them. `check` is called before each
    batch and raises where what is read turned out wrong (`verified.ShardWatch`).
    """

    def __init__(
        self, dataset: Any, workers: int, check: Callable[[], None] = lambda: None
    ) -> None:
        self._check = check
        if workers:
            # grain's worker start reads absl flags, which nothing parses outside absl.app.run.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), _serve)
        self._dataset, self._processes = dataset, workers > 0
        self._opened: list[Any] = []
        # At the latest before the interpreter is taken down, in which grain's own would fail.
        self._closing = weakref.finalize(self, _close, self._opened)
        if not workers:
            self._opened.append(iter(dataset))

    def __next__(self) -> Batch:
        self._check()
        if self._opened:
            return _as_batch(next(self._opened[0]), copied=self._processes)
        # In a thread, so that this one goes on hearing what the processes are not to hear.
        first: Future[dict[str, np.ndarray]] = Future()
        threading.Thread(target=self._start, args=(first,), daemon=True).start()
        return _as_batch(first.result(), copied=True)

    def _start(self, first: Future[dict[str, np.ndarray]]) -> None:
        try:
            with children.starting():
                self._opened.append(iter(self._dataset))
                first.set_result(next(self._opened[0]))
        except BaseException as error:
            first.set_exception(error)

    def close(self) -> None:
        """Ends the threads or processes that read, and gives their memory back."""
        self._closing()


def _serve(index: int, count: int) -> None:
    children.serve()


def _close(opened: list[Any]) -> None:
    while opened:
        opened.pop().close()


def _as_batch(arrays: dict[str, np.ndarray], *, copied: bool) -> Batch:
    # Imported here: loader processes import this module and have no use for jax.
    from mrm_jax.types import Batch, Labelled, Unlabelled

    # What comes from a loader process lives in shared memory that grain takes back, and says so at
    # length when a batch outlives its iterator.
    if copied:
        arrays = {name: np.array(value, subok=False) for name, value in arrays.items()}

    return Batch(
        source=Labelled(image=arrays["source_image"], label=arrays["source_label"]),
        target=Unlabelled(image=arrays["target_image"], valid=arrays["target_valid"]),
        index=arrays["index"],
    )
