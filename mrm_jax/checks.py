"""From a ConfigDict or config.json to a checked `Config`: what cannot work together is refused.

Like `config` it loads no jax, so that a mistake is answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from typing import Any

from ml_collections import ConfigDict

from mrm_jax import checks_alternatives
from mrm_jax.config import (
    METHODS,
    TEACHER_METHODS,
    Config,
    detail_crop,
    encoder_stride,
    smallest_side,
    source_domain,
)
from mrm_jax.options import UsageError, build, nearest


def from_config_dict(values: Mapping[str, Any] | ConfigDict) -> Config:
    """The checked `Config` of a ConfigDict or of a plain mapping (config.json).

    Raises UsageError naming the field, its value and the way out.
    """
    plain = values.to_dict() if isinstance(values, ConfigDict) else values
    config = _own_pictures(build(Config, plain, "config"))
    check(config)
    return config


def _own_pictures(config: Config) -> Config:
    """A path given for drawn scenes means the pictures in that folder: `images` and `labels` of a
    source or an evaluation set, anything below the path for a target.
    """
    data = config.data
    for name in ("source", "target", "evaluation"):
        domain = getattr(data, name)
        if domain.kind == "drawn" and domain.path:
            labelled = {} if name == "target" else {"images": "images", "labels": "labels"}
            data = replace(data, **{name: replace(domain, kind="folder", **labelled)})
    return replace(config, data=data)


def check(config: Config) -> None:
    """Raises UsageError for the first combination that cannot work, with the way out."""
    for test in (
        _check_numbers,
        _check_model,
        _check_crops,
        _check_data,
        _check_rare_class,
        _check_method,
        _check_selection,
        checks_alternatives.check,
    ):
        test(config)


_COUNTS = (
    *(f"train.{n}" for n in ("steps", "batch", "log_every", "eval_every", "checkpoint_every")),
    *("train.panels_every", "train.keep"),
    *(f"evaluation.{n}" for n in ("batch", "limit", "window", "stride")),
    *(f"data.{n}.count" for n in ("source", "target", "evaluation")),
    *(f"model.encoder.{n}" for n in ("dims", "depths", "heads", "sr_ratios", "strides")),
    *(f"model.encoder.{n}" for n in ("mlp_ratio", "dilations")),
    *(f"model.decoder.{n}" for n in ("channels", "dilations", "low_channels")),
    *(f"model.multires.{n}" for n in ("detail", "offset_multiple", "attention_channels")),
    *("method.mic.block", "method.mim.block", "method.contrast.prototypes", "method.contrast.dim"),
    *(f"method.mrm.{n}" for n in ("grid", "dim", "depth", "heads")),
)
"""Fields that are at least 1, each of them where they hold several."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


def _check_numbers(config: Config) -> None:
    for name in _COUNTS:
        value: Any = reduce(getattr, name.split("."), config)
        each = value if isinstance(value, tuple) else (value,)
        _require(
            all(v is None or v >= 1 for v in each),
            f"config.{name} is {value}; it must be at least 1.",
        )
    _require(
        0 <= config.seed < 2**32, f"config.seed is {config.seed}; it must lie in 0..{2**32 - 1}."
    )
    low, high = sigma = config.method.augment.blur_sigma
    _require(
        0 < low <= high <= 2,
        f"config.method.augment.blur_sigma is {sigma}; it must rise, from above 0 to at most 2: "
        "wider kernels are cut off.",
    )
    shares = {
        "optimizer.warmup": config.optimizer.warmup,
        "data.flip": config.data.flip,
        "method.ema_decay": config.method.ema_decay,
        "method.threshold": config.method.threshold,
        "method.mrm.ratio": config.method.mrm.ratio,
        "method.mrm.ramp": config.method.mrm.ramp,
        "method.mic.ratio": config.method.mic.ratio,
        "method.mim.ratio": config.method.mim.ratio,
        "method.feature_distance.min_share": config.method.feature_distance.min_share,
        "method.augment.jitter_probability": config.method.augment.jitter_probability,
        "method.augment.blur_probability": config.method.augment.blur_probability,
        "model.decoder.dropout": config.model.decoder.dropout,
        "model.encoder.drop_path": config.model.encoder.drop_path,
        "model.multires.detail_weight": config.model.multires.detail_weight,
    }
    factors = {
        "method.mrm.weight": config.method.mrm.weight,
        "method.mic.weight": config.method.mic.weight,
        "method.mrm.learning_rate": config.method.mrm.learning_rate,
        "optimizer.learning_rate": config.optimizer.learning_rate,
        "optimizer.decoder_multiplier": config.optimizer.decoder_multiplier,
        "optimizer.weight_decay": config.optimizer.weight_decay,
        "evaluation.selection_pictures": config.evaluation.selection_pictures,
    }
    for name, value in factors.items():
        _require(value >= 0, f"config.{name} is {value}; it must be at least 0.")
    for name, value in shares.items():
        _require(0 <= value <= 1, f"config.{name} is {value}; it must lie in 0..1.")


