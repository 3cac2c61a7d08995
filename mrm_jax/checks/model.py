"""The network, and crops that fit its strides."""

from __future__ import annotations

from mrm_jax.checks.require import require
from mrm_jax.config import Config, detail_crop, encoder_stride, smallest_side


def check_model(config: Config) -> None:
    """Raises UsageError: an encoder whose fields do not fit each other."""
    encoder = config.model.encoder
    per_stage = {"mit": ("heads", "sr_ratios"), "resnet": ("dilations",)}[encoder.kind]
    for name in ("depths", "strides", *per_stage):
        value = getattr(encoder, name)
        require(
            len(value) == len(encoder.dims),
            f"config.model.encoder.{name} is {value}; dims has "
            f"{len(encoder.dims)} stages, give as many entries.",
        )
    if encoder.kind == "resnet":
        require(
            all(dim % 4 == 0 for dim in encoder.dims) and encoder.strides[0] == 4,
            f"config.model.encoder.dims is {encoder.dims} and strides {encoder.strides}; a "
            "ResNet's widths are multiples of 4 and its first stride is 4, the stem's.",
        )
        return
    for dim, heads in zip(encoder.dims, encoder.heads, strict=True):
        require(
            dim % heads == 0,
            f"config.model.encoder.dims has {dim}, not a multiple of its {heads} attention heads.",
        )


def check_crops(config: Config) -> None:
    """Raises UsageError: a crop that the strides do not divide."""
    multires, crop = config.model.multires, config.data.crop
    if not multires.enabled:
        _check_crop(config, "data.crop", crop, 1)
        return
    _check_crop(config, "data.crop", crop, 2)
    detail = detail_crop(config)
    _check_crop(config, "model.multires.detail", detail, 1)
    require(
        detail[0] <= crop[0] and detail[1] <= crop[1],
        f"config.model.multires.detail is {detail}, larger than the crop {crop}.",
    )
    encoder, multiple = config.model.encoder, multires.offset_multiple
    last = config.model.decoder.kind == "deeplabv2"
    stride = encoder_stride(encoder) if last else encoder.strides[0]
    require(
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
        require(
            side > 0 and side % multiple == 0,
            f"config.{name} is {crop}: its {axis} {side} is not a multiple of "
            f"{multiple}, {why}. Try {max(1, round(side / multiple)) * multiple}.",
        )
        require(
            side >= least,
            f"config.{name} is {crop}: its {axis} is below {least} px, the least that "
            "the encoder's attention can reduce (strides, sr_ratios).",
        )
