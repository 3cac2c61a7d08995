"""The network that is trained and kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mrm_jax.options import option
from mrm_jax.registry import DECODER_KINDS, ENCODER_KINDS, InputStats, Sizes


@dataclass(frozen=True)
class Encoder:
    """An encoder of any size. Named sizes: `variants.ENCODERS`."""

    kind: str = option("mit", "Family.", choices=ENCODER_KINDS.names)
    dims: tuple[int, ...] = option((64, 128, 320, 512), "Channels of each stage.", low=1)
    depths: tuple[int, ...] = option((3, 6, 40, 3), "Blocks of each stage.", low=1)
    strides: tuple[int, ...] = option(
        (4, 2, 2, 2),
        "Stride of each stage, over the map before; the first holds that of the stem, 4 in a "
        "ResNet, 2 in EfficientNet-Lite and MobileNetV2.",
        low=1,
    )
    heads: tuple[int, ...] = option(
        (1, 2, 5, 8), "MiT, DINOv2: attention heads of each stage.", low=1
    )
    sr_ratios: tuple[int, ...] = option(
        (8, 4, 2, 1), "MiT: spatial reduction of keys and values in each stage.", low=1
    )
    mlp_ratios: tuple[int, ...] = option(
        (4, 4, 4, 4),
        "MiT, DINOv2: hidden width of each stage's dense layers over their input's; DINOv2's "
        "swiglu has two thirds of it.",
        low=1,
    )
    drop_path: float = option(
        0.1,
        "Not ResNet: largest drop-path rate (EfficientNet: drop-connect); grows linearly over the "
        "blocks.",
        low=0,
        high=1,
    )
    norm_eps: float = option(1e-6, "MiT, DINOv2: epsilon of block and stage LayerNorms.", low=0)
    embed_norm_eps: float = option(
        1e-5, "MiT: epsilon of the patch-embedding and reduction LayerNorms.", low=0
    )
    dilations: tuple[int, ...] = option(
        (1, 1, 2, 4),
        "ResNet: dilation of each stage's 3x3 kernels; halved in its first block.",
        source="peer: mmseg ResNetV1c, contract_dilation",
        low=1,
    )
    stem: Literal["v1c", "7x7"] = option(
        "v1c", "ResNet: three 3x3 kernels, or torchvision's one 7x7."
    )
    kernels: tuple[int, ...] = option(
        (3, 3, 5, 3, 5, 5, 3),
        "EfficientNet-Lite, MobileNetV2: side of each stage's depthwise kernels, odd.",
        unit="cells",
        low=1,
    )
    expansions: tuple[int, ...] = option(
        (1, 6, 6, 6, 6, 6, 6),
        "EfficientNet-Lite, MobileNetV2: width inside the blocks of each stage over their input's; "
        "1 in the first.",
        low=1,
    )
    stem_width: int = option(
        32, "EfficientNet-Lite, MobileNetV2: channels of the stem's map.", low=1
    )
    ffn: Literal["mlp", "swiglu"] = option(
        "mlp", "DINOv2: two dense layers with a GELU, or gated ones (its giant)."
    )
    registers: int = option(0, "DINOv2: register tokens beside the class token.", low=0)
    position_grid: int = option(
        37,
        "DINOv2: positions a side that are learned.",
        unit="cells",
        source="DINOv2: 518 px pictures",
        low=1,
    )
    positions: Literal["meta", "resize", "antialias"] = option(
        "meta",
        "DINOv2: bicubic filter that brings the positions to a picture's size. meta: as its own "
        "code does, with an offset of 0.1, or for registers as antialias; resize: by size without "
        "the offset (transformers without registers); antialias: wide kernels (timm).",
    )
    resize: Literal["native", "1.1"] = option(
        "native",
        "DINOv2: how a picture gets sides of whole patches. native: padded with the mean colour at "
        "the bottom and the right, logits cut; 1.1: resized to 1.1 times its sides, rounded down, "
        "logits resized back.",
        source="VFM-UDA: 1.1",
    )
    pyramid: bool = option(
        False,
        "DINOv2: hand out four maps, of 4, 2, 1 and 1/2 times the patches' grid, instead of one; "
        "made by transposed convolutions that are trained like the decoder.",
        source="ViTDet sec. 3",
    )
    weights: str | None = option(
        None,
        "Pretrained weights to start from: a converted folder, a raw file, package://NAME or "
        "hf://ORG/NAME[/FILE][@REVISION].",
        step="absent",
    )


@dataclass(frozen=True)
class Decoder:
    """The head that turns features into class scores. Named ones: `variants.DECODERS`."""

    kind: str = option("daformer", "Family.", choices=DECODER_KINDS.names)
    channels: int = option(
        256,
        "Width of the embeddings and of the fused map (SegFormer: 768, DeepLabV3+: 512).",
        low=1,
    )
    fusion: Literal["aspp", "conv1"] = option(
        "aspp", "DAFormer: separable ASPP or one 1x1 convolution."
    )
    dilations: tuple[int, ...] = option(
        (1, 6, 12, 18), "Dilation of each parallel branch (DAFormer, DeepLab).", unit="cells", low=1
    )
    concat: Literal["c1..c4", "c4..c1"] = option(
        "c1..c4", "SegFormer: order of the concatenated stages."
    )
    low_channels: int = option(48, "DeepLabV3+: width that the first stage is reduced to.", low=1)
    norm: bool = option(
        False, "DeepLabV3+: BatchNorm after its convolutions.", source="DAFormer: without"
    )
    dropout: float = option(
        0.1,
        "Probability of dropping a channel before the classifier (DeepLabV2 has none).",
        low=0,
        high=1,
    )


@dataclass(frozen=True)
class MultiRes:
    """Context at half the resolution and a detail crop at the full one (HRDA, ECCV 2022)."""

    enabled: bool = option(False, "Run encoder and decoder at both resolutions.")
    detail: tuple[int, int] | None = option(
        None,
        "Height and width of the detail crop; empty: half of the training crop.",
        unit="px",
        low=1,
    )
    offset_multiple: int = option(
        8, "A detail crop starts at a multiple of so many.", source="HRDA: 8", unit="px", low=1
    )
    detail_weight: float = option(
        0.1,
        "Weight of the detail loss; the fused one has the rest.",
        source="HRDA sec. 3.3",
        low=0,
        high=1,
        step="traced",
    )
    attention_channels: int = option(
        256, "Width of the scale attention's head.", source="HRDA", low=1
    )


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
    precision: Literal["default", "high", "highest"] = option(
        "default",
        "Products of float32: as the device does them itself (default: a CPU exactly, NVIDIA GPUs "
        "by TF32, TPUs by bfloat16), by TF32 or as good (high), exactly (highest). No effect on "
        "those of dtype=bfloat16.",
    )
    attention: Literal["plain", "fused"] = option(
        "plain",
        "MiT, DINOv2, Rebuilder: how attention is computed. fused: by one kernel of cuDNN that "
        "keeps no scores, on NVIDIA GPUs with dtype=bfloat16, where the heads have at most 128 "
        "channels and the numbers of queries and keys are even; plain everywhere else.",
        runtime=True,
    )
    unroll: bool = option(
        True, "Run the blocks of a stage unrolled; False compiles faster.", runtime=True
    )


_SIDE = 5040
"""Of a picture so large that a cell which a border adds does not count; divided by 1 to 10."""


def map_sizes(encoder: Encoder, height: int, width: int) -> Sizes:
    """Rows and columns of every map of a picture."""
    return ENCODER_KINDS[encoder.kind].map_sizes(encoder, height, width)


def crop_multiple(encoder: Encoder) -> int:
    """What the sides of a crop are a multiple of, px."""
    return ENCODER_KINDS[encoder.kind].multiple(encoder)


def strides(encoder: Encoder) -> tuple[int, ...]:
    """Input px a cell of every map, rounded down where that is no whole number."""
    side = _SIDE * crop_multiple(encoder)
    return tuple(max(side // rows, 1) for rows, _ in map_sizes(encoder, side, side))


def smallest_side(encoder: Encoder) -> int:
    """The shortest side, px, that the encoder takes."""
    kind = ENCODER_KINDS[encoder.kind]
    return (kind.smallest or kind.multiple)(encoder)


def input_stats(model: Model) -> InputStats:
    """Mean and deviation that pictures are normalised by for the network."""
    return ENCODER_KINDS[model.encoder.kind].input


def smallest_picture(model: Model) -> int:
    """The shortest side, px, of a picture that the network takes: HRDA halves it first."""
    return smallest_side(model.encoder) * (2 if model.multires.enabled else 1)