def _check_data(config: Config) -> None:
    data, classes = config.data, config.data.classes
    count = len(classes.names)
    _require(
        2 <= count <= 255, f"config.data.classes.names has {count} classes; 2 to 255 are possible."
    )
    _require(
        len(classes.colours) == count,
        f"config.data.classes.colours has {len(classes.colours)} entries "
        f"for {count} classes; give one each.",
    )
    for name in ("source", "target", "evaluation"):
        ids = getattr(data, name).raw_ids
        _require(
            len(ids) in (0, count),
            f"config.data.{name}.raw_ids has {len(ids)} rows for {count} classes; "
            f"give one row a class or none.",
        )
    where = "target" if config.method.kind == "target_only" else "source"
    _require(
        source_domain(config).kind == "drawn" or source_domain(config).labels is not None,
        f"{config.method.kind} trains on labels, but config.data.{where}.labels is empty: "
        "name their folder.",
    )
    for name in ("source", "target", "evaluation"):
        domain = getattr(data, name)
        _require(
            domain.kind != "drawn" or (domain.size[0] >= 32 and domain.size[1] >= 64),
            f"config.data.{name}.size is {domain.size}; drawn scenes need at least (32, 64).",
        )
    window, step = config.evaluation.window, config.evaluation.stride
    _require(
        config.evaluation.mode == "whole" or (step[0] <= window[0] and step[1] <= window[1]),
        f"config.evaluation.stride is {step}, larger than the window {window}, which leaves gaps.",
    )
    unknown = [c for c in config.evaluation.classes if c not in classes.names]
    if unknown:
        hint = nearest(unknown[0], classes.names)
        raise UsageError(
            f"config.evaluation.classes names '{unknown[0]}', which is no class.{hint}"
        )


def _check_rare_class(config: Config) -> None:
    options, (height, width) = config.data.rare_class, config.data.crop
    if not options.enabled:
        return
    name = "config.data.rare_class"
    _require(
        options.temperature >= 1e-6,
        f"{name}.temperature is {options.temperature}; it must be at least 1e-6.",
    )
    for field in ("min_pixels", "crop_share", "tries"):
        value = getattr(options, field)
        _require(value >= 0, f"{name}.{field} is {value}; it must be at least 0.")
    if options.min_share is not None:
        share = options.min_share
        _require(0 <= share < 1, f"{name}.min_share is {share}; it must lie in 0..1, below 1.")
        return
    needed = options.min_pixels * options.crop_share
    _require(
        needed < height * width,
        f"{name}: min_pixels {options.min_pixels} times crop_share {options.crop_share:g} is not "
        f"below the {height * width} px of config.data.crop {config.data.crop}; set min_share to a "
        "share of the crop, say 0.006.",
    )


def _check_crops(config: Config) -> None:
    multires, crop = config.model.multires, config.data.crop
    if not multires.enabled:
        _check_crop(config, "data.crop", crop, 1)
        return
    _check_crop(config, "data.crop", crop, 2)
    detail = detail_crop(config)
    _check_crop(config, "model.multires.detail", detail, 1)
    _require(
        detail[0] <= crop[0] and detail[1] <= crop[1],
        f"config.model.multires.detail is {detail}, larger than the crop {crop}.",
    )
    encoder, multiple = config.model.encoder, multires.offset_multiple
    last = config.model.decoder.kind == "deeplabv2"
    stride = encoder_stride(encoder) if last else encoder.strides[0]
    _require(
        multiple % stride == 0,
        f"config.model.multires.offset_multiple is {multiple}; where a detail crop starts has to "
        f"be a multiple of the decoder's stride, {stride}, or its logits lie beside their place.",
    )


def _check_crop(config: Config, name: str, crop: tuple[int, int], shrunk: int) -> None:
    """The crop that an encoder sees after shrinking by `shrunk` has to fit its strides."""
    encoder = config.model.encoder
    multiple, least = shrunk * encoder_stride(encoder), shrunk * smallest_side(encoder)
    why = "the stride of the encoder" + (", twice, for HRDA's context" if shrunk > 1 else "")
    for side, axis in zip(crop, ("height", "width"), strict=True):
        _require(
            side > 0 and side % multiple == 0,
            f"config.{name} is {crop}: its {axis} {side} is not a multiple of "
            f"{multiple}, {why}. Try {max(1, round(side / multiple)) * multiple}.",
        )
        _require(
            side >= least,
            f"config.{name} is {crop}: its {axis} is below {least} px, the least that "
            "the encoder's attention can reduce (strides, sr_ratios).",
        )


