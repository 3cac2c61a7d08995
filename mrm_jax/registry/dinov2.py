"""DINOv2, registered: a plain ViT, whose one map a pyramid may turn into four."""

from __future__ import annotations

from typing import Any

from mrm_jax.registry import layers
from mrm_jax.registry.encoders import ENCODER_KINDS, IMAGENET, EncoderKind, Sizes

GROWTH = 1.1
"""Sides of what the encoder sees over those of the picture, `resize` "1.1". Source: peer, vfm-uda
models/vit_variants/vit_lightweight_head.py."""


def tokens(resize: str, patch: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the patches of `patch` px of a picture, of what `resize`
    (`config.Encoder.resize`) makes of it."""
    if resize == "native":
        return -(-height // patch), -(-width // patch)
    return int(GROWTH * height) // patch, int(GROWTH * width) // patch


def _tokens(encoder: Any, height: int, width: int) -> tuple[int, int]:
    return tokens(encoder.resize, encoder.strides[0], height, width)


def _map_sizes(encoder: Any, height: int, width: int) -> Sizes:
    rows, columns = _tokens(encoder, height, width)
    if not encoder.pyramid:
        return ((rows, columns),)
    half = (-(-rows // 2), -(-columns // 2))
    return ((4 * rows, 4 * columns), (2 * rows, 2 * columns), (rows, columns), half)


def _covers(encoder: Any, height: int, width: int) -> tuple[int, int]:
    if encoder.resize != "native":
        return height, width
    rows, columns = _tokens(encoder, height, width)
    return rows * encoder.strides[0], columns * encoder.strides[0]


def _channels(encoder: Any) -> tuple[int, ...]:
    (dim,) = encoder.dims
    return (dim // 4, dim // 2, dim, dim) if encoder.pyramid else (dim,)


def ffn_width(ffn: str, dim: int, ratio: int) -> int:
    """Hidden width of a block's feed-forward part; a gated one has two thirds of it, rounded up to
    a multiple of 8. Source: DINOv2's dinov2/layers/swiglu_ffn.py."""
    hidden = dim * ratio
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if ffn == "swiglu" else hidden


def _problem(encoder: Any) -> str | None:
    if len(encoder.dims) != 1:
        return f"dims is {encoder.dims}; a ViT has one stage, give one entry."
    dim, heads = encoder.dims[0], encoder.heads[0]
    if dim % heads:
        return f"dims has {dim}, not a multiple of its {heads} attention heads."
    if encoder.pyramid and dim % 4:
        return f"dims has {dim}; a pyramid's widths are halves and quarters, use a multiple of 4."
    return None


def _variant(dim: int, depth: int, ffn: str = "mlp", registers: int = 0) -> dict[str, Any]:
    """Source: peer, dinov2/hub/backbones.py. Heads of 64 channels, no drop-path."""
    return {
        "dims": (dim,),
        "depths": (depth,),
        "strides": (14,),
        "heads": (dim // 64,),
        "mlp_ratios": (4,),
        "ffn": ffn,
        "registers": registers,
        "drop_path": 0.0,
    }


ENCODER_KINDS.register(
    EncoderKind(
        name="dinov2",
        module="mrm_jax.models.dinov2:build_dinov2",
        neck="mrm_jax.models.dinov2:build_pyramid",
        map_sizes=_map_sizes,
        channels=_channels,
        covers=_covers,
        tokens=_tokens,
        multiple=lambda encoder: 1,
        smallest=lambda encoder: encoder.strides[0],
        input=IMAGENET,
        hrda=False,
        variants={
            "dinov2_s14": _variant(384, 12),
            "dinov2_b14": _variant(768, 12),
            "dinov2_l14": _variant(1024, 24),
            "dinov2_g14": _variant(1536, 40, "swiglu"),
            "dinov2_s14_reg": _variant(384, 12, registers=4),
            "dinov2_b14_reg": _variant(768, 12, registers=4),
            "dinov2_l14_reg": _variant(1024, 24, registers=4),
        },
        per_stage=("depths", "strides", "heads", "mlp_ratios"),
        problem=_problem,
        shown=("dims", "depths", "strides", "ffn", "mlp_ratios", "registers", "position_grid"),
        implied=("norm_eps", "positions"),
        unshown=("heads", "resize"),
        layers=layers.vit,
        kept=("resize", "positions", "pyramid"),
        sharding=((r"cls_token|register_tokens|positions|blocks/ls\d", None),),
        conversion="mrm_jax.convert.dinov2:FILES",
    )
)
