"""What was counted on labelled pictures, and the scores that follow from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mrm_jax.config import Config
from mrm_jax.evaluation import calibration, protocols
from mrm_jax.evaluation import confusion as counting


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of one network under `protocol`, as shares of 1.

    `confusion` i64[K,K]: rows truth, columns prediction, in train-id order; `iou` f64[K], NaN where
    neither truth nor prediction has the class; `mean_iou` over the classes counted, NaN left out;
    `also`: the protocol's further means by name; `calibration_error`: see `calibration.py`.
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
    calibration_error: float = math.nan

    def covered(self) -> dict[str, tuple[int, int]]:
        """Of every mean by its name: how many classes it is over, and how many it counts; what
        neither truth nor prediction has is left out of it.
        """
        counted = {"mIoU": self.protocol.classes_counted}
        counted |= {name: tuple(names) for name, *names in self.protocol.also}
        found = self.per_class()
        return {
            mean: (sum(found[name] is not None for name in names), len(names))
            for mean, names in counted.items()
        }

    def sentence(self) -> str:
        """The protocol in one line, and how many classes its means cover where that is not all."""
        means = [
            f"{mean} covers {classes} of {of} classes: the others are in no label and no prediction"
            for mean, (classes, of) in self.covered().items()
            if classes < of
        ]
        return "; ".join([self.protocol.sentence(), *means])

    def metrics(self) -> dict[str, float]:
        """Names of metrics.jsonl (below `eval/<network>/`) and values; classes that never occurred
        are left out. `classes_in_<mean>`: how many a mean is over.
        """
        named = {
            f"IoU/{name}": value for name, value in self.per_class().items() if value is not None
        }
        over = {f"classes_in_{name}": float(n) for name, (n, _) in self.covered().items()}
        means = {"mIoU": self.mean_iou, **self.also, "pixel_accuracy": self.pixel_accuracy}
        if not math.isnan(self.calibration_error):
            means["ECE"] = self.calibration_error
        return {**means, **over, **named}

    def per_class(self) -> dict[str, float | None]:
        """IoU of every class the network tells apart, None where neither truth nor prediction has
        it.
        """
        return {name: _finite(value) for name, value in zip(self.classes, self.iou, strict=True)}

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON values, as evaluation.json holds it."""
        return {
            "protocol": {**self.protocol.as_dict(), "sentence": self.sentence()},
            "classes_counted": list(self.protocol.classes_counted),
            "classes_covered": {name: n for name, (n, _) in self.covered().items()},
            "mIoU": _finite(self.mean_iou),
            **{name: _finite(value) for name, value in self.also.items()},
            "pixel_accuracy": _finite(self.pixel_accuracy),
            "ECE": _finite(self.calibration_error),
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

    `confusions`: i64[K,K] by network; `inputs`, `labels`: the sizes (height, width) that occurred;
    `confidences`: i64[L,2] by network, see `calibration.confidence_counts`.
    """

    confusions: dict[str, np.ndarray]
    pictures: int
    inputs: set[tuple[int, int]]
    labels: set[tuple[int, int]]
    confidences: dict[str, np.ndarray]

    def __add__(self, other: Any) -> Counts:
        return Counts(
            _added(self.confusions, other.confusions),
            self.pictures + other.pictures,
            self.inputs | other.inputs,
            self.labels | other.labels,
            _added(self.confidences, other.confidences),
        )

    def as_json(self) -> list[Any]:
        """Everything as JSON values."""
        confusions, confidences = (
            {name: found.tolist() for name, found in counts.items()}
            for counts in (self.confusions, self.confidences)
        )
        return [confusions, self.pictures, sorted(self.inputs), sorted(self.labels), confidences]

    @classmethod
    def from_json(cls, value: list[Any]) -> Counts:
        """The inverse of `as_json`."""
        confusions, pictures, inputs, labels, confidences = value
        return cls(
            _arrays(confusions), pictures, _pairs(inputs), _pairs(labels), _arrays(confidences)
        )


def _arrays(counts: dict[str, list]) -> dict[str, np.ndarray]:
    return {name: np.asarray(found, np.int64) for name, found in counts.items()}


def _pairs(sizes: list) -> set[tuple[int, int]]:
    return {(height, width) for height, width in sizes}


def _added(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: found + theirs[name] for name, found in ours.items()}


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
        error = calibration.expected_calibration_error(counts.confidences[name])
        result[name] = _evaluation(config, confusion, protocol, seconds, error)
    return result


def _evaluation(
    config: Config,
    confusion: np.ndarray,
    protocol: protocols.Protocol,
    seconds: float,
    calibration_error: float,
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
        calibration_error=calibration_error,
    )
