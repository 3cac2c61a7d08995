"""Every option of a run, once: default, meaning, unit, allowed values and source.

The ConfigDict that `configs/*.py` return is generated from these dataclasses: every field is a
flag (`--config.method.mrm.ratio=0.5`). `checks.py` brings it back; nothing below `cli/` sees a
ConfigDict. Imports neither jax nor anything of ours but options.py, so that a mistake is answered
before they load.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul
from typing import Literal

from mrm_jax.options import UsageError as UsageError
from mrm_jax.options import option
from mrm_jax.options import runtime_fields as _runtime_fields

TEACHER_METHODS = ("dacs", "daformer", "hrda", "mic")
METHODS = ("source_only", "target_only", *TEACHER_METHODS)

THINGS = (
    *("light", "sign", "person", "rider", "car", "truck", "bus", "train", "motorcycle"),
    "bicycle",
)
"""Classes of countable objects, whose pretrained features are worth keeping (DAFormer sec. 3.3)."""


@dataclass(frozen=True)
class Classes:
    """The classes that the network tells apart, by train id. Ready tables: `data/labels.py`."""

    names: tuple[str, ...] = option((), "Class names; their number is the number of logits.")
    colours: tuple[tuple[int, int, int], ...] = option((), "RGB colour of each class, 0..255.")


@dataclass(frozen=True)
class Domain:
    """A set of pictures, with labels where it is a source or is evaluated on."""

    kind: Literal["drawn", "folder"] = option("folder", "Where the pictures come from.")
    path: str | None = option(None, "Root folder. For `evaluation`, empty means the target's.")
    images: str = option("", "Folder of the pictures below `path`; searched recursively.")
    image_suffix: str = option(
        "", "How a picture's name ends; the rest is its stem. Empty: any picture file."
    )
    labels: str | None = option(None, "Folder of the labels below `path`. Never read for a target.")
    label_suffix: str = option(".png", "A picture's label is labels/<stem><label_suffix>.")
    listing: str | None = option(
        None, "Text file below `path` with one stem a line: only these are used."
    )
    raw_ids: tuple[tuple[int, ...], ...] = option(
        (), "Raw label ids of every class; empty: train ids are stored."
    )
    ignored_ids: tuple[int, ...] = option(
        (255,), "Raw label ids that count nowhere. Any other id is an error."
    )
    resize: tuple[int, int] | None = option(
        None,
        "Box (long, short) in px that a picture is fitted into; empty: native size.",
        source="peer: mmseg pipelines",
    )
    category_limit: float = option(
        1.0,
        "A crop is drawn again while one class covers this share of it; 1: off.",
        source="DAFormer, 0.75",
    )
    margins: tuple[int, int, int, int] = option(
        (0, 0, 0, 0),
        "Rows/columns (top, bottom, left, right) without pseudo-labels, px.",
        source="peer: uda/dacs.py",
    )
    on_unreadable: Literal["error", "skip"] = option(
        "error", "What an unreadable picture does to a run."
    )
    look: Literal["rendered", "camera"] = option(
        "rendered", "Drawn scenes: which of the two looks."
    )
    split: Literal["train", "val"] = option("train", "Drawn scenes: which stream of scenes.")
    count: int = option(600, "Drawn scenes: how many different ones.")
    size: tuple[int, int] = option((96, 192), "Drawn scenes: height and width, px.")


@dataclass(frozen=True)
class RareClass:
    """Rare class sampling: a source picture is drawn for a class in it (DAFormer sec. 3.3)."""

    enabled: bool = option(False, "Draw source pictures by class; False: each once an epoch.")
    temperature: float = option(
        0.01, "Of the softmax over 1 - frequency; small: rare classes only.", source="DAFormer"
    )
    min_pixels: int = option(
        3000,
        "A picture is drawn for a class of which its stored label holds more pixels than this.",
        source="DAFormer",
    )
    crop_share: float = option(
        0.5,
        "A crop should hold more than this times `min_pixels` of the class; 0: any crop does.",
        source="DAFormer 0.5; 1024 px crops: HRDA 2",
    )
    min_share: float | None = option(
        None,
        "Instead of both: share of the crop's area that the class has to exceed, in the picture "
        "as it is resized for training and in the crop.",
    )
    tries: int = option(10, "Crops drawn again at most; the last is taken.", source="DAFormer")
    on_missing: Literal["error", "warn"] = option(
        "error", "What a class without any such picture does; warn: it is left out of the draw."
    )


@dataclass(frozen=True)
class Data:
    """What is read."""

    classes: Classes = option(Classes(), "The class table.")
    source: Domain = option(Domain(), "Labelled source domain.")
    target: Domain = option(Domain(), "Target domain; its labels are never read in training.")
    evaluation: Domain = option(Domain(), "Labelled pictures that scores are computed on.")
    crop: tuple[int, int] = option((512, 512), "Height and width of a training crop, px.")
    flip: float = option(0.5, "Probability of a horizontal flip.", source="peer: mmseg pipelines")
    rare_class: RareClass = option(RareClass(), "Rare class sampling of the source.")
    workers: int = option(0, "Loader processes; 0: threads of this one.", runtime=True)
    cache: bool = option(False, "Keep decoded pictures in memory.", runtime=True)


@dataclass(frozen=True)
class Encoder:
    """Mix Transformer or ResNet of any size. Named sizes: `recipes.ENCODERS`."""

    kind: Literal["mit", "resnet"] = option("mit", "Family.")
    dims: tuple[int, ...] = option((64, 128, 320, 512), "Channels of each stage's map.")
    depths: tuple[int, ...] = option((3, 6, 40, 3), "Blocks of each stage.")
    strides: tuple[int, ...] = option(
        (4, 2, 2, 2), "Stride of each stage, px or cells; a ResNet's first holds the stem's 4."
    )
    heads: tuple[int, ...] = option((1, 2, 5, 8), "MiT: attention heads of each stage.")
    sr_ratios: tuple[int, ...] = option(
        (8, 4, 2, 1), "MiT: spatial reduction of keys and values in each stage."
    )
    mlp_ratio: int = option(4, "MiT: hidden width of the Mix-FFN over its input's.")
    drop_path: float = option(0.1, "MiT: largest drop-path rate; grows linearly over the blocks.")
    norm_eps: float = option(1e-6, "MiT: epsilon of the block and stage LayerNorms.")
    embed_norm_eps: float = option(
        1e-5, "MiT: epsilon of the patch-embedding and reduction LayerNorms."
    )
    dilations: tuple[int, ...] = option(
        (1, 1, 2, 4),
        "ResNet: dilation of each stage's 3x3 kernels; halved in its first block.",
        source="peer: mmseg ResNetV1c, contract_dilation",
    )
    stem: Literal["v1c", "7x7"] = option(
        "v1c", "ResNet: three 3x3 kernels, or torchvision's one 7x7."
    )
    weights: str | None = option(
        None, "Pretrained weights to start from: a converted folder or a raw file."
    )


@dataclass(frozen=True)
class Decoder:
    """The head that turns features into class scores. Named ones: `recipes.DECODERS`."""

    kind: Literal["daformer", "segformer", "deeplabv2", "deeplabv3plus"] = option(
        "daformer", "Family."
    )
    channels: int = option(
        256, "Width of the embeddings and of the fused map (SegFormer: 768, DeepLabV3+: 512)."
    )
    fusion: Literal["aspp", "conv1"] = option(
        "aspp", "DAFormer: separable ASPP or one 1x1 convolution."
    )
    dilations: tuple[int, ...] = option(
        (1, 6, 12, 18), "Dilation of each parallel branch (DAFormer, DeepLab), cells."
    )
    concat: Literal["c1..c4", "c4..c1"] = option(
        "c1..c4", "SegFormer: order of the concatenated stages."
    )
    low_channels: int = option(48, "DeepLabV3+: width that the first stage is reduced to.")
    norm: bool = option(
        False, "DeepLabV3+: BatchNorm after its convolutions.", source="DAFormer: without"
    )
    dropout: float = option(
        0.1, "Probability of dropping a channel before the classifier (DeepLabV2 has none)."
    )


@dataclass(frozen=True)
class MultiRes:
    """Context at half the resolution and a detail crop at the full one (HRDA, ECCV 2022)."""

    enabled: bool = option(False, "Run encoder and decoder at both resolutions.")
    detail: tuple[int, int] | None = option(
        None, "Height and width of the detail crop, px; empty: half of the training crop."
    )
    offset_multiple: int = option(
        8, "A detail crop starts at a multiple of so many px.", source="HRDA: 8"
    )
    detail_weight: float = option(
        0.1, "Weight of the detail loss; the fused one has the rest.", source="HRDA sec. 3.3"
    )
    attention_channels: int = option(256, "Width of the scale attention's head.", source="HRDA")


@dataclass(frozen=True)
class Model:
    """The network that is trained and kept."""

    encoder: Encoder = option(Encoder(), "Encoder.")
    decoder: Decoder = option(Decoder(), "Decoder.")
    multires: MultiRes = option(MultiRes(), "Two resolutions (HRDA).")
    dtype: Literal["float32", "bfloat16"] = option(
        "float32",
        "Type of the arithmetic; parameters, statistics, softmax and losses stay float32.",
    )
    remat: Literal["none", "blocks", "full"] = option(
        "none",
        "What the backward pass computes again: nothing, the encoder's and Rebuilder's blocks, or "
        "also decoder and projectors.",
        runtime=True,
    )
    unroll: bool = option(
        True, "Run the blocks of a stage unrolled; False compiles faster.", runtime=True
    )


@dataclass(frozen=True)
class MRM:
    """Masked Representation Modeling: the Rebuilder and its pass (Zhou et al., CVPR 2026)."""

    enabled: bool = option(False, "Add the pass that rebuilds masked features.")
    images: Literal["target", "source", "both"] = option(
        "target", "Which domain's features are masked."
    )
    image: Literal["clean", "augmented"] = option(
        "clean", "The picture as the loader gave it, or strongly augmented by draws of its own."
    )
    weight: float = option(1.0, "lambda, weight of the loss.", source="paper: 1.0")
    schedule: Literal["constant", "rise", "fall"] = option(
        "constant",
        "lambda over a run: as it is, rising from 0 at the start, falling to 0 at the end.",
    )
    ramp: float = option(0.1, "rise, fall: share of the steps that it takes.")
    ratio: float = option(0.4, "Share of tokens masked, in expectation.", source="paper: 0.4")
    grid: tuple[int, int] = option((16, 16), "Rows and columns of tokens.", source="paper: 16 x 16")
    dim: int = option(512, "Width of the Rebuilder.", source="paper: 512")
    depth: int = option(2, "Transformer blocks.", source="paper: 2")
    heads: int = option(16, "Attention heads.", source="released module: 16")
    stages: Literal["auto", "multi"] = option(
        "auto",
        "Maps that are rebuilt: all for DAFormer and SegFormer, else the last; multi: also "
        "DeepLabV3+'s first.",
    )
    learning_rate: float = option(
        2e-4, "Base learning rate of the Rebuilder.", source="paper: 2e-4"
    )
    undecayed: tuple[str, ...] = option(
        ("token",),
        "Parts of the Rebuilder without weight decay, of token (the learned mask token), norms and "
        "inner_norms (those between a projector's transposed convolutions).",
    )
    target: Literal["classes", "pixels", "student_features", "teacher_features"] = option(
        "classes",
        "What rebuilt features are judged by: their decoded classes; the picture's pixels, from "
        "the last map alone; the encoder's or the teacher's own features. But for classes no "
        "decoder runs, and HRDA's detail counts nowhere.",
        source="paper: classes; the others are its ablations",
    )
    hidden: Literal["rebuilt", "blank"] = option(
        "rebuilt",
        "What hidden features become: what the Rebuilder predicts, or 0, without a Rebuilder.",
    )
    trains: Literal["both", "encoder", "decoder"] = option(
        "both",
        "What the loss trains beside the Rebuilder, of encoder and decoder (HRDA: and attention).",
    )


@dataclass(frozen=True)
class FeatureDistance:
    """Keeps the encoder's features of things near those of a frozen one (DAFormer sec. 3.3)."""

    weight: float = option(0.0, "Weight of the loss; 0: off.", source="DAFormer: 0.005")
    classes: tuple[str, ...] = option(
        THINGS,
        "Classes whose cells are compared; names that the class table lacks are left out. Empty: "
        "all cells.",
    )
    min_share: float = option(
        0.75, "Least share of a cell that its class has to cover.", source="DAFormer: 0.75"
    )
    source: Literal["weights", "checkpoint"] = option(
        "weights", "The frozen encoder: config.model.encoder.weights, or that of `checkpoint`."
    )
    checkpoint: str | None = option(None, "Checkpoint whose encoder is the frozen one.")


