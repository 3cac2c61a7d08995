"""How the network adapts: self-training, MRM and what MRM is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from mrm_jax.options import option
from mrm_jax.registry import target_names

if TYPE_CHECKING:
    from mrm_jax.config.run import Config

MethodKind = Literal["source_only", "target_only", "dacs", "daformer", "hrda", "mic"]
METHODS: tuple[MethodKind, ...] = get_args(MethodKind)
TEACHER_METHODS: tuple[MethodKind, ...] = METHODS[2:]

THINGS = (
    *("light", "sign", "person", "rider", "car", "truck", "bus", "train", "motorcycle"),
    "bicycle",
)
"""Classes of countable objects, whose pretrained features are worth keeping (DAFormer sec. 3.3)."""


def rise_and_fall(ramp: float, config: Config) -> tuple[int, int]:
    """Steps in which lambda rises at the start and falls at the end; 0: it does not."""
    steps, schedule = round(ramp * config.train.steps), config.method.mrm.schedule
    return (steps if schedule == "rise" else 0, steps if schedule == "fall" else 0)


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
    weight: float = option(
        1.0, "lambda, weight of the loss.", source="paper: 1.0", low=0, step="traced"
    )
    schedule: Literal["constant", "rise", "fall"] = option(
        "constant",
        "lambda over a run: as it is, rising from 0 at the start, falling to 0 at the end.",
        step="absent",
    )
    ramp: float = option(
        0.1,
        "rise, fall: share of all steps that the change takes.",
        unit="share",
        low=0,
        high=1,
        step="traced",
        number=rise_and_fall,
    )
    ratio: float = option(
        0.4,
        "Share of tokens masked, in expectation.",
        source="paper: 0.4",
        low=0,
        high=1,
        step="traced",
    )
    grid: tuple[int, int] = option(
        (16, 16), "Rows and columns of tokens.", source="paper: 16 x 16", unit="tokens", low=1
    )
    dim: int = option(512, "Width of the Rebuilder.", source="paper: 512", low=1)
    depth: int = option(2, "Transformer blocks.", source="paper: 2", low=1)
    heads: int = option(16, "Attention heads.", source="released module: 16", low=1)
    stages: Literal["auto", "multi"] = option(
        "auto",
        "Maps that are rebuilt: all for DAFormer and SegFormer, else the last; multi: also "
        "DeepLabV3+'s first.",
    )
    learning_rate: float = option(
        2e-4, "Base learning rate of the Rebuilder.", source="paper: 2e-4", low=0, step="traced"
    )
    undecayed: tuple[Literal["token", "norms", "inner_norms"], ...] = option(
        ("token",),
        "Parts of the Rebuilder without weight decay, of token (the learned mask token), norms and "
        "inner_norms (those between a projector's transposed convolutions).",
    )
    target: str = option(
        "classes",
        "What rebuilt features are compared by: their decoded classes; the picture's pixels, from "
        "the last map alone; the encoder's or the teacher's own features. Only for classes the "
        "decoder runs and HRDA's detail is used.",
        source="paper: classes; the others are its ablations",
        choices=target_names,
    )
    hidden: Literal["rebuilt", "blank"] = option(
        "rebuilt",
        "What hidden features become: what the Rebuilder predicts, or 0, without a Rebuilder.",
    )
    trains: Literal["both", "encoder", "decoder"] = option(
        "both",
        "What the loss trains besides the Rebuilder: encoder and decoder (HRDA: and attention), "
        "or one of them.",
    )


@dataclass(frozen=True)
class FeatureDistance:
    """Keeps the encoder's features of things near those of a frozen one (DAFormer sec. 3.3)."""

    weight: float = option(
        0.0, "Weight of the loss; 0: off.", source="DAFormer: 0.005", low=0, step="weight"
    )
    classes: tuple[str, ...] = option(
        THINGS,
        "Classes whose cells are compared; names that the class table lacks are left out. Empty: "
        "all cells.",
    )
    min_share: float = option(
        0.75,
        "Least share of a cell that its class has to cover.",
        source="DAFormer: 0.75",
        low=0,
        high=1,
    )
    source: Literal["weights", "checkpoint"] = option(
        "weights",
        "The frozen encoder: config.model.encoder.weights, or that of `checkpoint`.",
        step="absent",
    )
    checkpoint: str | None = option(
        None, "Checkpoint whose encoder is the frozen one.", step="absent"
    )


