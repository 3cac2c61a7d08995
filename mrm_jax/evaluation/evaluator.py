"""Scores of networks on labelled pictures: every picture read once, counted on the device, added up
exactly.

A picture is fitted to `data.evaluation.resize` with OpenCV, as in training, and goes through the
network at that size; the logits are brought to the size of its label, which is never resized.
Pictures of equal sizes share a forward, the last one filled with rows that count nowhere, so that
there is one compilation for every pair of sizes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mrm_jax import stop
from mrm_jax.config import Config, evaluation_domain, input_stats, smallest_picture
from mrm_jax.data.transforms import keep_ratio_size, resize_image
from mrm_jax.errors import UsageError
from mrm_jax.evaluation import confusion as counting
from mrm_jax.evaluation.inference import classify, predict
from mrm_jax.evaluation.scores import Counts, EvaluationResult, scored
from mrm_jax.label_ids import IGNORE
from mrm_jax.ops.normalise import normalise
from mrm_jax.sharding import over_batch
from mrm_jax.types import Tree

_T = TypeVar("_T")

READERS = 2
"""Threads that read pictures ahead of the device."""
AHEAD = 8
"""Pictures read ahead."""


class Example(Protocol):
    """A labelled picture: `image` RGB u8[H,W,3], `label` train ids u8[H,W] of the same size, 255 =
    ignore.
    """

    @property
    def name(self) -> str:
        """What identifies the picture."""
        ...

    @property
    def image(self) -> np.ndarray:
        """RGB u8[H,W,3]."""
        ...

    @property
    def label(self) -> np.ndarray:
        """Train ids u8[H,W]."""
        ...


def fit(image: np.ndarray, box: tuple[int, int] | None) -> np.ndarray:
    """The picture u8[H,W,3] as the network reads it: fitted into `box` = (long, short) px, or as it
    is for None.
    """
    height, width = image.shape[:2]
    return image if box is None else resize_image(image, keep_ratio_size(height, width, box))


def class_ids(
    config: Config, model: nn.Module, variables: Tree, image: Any, size: tuple[int, int]
) -> jax.Array:
    """Predicted train ids u8[B,h,w] at `size` of fitted pictures u8[B,H,W,3], under the protocol of
    `config`.
    """
    protocol = config.evaluation
    logits = predict(
        model,
        variables,
        _normalise(image, input_stats(config.model)),
        mode=protocol.mode,
        window=protocol.window,
        stride=protocol.stride,
        smallest=smallest_picture(config.model),
    )
    return classify(logits, size=size)


_normalise = jax.jit(normalise, static_argnames="stats")
_count = jax.jit(counting.confusion_matrix, static_argnames="classes")


class _Batch(NamedTuple):
    names: tuple[str, ...]
    image: np.ndarray
    label: np.ndarray


@dataclass
class _Total:
    """Counts of one network: sums in int64 on the host, the latest still on their way from the
    device.
    """

    sum: np.ndarray
    pending: deque[jax.Array] = field(default_factory=deque)

    def add(self, counts: jax.Array, *, keep: int) -> None:
        self.pending.append(counts)
        while len(self.pending) > keep:
            self.sum += np.asarray(jax.device_get(self.pending.popleft()), np.int64)

    def finish(self) -> np.ndarray:
        while self.pending:
            self.sum += np.asarray(jax.device_get(self.pending.popleft()), np.int64)
        return self.sum


def evaluate_networks(
    config: Config,
    model: nn.Module,
    networks: Mapping[str, Tree],
    examples: Sequence[Example],
    *,
    progress: Callable[[int, int], None] | None = None,
    on_prediction: Callable[[str, str, np.ndarray], None] | None = None,
) -> dict[str, EvaluationResult]:
    """Scores of several sets of variables of one `model` ("student", "teacher") on `examples`;
    see `count_predictions`.
    """
    start = time.perf_counter()
    how = {"progress": progress, "on_prediction": on_prediction}
    counts = count_predictions(config, model, networks, examples, **how)
    return scored(config, counts, time.perf_counter() - start)


def count_predictions(
    config: Config,
    model: nn.Module,
    networks: Mapping[str, Tree],
    examples: Sequence[Example],
    *,
    progress: Callable[[int, int], None] | None = None,
    on_prediction: Callable[[str, str, np.ndarray], None] | None = None,
) -> Counts:
    """What `networks` predict for `examples`, each of which is read once.

    networks: name to {"params", "batch_stats"} of the segmentor. progress(done, total) is called
    with numbers of pictures; on_prediction(network, name, ids u8[H,W]) with every prediction at its
    label's size, in no particular order. Raises UsageError for a label that is neither a class nor
    255, or of another size than its picture.
    """
    classes = len(config.data.classes.names)
    totals = {name: _Total(np.zeros((classes, classes), np.int64)) for name in networks}
    inputs: set[tuple[int, int]] = set()
    labels: set[tuple[int, int]] = set()
    done = 0
    # Nothing here is a training step: reading results on the host is the purpose.
    with jax.transfer_guard("allow"):
        networks = {name: on_device(variables) for name, variables in networks.items()}
        for batch in _batches(examples, config, classes):
            stop.look()
            size = (batch.label.shape[1], batch.label.shape[2])
            inputs.add((batch.image.shape[1], batch.image.shape[2]))
            labels.add(size)
            for name, variables in networks.items():
                image, label = spread_over_devices(variables, batch.image, batch.label)
                ids = class_ids(config, model, variables, image, size)
                totals[name].add(_count(ids, label, classes=classes), keep=2)
                if on_prediction is not None:
                    host = np.asarray(jax.device_get(ids))
                    for row, example in enumerate(batch.names):
                        on_prediction(name, example, host[row])
            done += len(batch.names)
            if progress is not None:
                progress(done, len(examples))
        sums = {name: total.finish() for name, total in totals.items()}
    return Counts(sums, done, inputs, labels)


def on_device(variables: Tree) -> Tree:
    """`variables` on the device: numpy arrays, as a checkpoint gives them, are moved once."""
    if isinstance(jax.tree.leaves(variables)[0], jax.Array):
        return variables
    return jax.device_put(variables)


def spread_over_devices(variables: Tree, *arrays: np.ndarray) -> tuple[Any, ...]:
    """`arrays` [B,...] spread over the devices of `variables` where B divides evenly."""
    first = jax.tree.leaves(variables)[0]
    lying = first.sharding if isinstance(first, jax.Array) else None
    mesh = lying.mesh if isinstance(lying, NamedSharding) else None
    if not isinstance(mesh, Mesh) or len(arrays[0]) % mesh.size:
        return arrays
    rows = over_batch(mesh)
    return tuple(jax.device_put(array, rows) for array in arrays)


def _batches(examples: Sequence[Example], config: Config, classes: int) -> Iterator[_Batch]:
    """Batches of `evaluation.batch` pictures of equal sizes; rows that fill the last ones have the
    label 255.
    """
    rows = config.evaluation.batch
    box = evaluation_domain(config).resize
    waiting: dict[tuple, list[tuple[str, np.ndarray, np.ndarray]]] = {}
    for entry in _read_ahead(partial(_prepared, examples, box, classes), len(examples)):
        group = waiting.setdefault((entry[1].shape, entry[2].shape), [])
        group.append(entry)
        if len(group) == rows:
            yield _stack(group, rows)
            group.clear()
    for group in waiting.values():
        if group:
            yield _stack(group, rows)


def _prepared(
    examples: Sequence[Example], box: tuple[int, int] | None, classes: int, index: int
) -> tuple[str, np.ndarray, np.ndarray]:
    example = examples[index]
    if example.image.shape[:2] != example.label.shape:
        raise UsageError.at(
            example.name,
            f": the picture is {example.image.shape[:2]}, its label {example.label.shape} "
            "(rows, columns); they must be equal.",
        )
    wrong = (example.label >= classes) & (example.label != IGNORE)
    if wrong.any():
        raise UsageError.at(
            example.name,
            f": its label holds {int(example.label[wrong][0])}, which is neither one of "
            f"{classes} classes nor {IGNORE}; check raw_ids and ignored_ids.",
        )
    return example.name, fit(example.image, box), example.label


def _stack(group: list[tuple[str, np.ndarray, np.ndarray]], rows: int) -> _Batch:
    names, images, labels = zip(*group, strict=True)
    missing = rows - len(group)
    images += (np.zeros_like(images[0]),) * missing
    labels += (np.full_like(labels[0], IGNORE),) * missing
    return _Batch(names, np.stack(images), np.stack(labels))


def _read_ahead(read: Callable[[int], _T], count: int) -> Iterator[_T]:
    """`read(0)`, `read(1)`, ... in order, with up to `AHEAD` of them under way in threads."""
    pool = ThreadPoolExecutor(READERS)
    queue: deque[Future[_T]] = deque(pool.submit(read, i) for i in range(min(AHEAD, count)))
    following = len(queue)
    try:
        while queue:
            item = queue.popleft().result()
            if following < count:
                queue.append(pool.submit(read, following))
                following += 1
            yield item
    finally:
        # Whoever ends early, say for a stop, does not wait for a disk that hangs.
        pool.shutdown(wait=False, cancel_futures=True)