@dataclass(frozen=True)
class MIC:
    """Masked image consistency: pictures with blocks hidden (Hoyer et al., CVPR 2023)."""

    weight: float = option(1.0, "Weight of the loss.", source="MIC: 1")
    images: Literal["target", "both"] = option(
        "target", "Augmented target pictures, or plain ones, half of source and half of target."
    )
    block: int | None = option(
        None,
        "Side of a hidden block, px; empty: a sixteenth of the crop's height.",
        source="MIC: 64 px at crops of 1024, 32 at 512",
    )
    ratio: float = option(0.7, "Share of blocks hidden, in expectation.", source="MIC: 0.7")


@dataclass(frozen=True)
class Contrast:
    """Pixel-to-prototype contrast of the last map, on the source and the mixed picture."""

    weight: float = option(0.0, "Weight of the loss; 0: off.")
    temperature: float = option(
        0.1, "What a cosine is divided by.", source="Wang et al., ICCV 2021: 0.1"
    )
    prototypes: int = option(
        1, "Learned prototypes of each class; the nearest one counts.", source="Zhou et al. 2022"
    )
    dim: int = option(256, "Width that features are projected to.", source="Wang et al.: 256")


@dataclass(frozen=True)
class MaskedImages:
    """Masked image modelling of the target: pixels of hidden blocks (SimMIM, CVPR 2022)."""

    weight: float = option(0.0, "Weight of the loss; 0: off.")
    ratio: float = option(0.6, "Share of blocks hidden, in expectation.", source="SimMIM: 0.6")
    block: int | None = option(
        None,
        "Side of a hidden block, px; empty: a sixteenth of the crop's height, or a cell of the "
        "last map where that is more.",
        source="SimMIM: 32 px, a cell of Swin's last map",
    )