def _check_model(config: Config) -> None:
    encoder = config.model.encoder
    per_stage = {"mit": ("heads", "sr_ratios"), "resnet": ("dilations",)}[encoder.kind]
    for name in ("depths", "strides", *per_stage):
        value = getattr(encoder, name)
        _require(
            len(value) == len(encoder.dims),
            f"config.model.encoder.{name} is {value}; dims has "
            f"{len(encoder.dims)} stages, give as many entries.",
        )
    if encoder.kind == "resnet":
        _require(
            all(dim % 4 == 0 for dim in encoder.dims) and encoder.strides[0] == 4,
            f"config.model.encoder.dims is {encoder.dims} and strides {encoder.strides}; a "
            "ResNet's widths are multiples of 4 and its first stride is 4, the stem's.",
        )
        return
    for dim, heads in zip(encoder.dims, encoder.heads, strict=True):
        _require(
            dim % heads == 0,
            f"config.model.encoder.dims has {dim}, not a multiple of its {heads} attention heads.",
        )


def _check_method(config: Config) -> None:
    method, mrm = config.method, config.method.mrm
    if method.kind not in METHODS:
        hint = nearest(method.kind, METHODS)
        raise UsageError(
            f"config.method.kind is '{method.kind}'; it must be one of {', '.join(METHODS)}.{hint}"
        )
    teacher = method.kind in TEACHER_METHODS
    _require(
        not (method.augmented_source and teacher),
        f"config.method.augmented_source is a control for source_only and target_only, "
        f"not for {method.kind}.",
    )
    _require(
        method.kind != "hrda" or config.model.multires.enabled,
        "config.method.kind is 'hrda', but config.model.multires.enabled is False; add hrda=true "
        "after the recipe.",
    )
    _check_mic(config)
    _check_feature_distance(config)
    if not mrm.enabled:
        return
    _require(
        teacher,
        f"config.method.mrm.enabled needs a teacher, and {method.kind} has none. "
        f"Use one of {', '.join(TEACHER_METHODS)}, or mrm=false.",
    )
    unknown = [part for part in mrm.undecayed if part not in ("token", "norms", "inner_norms")]
    _require(
        not unknown,
        f"config.method.mrm.undecayed has {', '.join(unknown)}; it may have token, norms and "
        "inner_norms.",
    )
    _require(
        mrm.dim % mrm.heads == 0,
        f"config.method.mrm.dim is {mrm.dim}, not a multiple of {mrm.heads} heads.",
    )
    _require(
        mrm.dim % 4 == 0,
        f"config.method.mrm.dim is {mrm.dim}; the position table needs a multiple of 4.",
    )


def _check_selection(config: Config) -> None:
    by = config.evaluation.pick_by
    _require(
        by != "masked_agreement" or config.method.mrm.enabled,
        "config.evaluation.pick_by is 'masked_agreement', which needs the Rebuilder; use "
        "infomax or agreement, or mrm=true.",
    )
    _require(
        by != "agreement" or config.method.kind in TEACHER_METHODS,
        f"config.evaluation.pick_by is 'agreement', but {config.method.kind} has no teacher to "
        "agree with; use infomax.",
    )


def _check_mic(config: Config) -> None:
    halves = config.method.kind == "mic" and config.method.mic.images == "both"
    _require(
        not halves or config.train.batch % 2 == 0,
        f"config.train.batch is {config.train.batch}; config.method.mic.images=both masks half of "
        "the source and half of the target pictures and needs an even batch.",
    )


def _check_feature_distance(config: Config) -> None:
    """A frozen encoder has to come from somewhere; one with random weights would teach noise."""
    options, weights = config.method.feature_distance, config.model.encoder.weights
    _require(
        options.weight >= 0,
        f"config.method.feature_distance.weight is {options.weight}; it must be at least 0.",
    )
    if options.weight == 0:
        return
    _require(
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
    _require(
        bool(found),
        f"config.method.feature_distance.weight is {options.weight}, but config.{where} names no "
        "frozen encoder. Name one, take that of a trained run "
        "(config.method.feature_distance.source=checkpoint and .checkpoint=RUN), or set the weight "
        "to 0.",
    )
    classes, names = options.classes, config.data.classes.names
    _require(
        not classes or any(name in names for name in classes),
        f"config.method.feature_distance.classes has {', '.join(classes)}; none of them is in the "
        "class table. Name some of its classes, or none to compare all cells.",
    )
