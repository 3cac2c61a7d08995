"""From configuration to modules: the one place that knows which family a name stands for."""

from __future__ import annotations

import math
from itertools import accumulate
from operator import mul
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from mrm_jax import config
from mrm_jax.models.daformer import DaformerHead
from mrm_jax.models.deeplab import DeeplabV2Head, DeeplabV3PlusHead
from mrm_jax.models.mit import MixTransformer
from mrm_jax.models.rebuilder import Rebuilder
from mrm_jax.models.resnet import ResNet
from mrm_jax.models.segformer import SegformerHead
from mrm_jax.models.segmentor import Segmentor
from mrm_jax.types import FeatureSpec

# Decoders that read every stage: all of them are rebuilt. Others read the last one, and only that
# is.
_MULTI_SCALE = ("daformer", "segformer")


def feature_spec(encoder: config.Encoder) -> FeatureSpec:
    """Channels and total strides of the encoder's maps; `multiple_of` is what crop sides have to be
    a multiple of, px."""
    strides = tuple(accumulate(encoder.strides, mul))
    return FeatureSpec(
        channels=tuple(encoder.dims), strides=strides, multiple_of=math.prod(encoder.strides)
    )


def build_encoder(model: config.Model) -> nn.Module:
    """The encoder: `module(image, mode)` gives a tuple of maps."""
    encoder = model.encoder
    dtype = None if model.dtype == "float32" else jnp.dtype(model.dtype)
    if encoder.kind == "resnet":
        return ResNet(
            dims=encoder.dims,
            depths=encoder.depths,
            strides=encoder.strides,
            dilations=encoder.dilations,
            stem=encoder.stem,
            dtype=dtype,
            unroll=model.unroll,
            remat=model.remat,
        )
    return MixTransformer(
        dims=encoder.dims,
        depths=encoder.depths,
        heads=encoder.heads,
        sr_ratios=encoder.sr_ratios,
        strides=encoder.strides,
        mlp_ratio=encoder.mlp_ratio,
        drop_path=encoder.drop_path,
        eps=encoder.norm_eps,
        embed_eps=encoder.embed_norm_eps,
        reduction_eps=encoder.embed_norm_eps,
        dtype=dtype,
        unroll=model.unroll,
        remat=model.remat,
    )


def build_decoder(decoder: config.Decoder, num_classes: int) -> nn.Module:
    """The decoder: `module(features, mode)` gives logits [B, h, w, num_classes]."""
    if decoder.kind == "segformer":
        return SegformerHead(num_classes, decoder.channels, decoder.concat, decoder.dropout)
    if decoder.kind == "deeplabv2":
        return DeeplabV2Head(num_classes, decoder.dilations)
    if decoder.kind == "deeplabv3plus":
        return DeeplabV3PlusHead(
            num_classes,
            decoder.channels,
            decoder.dilations,
            decoder.low_channels,
            decoder.norm,
            decoder.dropout,
        )
    return DaformerHead(
        num_classes, decoder.channels, decoder.fusion, decoder.dilations, decoder.dropout
    )


def build_segmentor(model: config.Model, num_classes: int) -> Segmentor:
    """The network that is trained and kept. dtype "float32" follows the image's dtype, so float64
    images stay float64."""
    return Segmentor(
        encoder=build_encoder(model), decoder=build_decoder(model.decoder, num_classes)
    )


def build_rebuilder(
    mrm: config.MRM,
    spec: FeatureSpec,
    decoder_kind: str,
    crop: tuple[int, int],
    *,
    unroll: bool = True,
    remat: Literal["none", "blocks"] = "none",
) -> Rebuilder:
    """The Rebuilder for maps of `spec`; `crop` (height, width), px, is what the network is trained
    on; `unroll` and `remat` as in `config.Model`."""
    count = len(spec.channels)
    return Rebuilder(
        spec=spec,
        nominal=crop,
        stages=tuple(range(count)) if decoder_kind in _MULTI_SCALE else (count - 1,),
        grid=mrm.grid,
        dim=mrm.dim,
        depth=mrm.depth,
        heads=mrm.heads,
        unroll=unroll,
        remat=remat,
    )