@dataclass(frozen=True)
class Augment:
    """Strong augmentation of the mixed picture (DACS; peer: kornia 0.5.8)."""

    jitter_probability: float = option(0.8, "Probability of colour jitter, one draw a batch.")
    jitter_strength: float = option(
        0.2, "Half range of brightness, contrast, saturation and hue (turns)."
    )
    blur_probability: float = option(0.5, "Probability of Gaussian blur, one draw a batch.")
    blur_sigma: tuple[float, float] = option((0.15, 1.15), "Range of the blur's sigma, px.")


@dataclass(frozen=True)
class Method:
    """How the network adapts. Each method is a tuple of passes (`uda/methods.py`)."""

    kind: str = option("dacs", f"One of {', '.join(METHODS)}.")
    augmented_source: bool = option(
        False,
        "source_only, target_only: one more pass on the strongly augmented source, as a control.",
    )
    ema_decay: float = option(
        0.99, "Decay of the teacher; ramped up from 0.", source="DACS 0.99, others 0.999"
    )
    threshold: float = option(0.968, "Confidence that counts a pixel into the pseudo-label weight.")
    weight_over: Literal["batch", "image"] = option(
        "batch", "One pseudo-label weight a batch or an image."
    )
    mix_classes_of: Literal["batch", "image"] = option(
        "batch", "Whose classes ClassMix draws from."
    )
    augment: Augment = option(Augment(), "Strong augmentation.")
    feature_distance: FeatureDistance = option(FeatureDistance(), "Distance to frozen features.")
    mic: MIC = option(MIC(), "Masked image consistency, in method mic.")
    mrm: MRM = option(MRM(), "Masked Representation Modeling.")
    contrast: Contrast = option(Contrast(), "Alternative to MRM: contrast with prototypes.")
    mim: MaskedImages = option(MaskedImages(), "Alternative to MRM: masked image modelling.")


