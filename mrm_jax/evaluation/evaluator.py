"""Scores of networks on labelled pictures: every picture read once, counted on the device, added up
exactly.

A picture goes through the networks as `TrainedNetwork` reads it, and what they say is brought to
the size of its label, which is never resized. Pictures of equal sizes share a forward, the last one
filled with rows that count nowhere, so that there is one compilation for every size.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from mrm_jax import stop
from mrm_jax.config import Config
from mrm_jax.errors import UsageError
from mrm_jax.evaluation import calibration
from mrm_jax.evaluation import confusion as counting
from mrm_jax.evaluation.network import TrainedNetwork, on_device, spread_rows, stacked
from mrm_jax.evaluation.reading import grouped, read_ahead
from mrm_jax.evaluation.scores import Counts, EvaluationResult, scored
from mrm_jax.label_ids import IGNORE
from mrm_jax.types import Tree

if TYPE_CHECKING:
    from mrm_jax.data.pipeline import Example


@partial(jax.jit, static_argnames="classes")
def _count(
    ids: jax.Array, confidence: jax.Array, label: jax.Array, classes: int
) -> tuple[jax.Array, jax.Array]:
    matrix = counting.confusion_matrix(ids, label, classes)
    return matrix, calibration.confidence_counts(confidence, ids, label)


class _Labelled(NamedTuple):
    """A picture as the networks read it, see `Network.versions`, and its label u8[H,W]."""

    name: str
    versions: tuple[np.ndarray, ...]
    label: np.ndarray


@dataclass
class _Total:
    """Counts of one network, confusions and confidences: sums in int64 on the host, the latest
    still on their way from the device.
    """

    sums: tuple[np.ndarray, ...]
    pending: deque[tuple[jax.Array, ...]] = field(default_factory=deque)

    def add(self, counts: tuple[jax.Array, ...], *, keep: int) -> None:
        self.pending.append(counts)
        self.settle(keep)

    def settle(self, keep: int = 0) -> tuple[np.ndarray, ...]:
        """Waits for all but the `keep` latest."""
        while len(self.pending) > keep:
            for total, found in zip(self.sums, self.pending.popleft(), strict=True):
                total += np.asarray(jax.device_get(found), np.int64)
        return self.sums


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
    # Nothing here is a training step: reading results on the host is the purpose.
    with jax.transfer_guard("allow"):
        nets = [TrainedNetwork(config, model, on_device(v), name) for name, v in networks.items()]
        shapes = [(len(nets[0].classes),) * 2, (calibration.LEVELS, 2)]
        totals = {net.name: _Total(tuple(np.zeros(s, np.int64) for s in shapes)) for net in nets}
        inputs: set[tuple[int, int]] = set()
        labels: set[tuple[int, int]] = set()
        done, rows = 0, config.evaluation.batch
        for group in grouped(_pictures(nets[0], examples), _sizes, rows):
            stop.look()
            inputs.add(nets[0].reference(group[0].versions).shape[:2])
            labels.add(group[0].label.shape)
            for net in nets:
                predicted = _predicted(net, group, rows, totals[net.name])
                if on_prediction is not None:
                    for example, ids in zip(group, predicted(), strict=False):
                        on_prediction(net.name, example.name, ids)
            done += len(group)
            if progress is not None:
                progress(done, len(examples))
        confusions, confidences = (
            {name: total.settle()[i] for name, total in totals.items()} for i in range(2)
        )
    return Counts(confusions, done, inputs, labels, confidences)


def _sizes(picture: _Labelled) -> tuple:
    return *(version.shape for version in picture.versions), picture.label.shape


def _predicted(
    net: TrainedNetwork, group: list[_Labelled], rows: int, total: _Total
) -> Callable[[], np.ndarray]:
    """Counts what `net` makes of pictures of equal size, filled up to `rows` with ones that count
    nowhere; gives ids u8[rows,H,W] when they are asked for."""
    versions = stacked([picture.versions for picture in group], rows)
    (label,) = stacked([(picture.label,) for picture in group], rows)
    label[len(group) :] = IGNORE
    strips = []
    for strip in net.strips(versions, label.shape[1:]):
        ids, confidence = strip.value
        part = label[:, strip.top : strip.top + strip.rows]
        missing = [(0, at - of) for at, of in zip(ids.shape, part.shape, strict=True)]
        part = np.pad(part, missing, constant_values=IGNORE)
        (part,) = spread_rows(net.variables, part)
        total.add(_count(ids, confidence, part, classes=len(net.classes)), keep=2)
        strips.append(strip._replace(value=ids))
    return lambda: np.concatenate([strip.cut() for strip in strips], axis=1)


def _pictures(net: TrainedNetwork, examples: Sequence[Example]) -> Iterator[_Labelled]:
    return read_ahead(partial(_prepared, examples, net), len(examples))


def _prepared(examples: Sequence[Example], net: TrainedNetwork, index: int) -> _Labelled:
    example, classes = examples[index], len(net.classes)
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
    return _Labelled(example.name, net.versions(example.image), example.label)
