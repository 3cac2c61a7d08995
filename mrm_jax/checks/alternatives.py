"""What MRM is compared with: combinations of its options that make no sense are refused."""

from __future__ import annotations

from mrm_jax.checks.require import require
from mrm_jax.config import TEACHER_METHODS, Config


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
    if not mrm.enabled:
        return
    require(
        mrm.hidden != "blank" or mrm.target == "classes",
        f"config.method.mrm.target is {mrm.target}, which only rebuilt features can be judged by; "
        "set hidden=rebuilt or target=classes.",
    )
    require(
        mrm.trains == "both" or mrm.target == "classes",
        f"config.method.mrm.trains is {mrm.trains}, but target={mrm.target} runs no decoder; set "
        "trains=both or target=classes.",
    )
    require(
        mrm.target != "pixels" or mrm.stages != "multi",
        "config.method.mrm.stages is multi, but target=pixels rebuilds the last map alone; set "
        "stages=auto.",
    )
    require(
        mrm.target != "teacher_features" or mrm.images == "target",
        f"config.method.mrm.images is {mrm.images}, but the teacher sees target pictures alone; "
        "set images=target or target=student_features.",
    )
