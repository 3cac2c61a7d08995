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

from mrm_jax.config import TEACHER_METHODS, Method
from mrm_jax.errors import UsageError
from mrm_jax.registry import OBJECTIVE_KINDS, ObjectiveKind, added, referenced
from mrm_jax.uda.objectives import Objective, cross_entropy, pixel_regression, weighted


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
# MRM's target judges these besides what stands here.
REBUILT = Pass("reconstructed", "target", (), "rebuild", "method.mrm.weight")
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
_VIEWS = {
    "clean": {"source": "source", "target": "target"},
    "augmented": {"source": "augmented", "target": "augmented_target"},
}
"""The view of each domain that MRM's passes look at."""
OF_SOURCE = ("source", "augmented")
"""The views that are made of source pictures alone."""


def passes(method: Method, classes: tuple[str, ...] = ()) -> tuple[Pass, ...]:
    """The passes of a method, in the order in which their BatchNorm moments are folded.

    classes: names of the class table, among which the feature distance finds its own.
    """
    rows = _BASE[method.kind]
    if method.augmented_source:
        rows += (AUGMENTED,)
    if method.mim.weight > 0:
        rows += (INPAINTED,)
    if method.mrm.enabled:
        rows += tuple(_as_asked(row, method, classes) for row in _REBUILT[method.mrm.images])
    for kind, weight in added(method):
        judge = _objective(kind, method, classes)
        judge = judge if weight is None else weighted(judge, weight)
        if weight is not None and not any(row.name in kind.passes for row in rows):
            raise UsageError(
                f"config.method.objectives has '{kind.name}', which judges "
                f"{', '.join(kind.passes)}; the passes of this run are "
                f"{', '.join(row.name for row in rows)}.",
                field="config.method.objectives",
                value=kind.name,
            )
        rows = tuple(
            replace(row, objectives=(*row.objectives, judge)) if row.name in kind.passes else row
            for row in rows
        )
    return rows


def _as_asked(row: Pass, method: Method, classes: tuple[str, ...]) -> Pass:
    """The rebuilt pass with the view, target and gradients of the options; what else judges it
    stays."""
    mrm, kind = method.mrm, OBJECTIVE_KINDS[method.mrm.target]
    return replace(
        row,
        view=_VIEWS[mrm.image][row.view],
        objectives=(_objective(kind, method, classes), *row.objectives),
        decoded=kind.decoded,
        trains=mrm.trains,
    )


def _objective(kind: ObjectiveKind, method: Method, classes: tuple[str, ...]) -> Objective:
    """What a registration judges by under the options."""
    judge: Objective = referenced(kind.judge)
    return judge if kind.keywords is None else partial(judge, **kind.keywords(method, classes))


def has_feature_distance(method: Method) -> bool:
    """Whether a frozen encoder is compared with."""
    return method.feature_distance.weight > 0


def looks_at_target(method: Method) -> bool:
    """Whether a step needs target pictures: for a view of a pass, or for the teacher to label."""
    return has_teacher(method) or any(row.view not in OF_SOURCE for row in passes(method))


def has_teacher(method: Method) -> bool:
    """Whether the method keeps a teacher; without one, the teacher's part of the state is empty."""
    return method.kind in TEACHER_METHODS
