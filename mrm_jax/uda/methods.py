"""Every method as data: a tuple of passes. The step runs whatever stands here and knows no method
by name.

Sources: DACS (Tranheden et al., 2021); DAFormer and HRDA (Hoyer et al., 2022), which differ from it
in what the source is judged by, in data and in network; MIC (Hoyer et al., CVPR 2023), which adds
a pass; MRM (Zhou et al., CVPR 2026), which adds one to any method with a teacher; and what MRM is
compared with, as other transforms and objectives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from mrm_jax.config import MRM, TEACHER_METHODS, Method
from mrm_jax.uda.objectives import (
    Objective,
    contrast,
    cross_entropy,
    feature_distance,
    feature_regression,
    pixel_regression,
)


@dataclass(frozen=True)
class Pass:
    """One student forward on one view: encode, transform the features if asked to, decode, judge.

    `name` comes before its metrics and draws; `view` is a key in the views of the step; `weight`
    is the traced option that multiplies its losses, None for 1; the transform "rebuild" masks
    the features and lets the Rebuilder predict them, "blank_image" masks the picture before it is
    encoded. `decoded`: whether there are logits to judge. `trains`: which
    of encoder and decoder the losses reach.
    """

    name: str
    view: str
    objectives: tuple[Objective, ...]
    transform: Literal["rebuild", "blank_image"] | None = None
    weight: str | None = None
    decoded: bool = True
    trains: Literal["both", "encoder", "decoder"] = "both"


SOURCE = Pass("source", "source", (cross_entropy,))
AUGMENTED = Pass("augmented", "augmented", (cross_entropy,))
MIXED = Pass("mixed", "mixed", (cross_entropy,))
MASKED = Pass("masked", "masked", (cross_entropy,), weight="method.mic.weight")
REBUILT = Pass("reconstructed", "target", (cross_entropy,), "rebuild", "method.mrm.weight")
REBUILT_TARGET = replace(REBUILT, name="reconstructed_target")
REBUILT_SOURCE = replace(REBUILT, name="reconstructed_source", view="source")
INPAINTED = Pass(
    "inpainted", "target", (pixel_regression,), "blank_image", "method.mim.weight", decoded=False
)

_BASE = {
    "source_only": (SOURCE,),
    "target_only": (SOURCE,),
    "dacs": (SOURCE, MIXED),
    "daformer": (SOURCE, MIXED),
    "hrda": (SOURCE, MIXED),
    "mic": (SOURCE, MIXED, MASKED),
}
_REBUILT = {
    "target": (REBUILT,),
    "source": (REBUILT_SOURCE,),
    "both": (REBUILT_SOURCE, REBUILT_TARGET),
}
_JUDGED: dict[str, Objective] = {
    "classes": cross_entropy,
    "pixels": pixel_regression,
    "student_features": partial(feature_regression, of="student"),
    "teacher_features": partial(feature_regression, of="teacher"),
}

_VIEWS = {
    "clean": {"source": "source", "target": "target"},
    "augmented": {"source": "augmented", "target": "augmented_target"},
}
"""The view of each domain that MRM's passes look at."""


def passes(method: Method, classes: tuple[str, ...] = ()) -> tuple[Pass, ...]:
    """The passes of a method, in the order in which their BatchNorm moments are folded.

    classes: names of the class table, among which the feature distance finds its own.
    """
    rows = _BASE[method.kind]
    if has_feature_distance(method):
        wanted = method.feature_distance.classes
        distance = partial(
            feature_distance,
            classes=tuple(i for i, c in enumerate(classes) if c in wanted) if wanted else None,
            num_classes=len(classes),
            min_share=method.feature_distance.min_share,
        )
        rows = (replace(SOURCE, objectives=(cross_entropy, distance)), *rows[1:])
    if method.contrast.weight > 0:
        labelled = (SOURCE.name, MIXED.name)
        rows = tuple(
            replace(row, objectives=(*row.objectives, contrast)) if row.name in labelled else row
            for row in rows
        )
    if method.augmented_source:
        rows += (AUGMENTED,)
    if method.mim.weight > 0:
        rows += (INPAINTED,)
    if method.mrm.enabled:
        rows += tuple(_as_asked(row, method.mrm) for row in _REBUILT[method.mrm.images])
    return rows


def _as_asked(row: Pass, mrm: MRM) -> Pass:
    """The rebuilt pass with the view, target and gradients of the options."""
    return replace(
        row,
        view=_VIEWS[mrm.image][row.view],
        objectives=(_JUDGED[mrm.target],),
        decoded=mrm.target == "classes",
        trains=mrm.trains,
    )


def has_feature_distance(method: Method) -> bool:
    """Whether a frozen encoder is compared with."""
    return method.feature_distance.weight > 0


def has_teacher(method: Method) -> bool:
    """Whether the method keeps a teacher; without one, the teacher's part of the state is empty."""
    return method.kind in TEACHER_METHODS
