"""Methods, their options, and what they need."""

from __future__ import annotations

from mrm_jax.checks.require import require_at, require_value
from mrm_jax.config import TEACHER_METHODS, Config, map_sizes
from mrm_jax.registry import ENCODER_KINDS


def check_method(config: Config) -> None:
    """Raises UsageError: a method that lacks something, or an option that it cannot use."""
    method, mrm = config.method, config.method.mrm
    teacher = method.kind in TEACHER_METHODS
    require_at(
        not (method.augmented_source and teacher),
        "config.method.augmented_source",
        f" is a control for source_only and target_only, not for {method.kind}.",
    )
    require_at(
        method.kind != "hrda" or config.model.multires.enabled,
        "config.method.kind",
        " is 'hrda', but config.model.multires.enabled is False",
        "add hrda=true after the recipe.",
    )
    low, high = sigma = method.augment.blur_sigma
    require_value(
        0 < low <= high,
        "config.method.augment.blur_sigma",
        sigma,
        "",
        "it must rise, from above 0 to at most 2: wider kernels are cut off.",
    )
    check_batch(config)
    check_hidden(config)
    check_feature_distance(config)
    if not mrm.enabled:
        return
    require_at(
        teacher,
        "config.method.mrm.enabled",
        f" needs a teacher, and {method.kind} has none.",
        f"Use one of {', '.join(TEACHER_METHODS)}, or mrm=false.",
    )
    require_value(
        mrm.dim % mrm.heads == 0,
        "config.method.mrm.dim",
        mrm.dim,
        f", not a multiple of {mrm.heads} heads.",
    )
    require_value(
        mrm.dim % 4 == 0,
        "config.method.mrm.dim",
        mrm.dim,
        "; the position table needs a multiple of 4.",
    )


def check_selection(config: Config) -> None:
    """Raises UsageError: a score without labels that the method cannot give."""
    by = config.evaluation.pick_by
    mrm = config.method.mrm
    require_at(
        by != "masked_agreement" or (mrm.enabled and mrm.target == "classes"),
        "config.evaluation.pick_by",
        " is 'masked_agreement', which needs MRM with classes as target",
        "use infomax or agreement, or mrm=true.",
    )
    require_at(
        by != "agreement" or config.method.kind in TEACHER_METHODS,
        "config.evaluation.pick_by",
        f" is 'agreement', but {config.method.kind} has no teacher to agree with",
        "use infomax.",
    )


def check_batch(config: Config) -> None:
    """Raises UsageError: a batch that cannot be cut into equal parts or halved."""
    batch, parts = config.train.batch, config.train.microbatches
    require_value(
        batch % parts == 0,
        "config.train.microbatches",
        parts,
        f", which does not divide config.train.batch {batch}",
        "use one of its divisors.",
    )
    halves = config.method.kind == "mic" and config.method.mic.images == "both"
    require_value(
        not halves or config.train.batch % 2 == 0,
        "config.train.batch",
        config.train.batch,
        "; config.method.mic.images=both masks half of the source and half of the target "
        "pictures and needs an even batch.",
    )


def check_hidden(config: Config) -> None:
    """Raises UsageError: tokens to hide of a network that cannot, or options of the other way."""
    mic = config.method.mic
    if config.method.kind != "mic" or mic.hide == "pixels":
        return
    name = config.model.encoder.kind
    able = [kind.name for kind in ENCODER_KINDS if kind.tokens is not None]
    require_at(
        name in able,
        "config.method.mic.hide",
        f" is tokens, but encoder kind {name} has no mask token",
        f"set hide=pixels, or take encoder kind {' or '.join(able)}.",
    )
    require_at(
        not config.model.multires.enabled,
        "config.method.mic.hide",
        " is tokens, which HRDA's two resolutions do not share",
        "set hide=pixels, or hrda=false.",
    )
    require_value(
        mic.block is None,
        "config.method.mic.block",
        mic.block,
        ", and config.method.mic.hide=tokens hides the encoder's own patches",
        "leave block empty, or set hide=pixels.",
    )


def check_feature_distance(config: Config) -> None:
    """A frozen encoder has to come from somewhere; one with random weights would teach noise."""
    options, weights = config.method.feature_distance, config.model.encoder.weights
    if options.weight == 0:
        return
    require_at(
        options.checkpoint is None or options.source == "checkpoint",
        "config.method.feature_distance.checkpoint",
        f" is {options.checkpoint}, which is not read:",
        "add --config.method.feature_distance.source=checkpoint.",
    )
    found = weights if options.source == "weights" else options.checkpoint
    where = (
        "model.encoder.weights"
        if options.source == "weights"
        else ("method.feature_distance.checkpoint")
    )
    require_value(
        bool(found),
        "config.method.feature_distance.weight",
        options.weight,
        f", but config.{where} names no frozen encoder.",
        "Name one, take that of a trained run "
        "(config.method.feature_distance.source=checkpoint and .checkpoint=RUN), or set "
        "the weight to 0.",
    )
    classes, names = options.classes, config.data.classes.names
    require_at(
        not classes or any(name in names for name in classes),
        "config.method.feature_distance.classes",
        f" has {', '.join(classes)}; none of them is in the class table.",
        "Name some of its classes, or none to compare all cells.",
    )
    shrunk = 2 if config.model.multires.enabled else 1  # HRDA's context
    crop = config.data.crop
    cells = map_sizes(config.model.encoder, crop[0] // shrunk, crop[1] // shrunk)[-1]
    sides = [side / count for side, count in zip(crop, cells, strict=True)]
    require_value(
        not classes or (sides[0] == sides[1] and sides[0].is_integer()),
        "config.data.crop",
        crop,
        f": the last map's {cells[0]} x {cells[1]} cells are {sides[0]:.4g} x {sides[1]:.4g} px, "
        "and the feature distance takes a cell's label from a square of whole px",
        "take a crop of whole cells, or compare all of them "
        "(config.method.feature_distance.classes=()).",
    )
