"""From configuration to modules: the one place that knows which family a name stands for."""

from __future__ import annotations

import math
from itertools import accumulate
from operator import mul
from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from mrm_jax import config
from mrm_jax.models.auxiliary import PixelHead, Prototypes
from mrm_jax.models.daformer import DaformerHead
from mrm_jax.models.deeplab import DeeplabV2Head, DeeplabV3PlusHead
from mrm_jax.models.layers import recomputed
from mrm_jax.models.mit import MixTransformer
from mrm_jax.models.multires import MultiRes
from mrm_jax.models.rebuilder import Blank, Rebuilder
from mrm_jax.models.resnet import ResNet
from mrm_jax.models.segformer import SegformerHead
from mrm_jax.models.segmentor import Segmentor
from mrm_jax.types import FeatureSpec


class _Stages(NamedTuple):
    """Of a decoder: the stages that are rebuilt, those it reads at all ("multi"), and the one whose
    stride its logits have."""

    rebuilt: tuple[int, ...] | None
    multi: tuple[int, ...] | None
    logits: int


# None: every stage. The released Rebuilder knows decoders that read all stages or the last alone;
# for DeepLabV3+ it rebuilds what carries the semantics and leaves the first stage as it is.
_STAGES = {
    "daformer": _Stages(None, None, 0),
    "segformer": _Stages(None, None, 0),
    "deeplabv2": _Stages((-1,), (-1,), -1),
    "deeplabv3plus": _Stages((-1,), (0, -1), 0),
}


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


def build_decoder(decoder: config.Decoder, num_classes: int, remat: str = "none") -> nn.Module:
    """The decoder: `module(features, mode)` gives logits [B, h, w, num_classes]; `remat` as in
    `config.Model`."""
    if decoder.kind == "segformer":
        segformer = recomputed(SegformerHead, remat)
        return segformer(num_classes, decoder.channels, decoder.concat, decoder.dropout)
    if decoder.kind == "deeplabv2":
        return recomputed(DeeplabV2Head, remat)(num_classes, decoder.dilations)
    if decoder.kind == "deeplabv3plus":
        return recomputed(DeeplabV3PlusHead, remat)(
            num_classes,
            decoder.channels,
            decoder.dilations,
            decoder.low_channels,
            decoder.norm,
            decoder.dropout,
        )
    return recomputed(DaformerHead, remat)(
        num_classes, decoder.channels, decoder.fusion, decoder.dilations, decoder.dropout
    )


def build_segmentor(
    model: config.Model, num_classes: int, detail: tuple[int, int] | None = None
) -> Segmentor | MultiRes:
    """The network that is trained and kept. dtype "float32" follows the image's dtype, so float64
    images stay float64. `detail` (height, width), px: HRDA's detail crop (`config.detail_crop`)."""
    encoder = build_encoder(model)
    decoder = build_decoder(model.decoder, num_classes, model.remat)
    if not model.multires.enabled:
        return Segmentor(encoder=encoder, decoder=decoder)
    detail = model.multires.detail or detail
    if detail is None:
        raise ValueError("build_segmentor: HRDA needs the size of the detail crop.")
    spec = feature_spec(model.encoder)
    return MultiRes(
        encoder=encoder,
        decoder=decoder,
        attention=build_decoder(_attention(model), num_classes, model.remat),
        stride=spec.strides[_STAGES[model.decoder.kind].logits],
        detail=detail,
    )


def _attention(model: config.Model) -> config.Decoder:
    """HRDA's attention head: as the reference has it, one 1x1 fusion for decoders that read every
    stage, DeepLabV2's own kind for DeepLabV2."""
    if model.decoder.kind == "deeplabv2":
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
) -> Rebuilder | Blank:
    """The Rebuilder for maps of `spec`, or what stands in its place; `crop` (height, width), px, is
    what the network is trained on; `unroll` and `remat` as in `config.Model`."""
    count, reads = len(spec.channels), _STAGES[decoder_kind]
    stages = reads.multi if mrm.stages == "multi" else reads.rebuilt
    if mrm.target == "pixels":
        stages = (-1,)  # all that the head of pixels reads
    stages = tuple(range(count)) if stages is None else tuple(i % count for i in stages)
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
    )


def build_auxiliary(method: config.Method, cell: int, num_classes: int) -> dict[str, nn.Module]:
    """The heads that `method` trains beside the network, by name: `module(last map)`; `cell`: side
    of a cell of that map, px."""
    heads: dict[str, nn.Module] = {}
    if method.mim.weight > 0 or (method.mrm.enabled and method.mrm.target == "pixels"):
        heads["pixels"] = PixelHead(cell)
    if method.contrast.weight > 0:
        heads["prototypes"] = Prototypes(
            num_classes, method.contrast.prototypes, method.contrast.dim
        )
    return heads
