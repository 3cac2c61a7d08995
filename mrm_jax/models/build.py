"""From configuration to modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from mrm_jax import config
from mrm_jax.errors import UsageError
from mrm_jax.models.multires import MultiResSegmentor
from mrm_jax.models.rebuilder import Blank, Rebuilder
from mrm_jax.models.segmentor import Segmentor
from mrm_jax.ops.attention import Form
from mrm_jax.registry import (
    DECODER_KINDS,
    ENCODER_KINDS,
    OBJECTIVE_KINDS,
    Sizes,
    judging,
    referenced,
)
from mrm_jax.types import FeatureSpec


@dataclass(frozen=True)
class _MapSizes:
    """`config.map_sizes` of an encoder; two of equal encoders are equal."""

    encoder: config.Encoder

    def __call__(self, height: int, width: int) -> Sizes:
        return config.map_sizes(self.encoder, height, width)


@dataclass(frozen=True)
class _Covers:
    """What `EncoderKind.covers` says of an encoder; two of equal encoders are equal."""

    encoder: config.Encoder

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        covers = ENCODER_KINDS[self.encoder.kind].covers
        return (height, width) if covers is None else covers(self.encoder, height, width)


def feature_spec(encoder: config.Encoder) -> FeatureSpec:
    """Channels and sizes of the maps that decoder and Rebuilder see."""
    return FeatureSpec(
        channels=ENCODER_KINDS[encoder.kind].channels(encoder),
        strides=config.strides(encoder),
        map_sizes=_MapSizes(encoder),
    )


def build_encoder(model: config.Model) -> nn.Module:
    """The encoder without its neck: `module(image, mode)` gives a tuple of maps."""
    return referenced(ENCODER_KINDS[model.encoder.kind].module)(model, _dtype(model))


def _dtype(model: config.Model) -> jnp.dtype | None:
    """Of the arithmetic; None: the picture's."""
    return None if model.dtype == "float32" else jnp.dtype(model.dtype)


def build_classifier(model: config.Model, classes: int, width: int) -> nn.Module:
    """The encoder with the classifier that it was pretrained with: `module(image, mode)` gives
    (maps, logits f[B, classes]); `width`: channels that the classifier averages. No segmentor has
    it. Raises UsageError for an encoder without one."""
    kind = ENCODER_KINDS[model.encoder.kind]
    if kind.classifier is None:
        field = "config.model.encoder.kind"
        raise UsageError.of(field, kind.name, ", registered without a classifier", "take another.")
    return referenced(kind.classifier)(model, _dtype(model), classes, width)


def build_neck(encoder: config.Encoder) -> nn.Module | None:
    """What stands between encoder and decoder: `module(maps)` gives maps; None: nothing."""
    neck = ENCODER_KINDS[encoder.kind].neck
    return None if neck is None else referenced(neck)(encoder)


def build_decoder(decoder: config.Decoder, num_classes: int, remat: str = "none") -> nn.Module:
    """The decoder: `module(features, mode)` gives logits [B, h, w, num_classes]; `remat` as in
    `config.Model`."""
    return referenced(DECODER_KINDS[decoder.kind].module)(decoder, num_classes, remat)


def build_segmentor(
    model: config.Model, num_classes: int, detail: tuple[int, int] | None = None
) -> Segmentor | MultiResSegmentor:
    """The network that is trained and kept. dtype "float32" follows the image's dtype, so float64
    images stay float64. `detail` (height, width), px: HRDA's detail crop (`config.detail_crop`)."""
    encoder = build_encoder(model)
    decoder = build_decoder(model.decoder, num_classes, model.remat)
    if not model.multires.enabled:
        covers = _Covers(model.encoder) if ENCODER_KINDS[model.encoder.kind].covers else None
        return Segmentor(encoder, decoder, build_neck(model.encoder), covers)
    detail = model.multires.detail or detail
    if detail is None:
        raise ValueError("build_segmentor: HRDA needs the size of the detail crop.")
    spec, stage = feature_spec(model.encoder), DECODER_KINDS[model.decoder.kind].logits
    if stage is None or not ENCODER_KINDS[model.encoder.kind].hrda:
        raise ValueError("build_segmentor: HRDA goes with neither this encoder nor this decoder.")
    return MultiResSegmentor(
        encoder=encoder,
        decoder=decoder,
        attention=build_decoder(_attention(model), num_classes, model.remat),
        stride=spec.strides[stage],
        detail=detail,
    )


def _attention(model: config.Model) -> config.Decoder:
    """HRDA's attention head: as the reference has it, one 1x1 fusion for decoders that read every
    stage, and for DeepLabV2 one of its own kind."""
    if DECODER_KINDS[model.decoder.kind].own_attention:
        return model.decoder
    channels, dropout = model.multires.attention_channels, model.decoder.dropout
    return config.Decoder(fusion="conv1", channels=channels, dropout=dropout)


def build_rebuilder(
    mrm: config.MRM,
    spec: FeatureSpec,
    decoder_kind: str,
    crop: tuple[int, int],
    *,
    unroll: bool = True,
    remat: Literal["none", "blocks", "full"] = "none",
    attention: Form = "plain",
) -> Rebuilder | Blank:
    """The Rebuilder for maps of `spec`, or what stands in its place; `crop` (height, width), px, is
    what the network is trained on; `unroll`, `remat` and `attention` as in `config.Model`."""
    count, decoder = len(spec.channels), DECODER_KINDS[decoder_kind]
    stages = decoder.reads if mrm.stages == "multi" else decoder.rebuilt
    if OBJECTIVE_KINDS[mrm.target].last_map:
        stages = (-1,)
    stages = range(count) if stages is None else dict.fromkeys(i % count for i in stages)
    stages = tuple(stages)
    if mrm.hidden == "blank":
        return Blank(stages, mrm.grid)
    return Rebuilder(
        spec=spec,
        nominal=crop,
        stages=stages,
        grid=mrm.grid,
        dim=mrm.dim,
        depth=mrm.depth,
        heads=mrm.heads,
        unroll=unroll,
        remat=remat,
        attention=attention,
    )


def build_auxiliary(method: config.Method, cell: int, num_classes: int) -> dict[str, nn.Module]:
    """The heads that `method` trains beside the network, by name: `module(last map)`; `cell`: side
    of a cell of that map, px."""
    heads: dict[str, nn.Module] = {}
    for kind in judging(method):
        if kind.heads is not None:
            heads |= referenced(kind.heads)(method, cell, num_classes)
    return heads
