"""Methods, their options, and what they need."""

from __future__ import annotations

from mrm_jax.checks.require import require
from mrm_jax.config import TEACHER_METHODS, Config


def check_method(config: Config) -> None:
    """Raises UsageError: a method that lacks something, or an option that it cannot use."""
    method, mrm = config.method, config.method.mrm
    teacher = method.kind in TEACHER_METHODS
    require(
        not (method.augmented_source and teacher),
        f"config.method.augmented_source is a control for source_only and target_only, "
        f"not for {method.kind}.",
    )
    require(
        method.kind != "hrda" or config.model.multires.enabled,
        "config.method.kind is 'hrda', but config.model.multires.enabled is False; add hrda=true "
        "after the recipe.",
    )
    low, high = sigma = method.augment.blur_sigma
    require(
        0 < low <= high,
        f"config.method.augment.blur_sigma is {sigma}; it must rise, from above 0 to at most 2: "
        "wider kernels are cut off.",
    )
    check_batch(config)
    check_feature_distance(config)
    if not mrm.enabled:
        return
    require(
        teacher,
        f"config.method.mrm.enabled needs a teacher, and {method.kind} has none. "
        f"Use one of {', '.join(TEACHER_METHODS)}, or mrm=false.",
    )
    require(
        mrm.dim % mrm.heads == 0,
        f"config.method.mrm.dim is {mrm.dim}, not a multiple of {mrm.heads} heads.",
    )
    require(
        mrm.dim % 4 == 0,
        f"config.method.mrm.dim is {mrm.dim}; the position table needs a multiple of 4.",
    )


def check_selection(config: Config) -> None:
    """Raises UsageError: a score without labels that the method cannot give."""
    by = config.evaluation.pick_by
    mrm = config.method.mrm
    require(
        by != "masked_agreement" or (mrm.enabled and mrm.target == "classes"),
        "config.evaluation.pick_by is 'masked_agreement', which needs MRM with classes as target; "
        "use infomax or agreement, or mrm=true.",
    )
    require(
        by != "agreement" or config.method.kind in TEACHER_METHODS,
        f"config.evaluation.pick_by is 'agreement', but {config.method.kind} has no teacher to "
        "agree with; use infomax.",
    )


def check_batch(config: Config) -> None:
    """Raises UsageError: a batch that cannot be cut into equal parts or halved."""
    batch, parts = config.train.batch, config.train.microbatches
    require(
        batch % parts == 0,
        f"config.train.microbatches is {parts}, which does not divide config.train.batch {batch}; "
        "use one of its divisors.",
    )
    halves = config.method.kind == "mic" and config.method.mic.images == "both"
    require(
        not halves or config.train.batch % 2 == 0,
        f"config.train.batch is {config.train.batch}; config.method.mic.images=both masks half of "
        "the source and half of the target pictures and needs an even batch.",
    )


def check_feature_distance(config: Config) -> None:
    """A frozen encoder has to come from somewhere; one with random weights would teach noise."""
    options, weights = config.method.feature_distance, config.model.encoder.weights
    if options.weight == 0:
        return
    require(
        options.checkpoint is None or options.source == "checkpoint",
        f"config.method.feature_distance.checkpoint is {options.checkpoint}, which is not read: "
        "add --config.method.feature_distance.source=checkpoint.",
    )
    found = weights if options.source == "weights" else options.checkpoint
    where = (
        "model.encoder.weights"
        if options.source == "weights"
        else ("method.feature_distance.checkpoint")
    )
    require(
        bool(found),
        f"config.method.feature_distance.weight is {options.weight}, but config.{where} names no "
        "frozen encoder. Name one, take that of a trained run "
        "(config.method.feature_distance.source=checkpoint and .checkpoint=RUN), or set the weight "
        "to 0.",
    )
    classes, names = options.classes, config.data.classes.names
    require(
        not classes or any(name in names for name in classes),
        f"config.method.feature_distance.classes has {', '.join(classes)}; none of them is in the "
        "class table. Name some of its classes, or none to compare all cells.",
    )