@dataclass(frozen=True)
class Optimizer:
    """AdamW with the reference's groups and schedule (DAFormer sec. 4)."""

    learning_rate: float = option(6e-5, "Base learning rate of the encoder.")
    decoder_multiplier: float = option(10.0, "Learning rate of the decoder over the encoder's.")
    weight_decay: float = option(0.01, "Decoupled weight decay.")
    decay_encoder_norms: bool = option(
        False,
        "MiT: apply weight decay to the encoder's norms. A ResNet's are always decayed.",
        source="peer: mmseg configs",
    )
    warmup: float = option(0.0375, "Share of the steps spent warming up.", source="1500 of 40000")
    beta1: float = option(0.9, "Decay of the first moment.")
    beta2: float = option(0.999, "Decay of the second moment.")
    eps: float = option(1e-8, "Adam's epsilon.")


@dataclass(frozen=True)
class Train:
    """How long, how much at a time, and what happens on the way."""

    steps: int = option(40_000, "Optimiser steps.")
    batch: int = option(2, "Source pictures a step over all devices, and as many target pictures.")
    init_from: str | None = option(
        None, "Checkpoint or converted network that a fresh run starts from."
    )
    pass_execution: Literal["sequential", "stacked"] = option(
        "sequential",
        "Passes one after the other (least memory), or all views through the encoder at once.",
        runtime=True,
    )
    log_every: int = option(50, "Steps between lines of metrics.", runtime=True)
    eval_every: int = option(
        4_000, "Steps between evaluations; the last step is always evaluated.", runtime=True
    )
    checkpoint_every: int = option(
        2_000, "Steps between checkpoints; the last step is always saved.", runtime=True
    )
    panels_every: int = option(4_000, "Steps between pictures of the views.", runtime=True)
    optimise: bool = option(
        True, "Let XLA's CPU back end optimise the step; False compiles faster and runs slower."
    )
    keep: int = option(2, "Checkpoints kept besides the best and the picked one.", runtime=True)


