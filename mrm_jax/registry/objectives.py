"""What a pass may be judged by, each registered once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mrm_jax.registry.table import Reference, Registered, Table, piece


@dataclass(frozen=True, kw_only=True)
class ObjectiveKind(Registered):
    """An objective: what MRM's passes are judged by where `config.method.mrm.target` names it, or
    what judges `passes` besides, where `config.method.objectives` or its `weight` asks for it."""

    judge: Reference = piece("f(call: uda.objectives.Call, key) -> (loss f[], metrics)")
    keywords: Callable[[Any, tuple[str, ...]], Mapping[str, Any]] | None = piece(
        "(config.Method, names of the classes) -> further arguments of `judge`", None
    )
    passes: tuple[str, ...] = piece("names of the passes that it is added to", ())
    weight: Callable[[Any], float] | None = piece(
        "(config.Method) -> its weight, where an option of its own has it and it multiplies its "
        "loss itself",
        None,
    )
    target: bool = piece("whether it may be MRM's target", False)
    decoded: bool = piece("whether it reads logits; else MRM's passes run no decoder", True)
    last_map: bool = piece("whether it reads the last map alone; MRM then rebuilds no other", False)
    taught: bool = piece("whether it reads the teacher's maps of the target", False)
    heads: Reference | None = piece(
        "(config.Method, side of a cell of the last map in px, number of classes) -> name -> "
        "module(last map), trained beside the network",
        None,
    )


OBJECTIVE_KINDS = Table(ObjectiveKind, "method.mrm.target")
_HERE = "mrm_jax.uda.objectives"
_HEADS = "mrm_jax.models.auxiliary"


def _distance(method: Any, names: tuple[str, ...]) -> dict[str, Any]:
    wanted = method.feature_distance.classes
    return {
        "classes": tuple(i for i, c in enumerate(names) if c in wanted) if wanted else None,
        "num_classes": len(names),
        "min_share": method.feature_distance.min_share,
    }


OBJECTIVE_KINDS.register(ObjectiveKind(name="classes", judge=f"{_HERE}:cross_entropy", target=True))
OBJECTIVE_KINDS.register(
    ObjectiveKind(
        name="pixels",
        judge=f"{_HERE}:pixel_regression",
        target=True,
        decoded=False,
        last_map=True,
        heads=f"{_HEADS}:pixel_heads",
    )
)
OBJECTIVE_KINDS.register(
    ObjectiveKind(
        name="student_features",
        judge=f"{_HERE}:feature_regression",
        keywords=lambda method, names: {"of": "student"},
        target=True,
        decoded=False,
    )
)
OBJECTIVE_KINDS.register(
    ObjectiveKind(
        name="teacher_features",
        judge=f"{_HERE}:feature_regression",
        keywords=lambda method, names: {"of": "teacher"},
        target=True,
        decoded=False,
        taught=True,
    )
)
OBJECTIVE_KINDS.register(
    ObjectiveKind(
        name="feature_distance",
        judge=f"{_HERE}:feature_distance",
        keywords=_distance,
        passes=("source",),
        weight=lambda method: method.feature_distance.weight,
    )
)
OBJECTIVE_KINDS.register(
    ObjectiveKind(
        name="contrast",
        judge=f"{_HERE}:contrast",
        passes=("source", "mixed"),
        weight=lambda method: method.contrast.weight,
        heads=f"{_HEADS}:prototype_heads",
    )
)


def added(method: Any) -> tuple[tuple[ObjectiveKind, float | None], ...]:
    """The objectives that `method` (`config.Method`) adds to passes, in the order of registration,
    and the weight that their losses still lack (None: they know their own)."""
    asked = dict(method.objectives)
    return tuple(
        (kind, asked.get(kind.name))
        for kind in OBJECTIVE_KINDS
        if kind.name in asked or (kind.weight is not None and kind.weight(method) > 0)
    )


def judging(method: Any) -> tuple[ObjectiveKind, ...]:
    """All objectives that `method` asks for besides cross entropy on labels: those added, MRM's
    target, and what masked image modelling is judged by."""
    asked = {kind.name for kind, _ in added(method)}
    if method.mrm.enabled:
        asked.add(method.mrm.target)
    if method.mim.weight > 0:
        asked.add("pixels")
    return tuple(kind for kind in OBJECTIVE_KINDS if kind.name in asked)


def target_names() -> tuple[str, ...]:
    """The objectives that may be MRM's target."""
    return tuple(kind.name for kind in OBJECTIVE_KINDS if kind.target)
