"""A run: everything together, its length and cadence, and what follows from several fields."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from mrm_jax.config.data import Data, Domain
from mrm_jax.config.method import Method
from mrm_jax.config.model import Model, strides
from mrm_jax.options import option


def in_steps(share: float, config: Config) -> int:
    """A share of all steps as so many of them."""
    return round(share * config.train.steps)


@dataclass(frozen=True)
class Optimizer:
    """AdamW with the reference's groups and schedule (DAFormer sec. 4)."""

    learning_rate: float = option(6e-5, "Base learning rate of the encoder.", low=0, step="traced")
    decoder_multiplier: float = option(
        10.0, "Learning rate of the decoder over the encoder's.", low=0, step="traced"
    )
    weight_decay: float = option(0.01, "Decoupled weight decay.", low=0, step="traced")
    decay_encoder_norms: bool = option(
        False,
        "Apply weight decay to the encoder's norms, too. A ResNet's are always decayed.",
        source="peer: mmseg configs",
    )
    warmup: float = option(
        0.0375,
        "Share of all steps that warming up takes.",
        source="1500 of 40000",
        unit="share",
        low=0,
        high=1,
        step="traced",
        number=in_steps,
    )
    warmup_start: float = option(
        1e-6, "Share of the rate that warming up starts from.", source="mmcv", low=0, high=1
    )
    warmup_shape: Literal["scaled", "linear"] = option(
        "scaled",
        "scaled: the falling rate, times a share that rises in a line to 1. linear: the rate rises "
        "in a line to its base in the last of these steps, and falls from the next one on.",
        source="mmcv: scaled; VFM-UDA: linear",
    )
    layer_decay: float = option(
        1.0,
        "What the encoder's rate is multiplied by once for every layer below the decoder: its last "
        "block's once, its patches' and tokens' once more than it has blocks. 1: nothing.",
        source="BEiT, MAE: 0.65 to 0.75 for ViT-B and ViT-L",
        low=1e-6,
        high=1,
    )
    beta1: float = option(0.9, "Decay of the first moment.", low=0, high=1)
    beta2: float = option(0.999, "Decay of the second moment.", low=0, high=1)
    eps: float = option(1e-8, "Adam's epsilon.", low=0)


@dataclass(frozen=True)
class Train:
    """How long, how much at a time, and what happens on the way."""

    steps: int = option(40_000, "Optimiser steps.", unit="steps", low=1, step="traced")
    batch: int = option(
        2,
        "Source pictures a step over all devices, and as many target pictures.",
        unit="pictures",
        low=1,
    )
    init_from: str | None = option(
        None,
        "What a fresh run starts from: the folder of a run, one of its checkpoints, a converted "
        "network, a raw file or a name, as in model.encoder.weights.",
        step="absent",
    )
    pass_execution: Literal["sequential", "looped", "stacked"] = option(
        "sequential",
        "Passes one after the other; as turns of one loop, which compiles faster; or all views "
        "through the encoder at once, which takes most memory.",
        runtime=True,
    )
    microbatches: int = option(
        1,
        "Equal parts of the batch that the passes take one after the other, for memory. BatchNorm, "
        "dropout and drop-path see one part at a time; all else is the same.",
        low=1,
    )
    log_every: int = option(
        50, "Steps between lines of metrics.", runtime=True, unit="steps", low=1, step="absent"
    )
    eval_every: int = option(
        4_000,
        "Steps between evaluations; the last step is always evaluated.",
        runtime=True,
        unit="steps",
        low=1,
        step="absent",
    )
    checkpoint_every: int = option(
        2_000,
        "Steps between checkpoints; the last step is always saved.",
        runtime=True,
        unit="steps",
        low=1,
        step="absent",
    )
    panels_every: int = option(
        4_000,
        "Steps between pictures of the views.",
        runtime=True,
        unit="steps",
        low=1,
        step="absent",
    )
    tracker: Literal["tensorboard", "wandb"] = option(
        "tensorboard",
        "What shows metrics and sheets of pictures besides the run's own files: TensorBoard, or "
        "Weights & Biases (pip install wandb).",
        runtime=True,
        step="absent",
    )
    compile_cache: bool = option(
        True,
        "Keep compiled programs beside the workdir for the next start.",
        runtime=True,
        step="absent",
    )
    optimise: bool = option(
        True, "Let XLA's CPU back end optimise the step; False compiles faster and runs slower."
    )
    profile: str | None = option(
        None,
        "START:STOP: first and last step, from 1, of the trace that JAX's profiler writes into "
        "the run's folder.",
        runtime=True,
        step="absent",
    )
    keep: int = option(
        2,
        "Checkpoints kept besides the best and the picked one.",
        runtime=True,
        low=1,
        step="absent",
    )