@dataclass(frozen=True)
class Evaluation:
    """How a score is computed; printed with every number."""

    mode: Literal["whole", "slide"] = option(
        "whole", "One forward a picture, or overlapping windows."
    )
    window: tuple[int, int] = option((1024, 1024), "slide: height and width of a window, px.")
    stride: tuple[int, int] = option((512, 512), "slide: step between windows, px.")
    classes: tuple[str, ...] = option((), "Classes counted in mIoU; empty: all of the table.")
    batch: int = option(1, "Pictures a forward.", runtime=True)
    limit: int | None = option(None, "Evaluate on the first so many pictures only.")
    selection_pictures: int = option(
        50,
        "Target pictures, of their unlabelled training set, that every evaluation also scores "
        "without labels; 0: none.",
    )
    pick_by: Literal["infomax", "agreement", "masked_agreement"] = option(
        "infomax",
        "The score without labels that picks a checkpoint; the others need a teacher, or MRM.",
    )


@dataclass(frozen=True)
class Mesh:
    """Devices."""

    devices: int | None = option(
        None, "Devices the batch is spread over; empty: all.", runtime=True
    )


@dataclass(frozen=True)
class Config:
    """A run."""

    seed: int = option(0, "Seed of parameters, data order and every draw.")
    data: Data = option(Data(), "Pictures and labels.")
    model: Model = option(Model(), "Network.")
    method: Method = option(Method(), "Adaptation.")
    optimizer: Optimizer = option(Optimizer(), "Optimiser.")
    train: Train = option(Train(), "Length and cadence.")
    evaluation: Evaluation = option(Evaluation(), "Protocol.")
    mesh: Mesh = option(Mesh(), "Devices.", runtime=True)


def runtime_fields() -> set[str]:
    """Dotted names of the fields that may differ on resume, such as `train.log_every`."""
    return _runtime_fields(Config)


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
    cell = shrunk * encoder_stride(config.model.encoder)
    return config.method.mim.block or max(config.data.crop[0] // 16, cell)


def encoder_stride(encoder: Encoder) -> int:
    """Input pixels a cell of the last stage: every training crop is a multiple of it."""
    return math.prod(encoder.strides)


def smallest_side(encoder: Encoder) -> int:
    """The shortest side, px, that every stage's attention can still reduce (ResNet: one cell)."""
    if encoder.kind == "resnet":
        return encoder_stride(encoder)
    strides = accumulate(encoder.strides, mul)
    return max(stride * ratio for stride, ratio in zip(strides, encoder.sr_ratios, strict=True))


def smallest_picture(model: Model) -> int:
    """The shortest side, px, of a picture that the network takes: HRDA halves it first."""
    return smallest_side(model.encoder) * (2 if model.multires.enabled else 1)
