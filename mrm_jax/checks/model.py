"""The network, and crops that fit its strides."""

from __future__ import annotations

from mrm_jax.checks.require import require_at, require_value
from mrm_jax.config import Config, crop_multiple, detail_crop, map_sizes, smallest_side, strides
from mrm_jax.registry import DECODER_KINDS, ENCODER_KINDS


def check_model(config: Config) -> None:
    """Raises UsageError: kinds that are not registered, an encoder whose fields do not fit each
    other."""
    DECODER_KINDS[config.model.decoder.kind]
    encoder = config.model.encoder
    kind = ENCODER_KINDS[encoder.kind]
    for piece in ("per_stage", "shown", "implied", "unshown", "kept"):
        unknown = [name for name in getattr(kind, piece) if not hasattr(encoder, name)]
        require_at(
            not unknown,
            f"EncoderKind '{kind.name}'",
            f" has {', '.join(unknown)} in {piece}, which config.Encoder has not.",
        )
    for name in kind.per_stage:
        value = getattr(encoder, name)
        require_value(
            len(value) == len(encoder.dims),
            f"config.model.encoder.{name}",
            value,
            f"; dims has {len(encoder.dims)} stages, give as many entries.",
        )
    field, _, fault = (kind.problem(encoder) or "").partition(" ")
    require_at(not field, f"config.model.encoder.{field}", f" {fault}")
    require_value(
        config.optimizer.layer_decay == 1 or kind.layers is not None,
        "config.optimizer.layer_decay",
        config.optimizer.layer_decay,
        f", but the registration of encoder kind {kind.name} names no layers",
        "leave it at 1.",
    )
    side = max(crop_multiple(encoder), smallest_side(encoder))
    channels = kind.channels(encoder)
    sizes = map_sizes(encoder, side, side)
    require_at(
        len(sizes) == len(channels) and all(min(size) >= 1 for size in sizes),
        f"EncoderKind '{kind.name}'",
        f": map_sizes of {side} x {side} px is {sizes} and channels is {channels}",
        "both have one entry a map, of 1 and more.",
    )
    decoder = DECODER_KINDS[config.model.decoder.kind]
    require_value(
        channels[-1] >= decoder.narrowest,
        "config.model.encoder.dims",
        encoder.dims,
        f", whose last map has {channels[-1]} channels; decoder {decoder.name} needs "
        f"{decoder.narrowest}",
        "make it wider.",
    )


def check_crops(config: Config) -> None:
    """Raises UsageError: a crop that the strides do not divide."""
    multires, crop = config.model.multires, config.data.crop
    if not multires.enabled:
        _check_crop(config, "data.crop", crop, 1)
        return
    _check_hrda(config)
    _check_crop(config, "data.crop", crop, 2)
    detail = detail_crop(config)
    _check_crop(config, "model.multires.detail", detail, 1)
    require_value(
        detail[0] <= crop[0] and detail[1] <= crop[1],
        "config.model.multires.detail",
        detail,
        f", larger than the crop {crop}.",
    )
    encoder, multiple = config.model.encoder, multires.offset_multiple
    stage = DECODER_KINDS[config.model.decoder.kind].logits
    assert stage is not None  # `_check_hrda`
    side, stride = crop_multiple(encoder), strides(encoder)[stage]
    rows = map_sizes(encoder, side, side)[stage][0]
    require_at(
        rows * stride == side,
        "config.model.multires.enabled",
        f" is True, but a cell of encoder kind {encoder.kind} is {side / rows:g} px, and "
        "HRDA puts crops on whole ones",
        "set it to False.",
    )
    require_value(
        multiple % stride == 0,
        "config.model.multires.offset_multiple",
        multiple,
        "; where a detail crop starts has to be a multiple of the decoder's stride, "
        f"{stride}, or its logits are shifted.",
    )


def _check_hrda(config: Config) -> None:
    """Raises UsageError: an encoder or a decoder that HRDA cannot run at two resolutions."""
    encoder, decoder = config.model.encoder.kind, config.model.decoder.kind
    for what, fits in (
        (f"encoder kind {encoder}", ENCODER_KINDS[encoder].hrda),
        (f"decoder kind {decoder}", DECODER_KINDS[decoder].logits is not None),
    ):
        require_at(
            fits,
            "config.model.multires.enabled",
            f" is True, but {what} does not go with HRDA, which puts crops on cells of whole px",
            "set it to False.",
        )


def _check_crop(config: Config, name: str, crop: tuple[int, int], shrunk: int) -> None:
    """The crop that an encoder sees after shrinking by `shrunk` has to fit its strides."""
    encoder = config.model.encoder
    multiple, least = shrunk * crop_multiple(encoder), shrunk * smallest_side(encoder)
    why = "the stride of the encoder" + (", twice, for HRDA's context" if shrunk > 1 else "")
    for side, axis in zip(crop, ("height", "width"), strict=True):
        require_value(
            side > 0 and side % multiple == 0,
            f"config.{name}",
            crop,
            f": its {axis} {side} is not a multiple of {multiple}, {why}.",
            f"Try {max(1, round(side / multiple)) * multiple}.",
        )
        require_value(
            side >= least,
            f"config.{name}",
            crop,
            f": its {axis} is below {least} px, the least that the encoder can reduce.",
        )
