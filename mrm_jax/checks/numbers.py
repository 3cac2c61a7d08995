"""Ranges of single numbers."""

from __future__ import annotations

from functools import reduce
from typing import Any

from mrm_jax.checks.require import require
from mrm_jax.config import Config

_COUNTS = (
    *(
        f"train.{n}"
        for n in ("steps", "batch", "microbatches", "log_every", "eval_every", "checkpoint_every")
    ),
    *("train.panels_every", "train.keep"),
    *(f"mesh.{n}" for n in ("process_count", "heartbeat", "patience")),
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


def check_numbers(config: Config) -> None:
    """Raises UsageError: the first number outside its range."""
    for name in _COUNTS:
        value: Any = reduce(getattr, name.split("."), config)
        each = value if isinstance(value, tuple) else (value,)
        require(
            all(v is None or v >= 1 for v in each),
            f"config.{name} is {value}; it must be at least 1.",
        )
    batch, parts = config.train.batch, config.train.microbatches
    require(
        batch % parts == 0,
        f"config.train.microbatches is {parts}, which does not divide config.train.batch {batch}; "
        "use one of its divisors.",
    )
    require(
        0 <= config.seed < 2**32, f"config.seed is {config.seed}; it must lie in 0..{2**32 - 1}."
    )
    low, high = sigma = config.method.augment.blur_sigma
    require(
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
        require(value >= 0, f"config.{name} is {value}; it must be at least 0.")
    for name, value in shares.items():
        require(0 <= value <= 1, f"config.{name} is {value}; it must lie in 0..1.")