@dataclass(frozen=True)
class MIC:
    """Masked image consistency: pictures with blocks or tokens hidden (Hoyer et al., CVPR 2023)."""

    weight: float = option(1.0, "Weight of the loss.", source="MIC: 1", low=0, step="traced")
    images: Literal["target", "both"] = option(
        "target", "Augmented target pictures, or plain ones, half of source and half of target."
    )
    block: int | None = option(
        None,
        "Side of a hidden block; empty: a sixteenth of the crop's height.",
        source="MIC: 64 px at crops of 1024, 32 at 512",
        unit="px",
        low=1,
    )
    hide: Literal["pixels", "tokens"] = option(
        "pixels",
        "pixels: blocks of the picture become the mean colour. tokens: the encoder's own patches "
        "become its mask token, each drawn separately; the picture itself is not changed (DINOv2).",
        source="MIC: pixels; VFM-UDA: tokens",
    )
    ratio: float = option(
        0.7,
        "Share of blocks or tokens hidden, in expectation.",
        source="MIC, VFM-UDA: 0.7",
        low=0,
        high=1,
        step="traced",
    )


@dataclass(frozen=True)
class Contrast:
    """Pixel-to-prototype contrast of the last map, on the source and the mixed picture."""

    weight: float = option(0.0, "Weight of the loss; 0: off.", low=0, step="weight")
    temperature: float = option(
        0.1,
        "What a cosine is divided by.",
        source="Wang et al., ICCV 2021: 0.1",
        low=1e-3,
        step="traced",
    )
    prototypes: int = option(
        1,
        "Learned prototypes of each class; the nearest one counts.",
        source="Zhou et al. 2022",
        low=1,
    )
    dim: int = option(
        256, "Width that features are projected to.", source="Wang et al.: 256", low=1
    )


@dataclass(frozen=True)
class MaskedImages:
    """Masked image modelling of the target: pixels of hidden blocks (SimMIM, CVPR 2022)."""

    weight: float = option(0.0, "Weight of the loss; 0: off.", low=0, step="weight")
    ratio: float = option(
        0.6,
        "Share of blocks hidden, in expectation.",
        source="SimMIM: 0.6",
        low=0,
        high=1,
        step="traced",
    )
    block: int | None = option(
        None,
        "Side of a hidden block; empty: a sixteenth of the crop's height, or a cell of the "
        "last map where that is more.",
        source="SimMIM: 32 px, a cell of Swin's last map",
        unit="px",
        low=1,
    )


@dataclass(frozen=True)
class Augment:
    """Strong augmentation of the mixed picture (DACS; peer: kornia 0.5.8)."""

    jitter_probability: float = option(
        0.8, "Probability of colour jitter, one draw a batch.", low=0, high=1, step="traced"
    )
    jitter_strength: float = option(
        0.2, "Half range of brightness, contrast, saturation and hue (turns)."
    )
    blur_probability: float = option(
        0.5, "Probability of Gaussian blur, one draw a batch.", low=0, high=1, step="traced"
    )
    blur_sigma: tuple[float, float] = option(
        (0.15, 1.15), "Range of the blur's sigma.", unit="px", low=0, high=2
    )


@dataclass(frozen=True)
class Method:
    """How the network adapts. Each method is a tuple of passes (`uda/methods.py`)."""

    kind: MethodKind = option(
        "dacs", "What is trained on: the labels of one domain, or both by a teacher."
    )
    augmented_source: bool = option(
        False,
        "source_only, target_only: one more pass on the strongly augmented source, as a control.",
    )
    ema_decay: float = option(
        0.99,
        "Decay of the teacher; ramped up from 0.",
        source="DACS 0.99, others 0.999",
        low=0,
        high=1,
        step="traced",
    )
    teacher_dtype: Literal["float32", "bfloat16"] = option(
        "float32",
        "Precision in which the teacher's parameters are kept. bfloat16 halves their memory and is "
        "rounded by chance: to the nearest, steps of 1 - ema_decay would be lost.",
    )
    teacher_flip: bool = option(
        False,
        "Pseudo-labels from the mean of the teacher's probabilities of a picture and of its mirror "
        "image; one more forward.",
        source="VFM-UDA: True",
    )
    threshold: float = option(
        0.968,
        "Confidence that counts a pixel into the pseudo-label weight.",
        low=0,
        high=1,
        step="traced",
    )
    weight_over: Literal["batch", "image"] = option(
        "batch", "One pseudo-label weight a batch or an image."
    )
    mix_classes_of: Literal["batch", "image"] = option(
        "batch", "Whose classes ClassMix draws from."
    )
    augment: Augment = option(Augment(), "Strong augmentation.")
    feature_distance: FeatureDistance = option(FeatureDistance(), "Distance to frozen features.")
    mic: MIC = option(MIC(), "Masked image consistency, in method mic.")
    objectives: tuple[tuple[str, float], ...] = option(
        (), "Registered objectives to add to their passes: each a name and a weight."
    )
    mrm: MRM = option(MRM(), "Masked Representation Modeling.")
    contrast: Contrast = option(Contrast(), "Alternative to MRM: contrast with prototypes.")
    mim: MaskedImages = option(MaskedImages(), "Alternative to MRM: masked image modelling.")
