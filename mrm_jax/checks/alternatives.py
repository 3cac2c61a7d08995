"""What MRM is compared with: combinations of its options that make no sense are refused."""

from __future__ import annotations

import math

from mrm_jax.checks.require import require
from mrm_jax.config import TEACHER_METHODS, Config, Method
from mrm_jax.registry import OBJECTIVE_KINDS, target_names


def check_alternatives(config: Config) -> None:
    """Raises UsageError for the first combination that cannot work, with the way out."""
    method, mrm = config.method, config.method.mrm
    teacher = f"use one of {', '.join(TEACHER_METHODS)}, or the weight 0."
    for name in ("contrast", "mim"):
        weight = getattr(method, name).weight
        require(
            weight == 0 or method.kind in TEACHER_METHODS,
            f"config.method.{name}.weight is {weight} and needs a teacher, which {method.kind} has "
            f"not; {teacher}",
        )
    _check_objectives(method)
    kind = OBJECTIVE_KINDS[mrm.target]
    require(
        kind.target,
        f"config.method.mrm.target is {mrm.target}, which is registered as no target of MRM; use "
        f"one of {', '.join(target_names())}.",
    )
    if not mrm.enabled:
        return
    require(
        mrm.hidden != "blank" or kind.decoded,
        f"config.method.mrm.target is {mrm.target}, which only rebuilt features can be judged by; "
        "set hidden=rebuilt or target=classes.",
    )
    require(
        mrm.trains == "both" or kind.decoded,
        f"config.method.mrm.trains is {mrm.trains}, but target={mrm.target} runs no decoder; set "
        "trains=both or target=classes.",
    )
    require(
        not kind.last_map or mrm.stages != "multi",
        f"config.method.mrm.stages is multi, but target={mrm.target} rebuilds the last map alone; "
        "set stages=auto.",
    )
    require(
        not kind.taught or mrm.images == "target",
        f"config.method.mrm.images is {mrm.images}, but the teacher sees target pictures alone; "
        "set images=target or target=student_features.",
    )


def _check_objectives(method: Method) -> None:
    """Raises UsageError: an objective that cannot be added by its name."""
    names = [name for name, _ in method.objectives]
    require(
        len(set(names)) == len(names),
        f"config.method.objectives has {', '.join(names)}; give each name once.",
    )
    for name, weight in method.objectives:
        kind = OBJECTIVE_KINDS.found(name, "method.objectives")
        require(
            bool(kind.passes) and kind.weight is None,
            f"config.method.objectives has '{name}', which is not registered as one to add: it has "
            "no passes, or a weight of its own.",
        )
        require(
            weight >= 0 and math.isfinite(weight),
            f"config.method.objectives gives '{name}' the weight {weight}; it must be at least 0.",
        )
