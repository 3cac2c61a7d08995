"""What was counted on labelled pictures, and the scores that follow from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mrm_jax.config import Config
from mrm_jax.evaluation import confusion as counting
from mrm_jax.evaluation import protocols


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of one network under `protocol`, as shares of 1.

    `confusion` i64[K,K]: rows truth, columns prediction, in train-id order; `iou` f64[K], NaN where
    neither truth nor prediction has the class; `mean_iou` over the classes counted, NaN left out;
    `also`: the protocol's further means by name.
    `seconds` holds reading and compilation.
    """

    protocol: protocols.Protocol
    classes: tuple[str, ...]
    confusion: np.ndarray
    iou: np.ndarray
    mean_iou: float
    pixel_accuracy: float
    also: dict[str, float]
    seconds: float

    def metrics(self) -> dict[str, float]:
        """Names of metrics.jsonl (below `eval/<network>/`) and values; classes that never occurred
        are left out.
        """
        named = {
            f"IoU/{name}": value for name, value in self.per_class().items() if value is not None
        }
        return {"mIoU": self.mean_iou, **self.also, "pixel_accuracy": self.pixel_accuracy, **named}

    def per_class(self) -> dict[str, float | None]:
        """IoU of every class the network tells apart, None where neither truth nor prediction has
        it.
        """
        return {name: _finite(value) for name, value in zip(self.classes, self.iou, strict=True)}

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON values, as evaluation.json holds it."""
        return {
            "protocol": self.protocol.as_dict(),
            "classes_counted": list(self.protocol.classes_counted),
            "mIoU": _finite(self.mean_iou),
            **{name: _finite(value) for name, value in self.also.items()},
            "pixel_accuracy": _finite(self.pixel_accuracy),
            "IoU": self.per_class(),
            "confusion": self.confusion.tolist(),
            "seconds": round(self.seconds, 3),
        }


def evaluation_document(found: Mapping[str, EvaluationResult], **facts: Any) -> dict[str, Any]:
    """What evaluation.json holds: the first network's scores, the others' under their names.

    `protocol.network` names the first. `facts` (JSON values, such as the step) stand beside them.
    """
    (_, first), *others = found.items()
    return {**facts, **first.as_dict(), **{name: other.as_dict() for name, other in others}}


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


class Counts(NamedTuple):
    """What several networks made of pictures, before it becomes scores; those of parts of a set add
    up exactly.

    `confusions`: i64[K,K] by network; `inputs`, `labels`: the sizes (height, width) that occurred.
    """

    confusions: dict[str, np.ndarray]
    pictures: int
    inputs: set[tuple[int, int]]
    labels: set[tuple[int, int]]

    def __add__(self, other: Any) -> Counts:
        sums = {name: found + other.confusions[name] for name, found in self.confusions.items()}
        return Counts(
            sums,
            self.pictures + other.pictures,
            self.inputs | other.inputs,
            self.labels | other.labels,
        )

    def as_json(self) -> list[Any]:
        """Everything as JSON values."""
        confusions = {name: found.tolist() for name, found in self.confusions.items()}
        return [confusions, self.pictures, sorted(self.inputs), sorted(self.labels)]

    @classmethod
    def from_json(cls, value: list[Any]) -> Counts:
        """The inverse of `as_json`."""
        confusions, pictures, *sizes = value
        inputs, labels = ({(height, width) for height, width in found} for found in sizes)
        arrays = {name: np.asarray(found, np.int64) for name, found in confusions.items()}
        return cls(arrays, pictures, inputs, labels)


def scored(config: Config, counts: Counts, seconds: float) -> dict[str, EvaluationResult]:
    """The scores that follow from `counts`, which took `seconds`, by network."""
    result = {}
    for name, confusion in counts.confusions.items():
        protocol = protocols.protocol_of(
            config,
            network=name,
            pictures=counts.pictures,
            input_sizes=counts.inputs,
            label_sizes=counts.labels,
        )
        result[name] = _evaluation(config, confusion, protocol, seconds)
    return result


def _evaluation(
    config: Config, confusion: np.ndarray, protocol: protocols.Protocol, seconds: float
) -> EvaluationResult:
    found = counting.scores(confusion, protocols.counted(config))
    return EvaluationResult(
        protocol=protocol,
        classes=config.data.classes.names,
        confusion=confusion,
        iou=found.iou,
        mean_iou=found.mean_iou,
        pixel_accuracy=found.pixel_accuracy,
        also={
            name: counting.scores(confusion, protocols.train_ids(config, tuple(names))).mean_iou
            for name, *names in config.evaluation.also
        },
        seconds=seconds,
    )