@dataclass(frozen=True)
class Evaluation:
    """How a score is computed; printed with every number."""

    mode: Literal["whole", "slide"] = option(
        "whole", "One forward a picture, or overlapping windows."
    )
    window: tuple[int, int] = option(
        (1024, 1024), "slide: height and width of a window.", unit="px", low=1
    )
    stride: tuple[int, int] = option((512, 512), "slide: step between windows.", unit="px", low=1)
    blend: Literal["logits", "probabilities"] = option(
        "logits",
        "slide: what is averaged where windows overlap.",
        source="HRDA: logits; VFM-UDA: probabilities",
    )
    whole_pixels: int = option(
        2**21,
        "whole: a picture of more pixels goes through in overlapping parts with a smooth blend.",
        source="1024 x 2048; MiT-B5 needs under 16 GB of memory for it",
        unit="px",
        low=2**12,
    )
    scales: tuple[float, ...] = option(
        (1.0,),
        "Sizes of the picture whose probabilities are averaged, over the size it is read at.",
        low=0.1,
        high=8,
    )
    flip: bool = option(False, "Average with the mirrored picture, too, at each scale.")
    classes: tuple[str, ...] = option((), "Classes counted in mIoU; empty: all of the table.")
    also: tuple[tuple[str, ...], ...] = option(
        (), "Further means: a name, such as mIoU13, and the classes counted in it."
    )
    batch: int = option(1, "Pictures a forward.", runtime=True, unit="pictures", low=1)
    limit: int | None = option(
        None, "Evaluate on the first so many pictures only.", unit="pictures", low=1
    )
    selection_pictures: int = option(
        50,
        "Target pictures, of their unlabelled training set, that every evaluation also scores "
        "without labels; 0: none.",
        unit="pictures",
        low=0,
    )
    pick_by: Literal["infomax", "agreement", "masked_agreement"] = option(
        "infomax",
        "The score without labels that picks a checkpoint; the others need a teacher, or MRM.",
    )


@dataclass(frozen=True)
class Mesh:
    """Devices."""

    devices: int | None = option(None, "Devices the batch is spread over; empty: all.")
    platform: Literal["any", "cpu", "gpu", "tpu"] = option(
        "any", "Kind of device that a run must have; any: the CPU only where there is nothing else."
    )
    fsdp: int = option(1, "Devices that share one copy of parameters, teacher and optimiser state.")
    hosts: Literal["auto", "off", "explicit"] = option(
        "auto",
        "Processes that train together: as Slurm or Cloud TPU started them (auto), this one alone "
        "(off), or as the next three fields say (explicit; auto too where coordinator is given).",
    )
    coordinator: str | None = option(None, "HOST:PORT at which the others reach process 0.")
    process_count: int | None = option(None, "How many processes there are.", low=1)
    process_index: int | None = option(None, "Which of them this is, from 0.", low=0)
    heartbeat: int = option(
        60, "Silence after which a host counts as dead and all end.", unit="s", low=1
    )
    patience: int = option(
        1800,
        "Time without a step, picture or file on any host after which all end; more than the "
        "longest compilation.",
        unit="s",
        low=1,
    )


@dataclass(frozen=True)
class Config:
    """A run."""

    seed: int = option(
        0, "Seed of parameters, data order and every draw.", low=0, high=2**32 - 1, step="absent"
    )
    data: Data = option(Data(), "Pictures and labels.")
    model: Model = option(Model(), "Network.")
    method: Method = option(Method(), "Adaptation.")
    optimizer: Optimizer = option(Optimizer(), "Optimiser.")
    train: Train = option(Train(), "Length and cadence.")
    evaluation: Evaluation = option(Evaluation(), "Protocol.", step="absent")
    mesh: Mesh = option(Mesh(), "Devices.", runtime=True, step="absent")


def profiled(config: Config) -> range | None:
    """The steps whose trace is written; None: of none, or `train.profile` is no START:STOP."""
    found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", config.train.profile or "")
    return range(int(found[1]), int(found[2]) + 1) if found else None


def source_domain(config: Config) -> Domain:
    """The labelled set that is trained on: the target's own for target_only (the oracle)."""
    return config.data.target if config.method.kind == "target_only" else config.data.source


def evaluation_domain(config: Config) -> Domain:
    """The labelled set that scores are computed on; its path defaults to the target's."""
    evaluation = config.data.evaluation
    return replace(evaluation, path=evaluation.path or config.data.target.path)


def has_evaluation(config: Config) -> bool:
    """Whether there are labels to score against; without any, a run adapts and scores nothing."""
    return config.data.evaluation.kind == "drawn" or config.data.evaluation.labels is not None


def detail_crop(config: Config) -> tuple[int, int]:
    """Height and width, px, of the crop that HRDA looks at in full resolution."""
    height, width = config.data.crop
    return config.model.multires.detail or (height // 2, width // 2)


def mic_block(config: Config) -> int:
    """Side, px, of a block that MIC hides."""
    return config.method.mic.block or max(config.data.crop[0] // 16, 1)


def mim_block(config: Config) -> int:
    """Side, px, of a block that masked image modelling hides."""
    shrunk = 2 if config.model.multires.enabled else 1  # HRDA's context
    cell = shrunk * strides(config.model.encoder)[-1]
    return config.method.mim.block or max(config.data.crop[0] // 16, cell)
