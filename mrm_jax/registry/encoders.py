"""Encoders, each registered once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any, NamedTuple

from mrm_jax.errors import UsageError
from mrm_jax.registry import layers
from mrm_jax.registry.table import Reference, Registered, Table, piece

Sizes = tuple[tuple[int, int], ...]
"""(rows, columns) of every map, the first stage first."""


class InputStats(NamedTuple):
    """Mean and deviation, RGB in grey levels 0..255, that pictures are normalised by."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def grey(self) -> tuple[int, int, int]:
        """The 8-bit colour that normalises to (almost) 0: what pictures are padded with."""
        red, green, blue = (min(max(round(level), 0), 255) for level in self.mean)
        return red, green, blue


IMAGENET = InputStats((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""Source: the reference (peer: mmseg `Normalize`)."""


@dataclass(frozen=True, kw_only=True)
class EncoderKind(Registered):
    """A family of encoders, `config.model.encoder.kind`. `encoder` below: a `config.Encoder`."""

    module: Reference = piece(
        "(config.Model, dtype of the arithmetic or None for the picture's) -> module(image f[B,H,W,"
        "3], mode) -> maps, for crops and for any other sides of at least `smallest`"
    )
    map_sizes: Callable[[Any, int, int], Sizes] = piece(
        "(encoder, height, width) -> rows and columns of every map that decoders see of such a "
        "picture"
    )
    multiple: Callable[[Any], int] = piece(
        "(encoder) -> what the sides of a training crop are a multiple of, px"
    )
    input: InputStats = piece("mean and deviation of its pictures, InputStats(...) or IMAGENET")
    neck: Reference | None = piece(
        "(config.Encoder) -> module(maps) -> the maps that decoder and Rebuilder see, or None for "
        "the encoder's own; it is trained like the decoder",
        None,
    )
    covers: Callable[[Any, int, int], tuple[int, int]] | None = piece(
        "(encoder, height, width) -> px that the maps of such a picture lie over, where it is "
        "padded at the bottom and the right; None: the picture",
        None,
    )
    tokens: Callable[[Any, int, int], tuple[int, int]] | None = piece(
        "(encoder, height, width) -> rows and columns of the tokens of such a picture that "
        "module(image, mode, hide bool[B, rows, columns]) puts its mask token in place of; None: "
        "it has no mask token",
        None,
    )
    hrda: bool = piece("whether HRDA may run it at two resolutions", True)
    smallest: Callable[[Any], int] | None = piece(
        "(encoder) -> the shortest side that it takes, px; None: `multiple`", None
    )
    classifier: Reference | None = piece(
        "(config.Model, dtype, classes, channels that it averages) -> module(image, mode) -> "
        "(maps, logits), the encoder as it was pretrained; None: it has no classifier",
        None,
    )
    channels: Callable[[Any], tuple[int, ...]] = piece(
        "(encoder) -> channels of every such map", lambda encoder: tuple(encoder.dims)
    )
    variants: Mapping[str, Mapping[str, Any]] = piece(
        "name after encoder= -> fields of config.Encoder that differ from its defaults",
        {},
    )
    kept: tuple[str, ...] = piece(
        "fields that stay when encoder= names another size of the family: how it is run, not how "
        "large it is",
        (),
    )
    per_stage: tuple[str, ...] = piece("fields with one entry a stage, as dims has", ())
    problem: Callable[[Any], str | None] = piece(
        "(encoder) -> what is wrong with its fields, a sentence that starts with one's name",
        lambda encoder: None,
    )
    shown: tuple[str, ...] = piece("fields that the shapes of the tensors show", ())
    implied: tuple[str, ...] = piece("fields that only the layout of a weight file tells", ())
    unshown: tuple[str, ...] = piece("fields that only a run or converted folder tells", ())
    undecayed: str = piece(
        "pattern of the parameters below encoder/ that config.optimizer.decay_encoder_norms is "
        "about",
        r"(?:[^/]+/)*norm\d*/(?:scale|bias)",
    )
    layers: Callable[[Any], layers.Layers] | None = piece(
        "(encoder) -> the layer of every parameter, for config.optimizer.layer_decay; None: it has "
        "no layers",
        None,
    )
    momentum: float = piece("share of a batch in the running averages of its BatchNorms", 0.1)
    sharding: tuple[tuple[str, int | None], ...] = piece(
        "(pattern of a parameter below encoder/, axis that is split over devices or None), before "
        "the general rules, which are about leaves called kernel, bias and scale",
        (),
    )
    conversion: Reference | None = piece(
        "convert.layouts.EncoderFiles: how weight files call its tensors", None
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        stats = self.input
        if (
            not isinstance(stats, InputStats)
            or len(stats.mean) != 3
            or len(stats.std) != 3
            or not all(map(math.isfinite, (*stats.mean, *stats.std)))
            or min(stats.std) <= 0
        ):
            raise UsageError(
                f"EncoderKind '{self.name}' has input {stats!r}; it takes InputStats with three "
                "means and three deviations above 0.",
                field=f"EncoderKind '{self.name}'",
                value=stats,
            )


def strided(encoder: Any, height: int, width: int) -> Sizes:
    """Sizes of maps of which each is `strides` smaller than the one before, rounded up."""
    totals = accumulate(encoder.strides, mul)
    return tuple((-(-height // total), -(-width // total)) for total in totals)


def total_stride(encoder: Any) -> int:
    """Input px a cell of the last of such maps."""
    return math.prod(encoder.strides)


def _reducible(encoder: Any) -> int:
    """The shortest side, px, that every stage's attention can still reduce."""
    totals = accumulate(encoder.strides, mul)
    return max(total * ratio for total, ratio in zip(totals, encoder.sr_ratios, strict=True))


def _undivided(encoder: Any) -> str | None:
    for dim, heads in zip(encoder.dims, encoder.heads, strict=True):
        if dim % heads:
            return f"dims has {dim}, not a multiple of its {heads} attention heads."
    return None


STEM_STRIDE = 2
"""Stride of the stem of MobileNetV2 and EfficientNet-Lite."""


def mapped_stages(strides: tuple[int, ...]) -> tuple[int, ...]:
    """Their stages that give a map: the last one at each stride beyond the stem's."""
    last = [*(stride > 1 for stride in strides[1:]), True]
    totals = accumulate(strides, mul)
    return tuple(i for i, total in enumerate(totals) if last[i] and total > STEM_STRIDE)


def _mapped_sizes(encoder: Any, height: int, width: int) -> Sizes:
    sizes = strided(encoder, height, width)
    return tuple(sizes[i] for i in mapped_stages(encoder.strides))


def _mapped_channels(encoder: Any) -> tuple[int, ...]:
    return tuple(encoder.dims[i] for i in mapped_stages(encoder.strides))


def _not_inverted(encoder: Any) -> str | None:
    if encoder.strides[0] % STEM_STRIDE:
        return f"strides is {encoder.strides}; the first holds the stem's {STEM_STRIDE}."
    if not mapped_stages(encoder.strides):
        return f"strides is {encoder.strides}; maps begin beyond the stem's stride, {STEM_STRIDE}."
    if even := [kernel for kernel in encoder.kernels if kernel % 2 == 0]:
        return f"kernels has {even[0]}; a kernel has a middle, so its side is odd."
    if encoder.expansions[0] != 1 or 1 in encoder.expansions[1:]:
        return f"expansions is {encoder.expansions}; it is 1 in the first stage and in no other."
    return None


def _misfit_stem(encoder: Any) -> str | None:
    if all(dim % 4 == 0 for dim in encoder.dims) and encoder.strides[0] == 4:
        return None
    return (
        f"dims is {encoder.dims} and strides {encoder.strides}; a ResNet's widths are multiples of "
        "4 and its first stride is 4, the stem's."
    )


ENCODER_KINDS = Table(EncoderKind, "model.encoder.kind")

# SegFormer paper, table 6.
_SMALL, _LARGE = (32, 64, 160, 256), (64, 128, 320, 512)
# PVTv2 paper, table 1.
_WIDE = {"mlp_ratios": (8, 8, 4, 4)}

ENCODER_KINDS.register(
    EncoderKind(
        name="mit",
        module="mrm_jax.models.mit:build_mit",
        map_sizes=strided,
        multiple=total_stride,
        input=IMAGENET,
        smallest=_reducible,
        variants={
            "mit_b0": {"dims": _SMALL, "depths": (2, 2, 2, 2)},
            "mit_b1": {"dims": _LARGE, "depths": (2, 2, 2, 2)},
            "mit_b2": {"dims": _LARGE, "depths": (3, 4, 6, 3)},
            "mit_b3": {"dims": _LARGE, "depths": (3, 4, 18, 3)},
            "mit_b4": {"dims": _LARGE, "depths": (3, 8, 27, 3)},
            "mit_b5": {"dims": _LARGE, "depths": (3, 6, 40, 3)},
            # The same network but for the MLPs of stages 1 and 2; B5 is MiT-B5 in every tensor.
            "pvt_v2_b0": {"dims": _SMALL, "depths": (2, 2, 2, 2), **_WIDE},
            "pvt_v2_b1": {"dims": _LARGE, "depths": (2, 2, 2, 2), **_WIDE},
            "pvt_v2_b2": {"dims": _LARGE, "depths": (3, 4, 6, 3), **_WIDE},
            "pvt_v2_b3": {"dims": _LARGE, "depths": (3, 4, 18, 3), **_WIDE},
            "pvt_v2_b4": {"dims": _LARGE, "depths": (3, 8, 27, 3), **_WIDE},
            "pvt_v2_b5": {"dims": _LARGE, "depths": (3, 6, 40, 3)},
        },
        per_stage=("depths", "strides", "heads", "sr_ratios", "mlp_ratios"),
        problem=_undivided,
        shown=("dims", "depths", "sr_ratios", "mlp_ratios"),
        implied=("norm_eps", "embed_norm_eps"),
        unshown=("heads",),
        layers=layers.mit,
        conversion="mrm_jax.convert.encoders:FILES",
    )
)

# ResNet paper, table 1.
_RESNET = {"dims": (256, 512, 1024, 2048), "strides": (4, 2, 1, 1)}
_DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}

ENCODER_KINDS.register(
    EncoderKind(
        name="resnet",
        module="mrm_jax.models.resnet:build_resnet",
        map_sizes=strided,
        multiple=total_stride,
        input=IMAGENET,
        variants={
            name + ("_7x7" if stem == "7x7" else ""): {**_RESNET, "depths": depths, "stem": stem}
            for stem in ("v1c", "7x7")
            for name, depths in _DEPTHS.items()
        },
        per_stage=("depths", "strides", "dilations"),
        problem=_misfit_stem,
        shown=("dims", "depths", "stem"),
        layers=layers.resnet,
        conversion="mrm_jax.convert.resnet:FILES",
    )
)

# Both: linear outputs of the last block at each stride; no norm is decayed, and the narrow 1x1 of a
# block is split along its inputs, of which there are more than outputs.
_INVERTED = {
    "map_sizes": _mapped_sizes,
    "multiple": total_stride,
    "smallest": lambda encoder: 1,
    "channels": _mapped_channels,
    "per_stage": ("depths", "strides", "kernels", "expansions"),
    "problem": _not_inverted,
    "shown": ("dims", "depths", "kernels", "expansions", "stem_width"),
    "layers": layers.inverted,
    "undecayed": r"(?:[^/]+/)*[a-z_]*bn/(?:scale|bias)",
    "sharding": ((r"(?:mbconv|bottleneck)\d+/project/kernel", -2),),
}
_STRIDES = (2, 2, 2, 2, 1, 2, 1)
_WIDER = {"expansions": (1, 6, 6, 6, 6, 6, 6), "strides": _STRIDES, "stem_width": 32}

# EfficientNet paper, table 1, with the coefficients of Lite: 1.0 x 1.0, 1.0 x 1.1, 1.1 x 1.2.
_LITE = {**_WIDER, "kernels": (3, 3, 5, 3, 5, 5, 3), "drop_path": 0.2}
_LITE_DIMS = (16, 24, 40, 80, 112, 192, 320)

ENCODER_KINDS.register(
    EncoderKind(
        name="efficientnet_lite",
        module="mrm_jax.models.mobile:efficientnet_lite",
        classifier="mrm_jax.models.mobile:efficientnet_lite",
        input=InputStats((127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
        variants={
            "efficientnet_lite0": {**_LITE, "dims": _LITE_DIMS, "depths": (1, 2, 2, 3, 3, 4, 1)},
            "efficientnet_lite1": {**_LITE, "dims": _LITE_DIMS, "depths": (1, 3, 3, 4, 4, 5, 1)},
            "efficientnet_lite2": {
                **_LITE,
                "dims": (16, 24, 48, 88, 120, 208, 352),
                "depths": (1, 3, 3, 4, 4, 5, 1),
            },
        },
        momentum=0.01,
        conversion="mrm_jax.convert.mobile:EFFICIENTNET_LITE_FILES",
        **_INVERTED,
    )
)

# MobileNetV2 paper, table 2.
ENCODER_KINDS.register(
    EncoderKind(
        name="mobilenet_v2",
        module="mrm_jax.models.mobile:mobilenet_v2",
        classifier="mrm_jax.models.mobile:mobilenet_v2",
        input=IMAGENET,
        variants={
            "mobilenet_v2": {
                **_WIDER,
                "dims": (16, 24, 32, 64, 96, 160, 320),
                "depths": (1, 2, 3, 4, 3, 3, 1),
                "kernels": (3,) * 7,
                "drop_path": 0.0,
            }
        },
        conversion="mrm_jax.convert.mobile:MOBILENET_V2_FILES",
        **_INVERTED,
    )
)
