"""What MRM is compared with: combinations of its options that make no sense are refused."""

from __future__ import annotations

import math

from mrm_jax.checks.require import require_at, require_value
from mrm_jax.config import TEACHER_METHODS, Config, Method
from mrm_jax.registry import OBJECTIVE_KINDS, target_names


def check_alternatives(config: Config) -> None:
    """Raises UsageError for the first combination that cannot work, with the way out."""
    method, mrm = config.method, config.method.mrm
    teacher = f"use one of {', '.join(TEACHER_METHODS)}, or the weight 0."
    for name in ("contrast", "mim"):
        weight = getattr(method, name).weight
        require_value(
            weight == 0 or method.kind in TEACHER_METHODS,
            f"config.method.{name}.weight",
            weight,
            f" and needs a teacher, which {method.kind} has not; {teacher}",
        )
    _check_objectives(method)
    kind = OBJECTIVE_KINDS[mrm.target]
    require_at(
        kind.target,
        "config.method.mrm.target",
        f" is {mrm.target}, which is registered as no target of MRM",
        f"use one of {', '.join(target_names())}.",
    )
    if not mrm.enabled:
        return
    require_at(
        mrm.hidden != "blank" or kind.decoded,
        "config.method.mrm.target",
        f" is {mrm.target}, which only rebuilt features can be judged by",
        "set hidden=rebuilt or target=classes.",
    )
    require_at(
        mrm.trains == "both" or kind.decoded,
        "config.method.mrm.trains",
        f" is {mrm.trains}, but target={mrm.target} runs no decoder",
        "set trains=both or target=classes.",
    )
    require_at(
        not kind.last_map or mrm.stages != "multi",
        "config.method.mrm.stages",
        f" is multi, but target={mrm.target} rebuilds the last map alone",
        "set stages=auto.",
    )
    require_at(
        not kind.taught or mrm.images == "target",
        "config.method.mrm.images",
        f" is {mrm.images}, but the teacher sees target pictures alone",
        "set images=target or target=student_features.",
    )


def _check_objectives(method: Method) -> None:
    """Raises UsageError: an objective that cannot be added by its name."""
    names = [name for name, _ in method.objectives]
    require_at(
        len(set(names)) == len(names),
        "config.method.objectives",
        f" has {', '.join(names)}",
        "give each name once.",
    )
    for name, weight in method.objectives:
        kind = OBJECTIVE_KINDS.found(name, "method.objectives")
        require_at(
            bool(kind.passes) and kind.weight is None,
            "config.method.objectives",
            f" has '{name}', which is not registered as one to add: it has no passes, or a "
            "weight of its own.",
        )
        require_at(
            weight >= 0 and math.isfinite(weight),
            "config.method.objectives",
            f" gives '{name}' the weight {weight}",
            "it must be at least 0.",
        )
