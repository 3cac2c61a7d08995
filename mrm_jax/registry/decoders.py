"""Decoders, each registered once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mrm_jax.registry.table import Reference, Registered, Table, piece


@dataclass(frozen=True, kw_only=True)
class DecoderKind(Registered):
    """A family of decoders, `config.model.decoder.kind`. Stages are counted from 0, or from the
    last, -1; None: every stage."""

    module: Reference = piece(
        "(config.Decoder, number of classes, config.Model.remat) -> module(maps, mode) -> logits "
        "f[B,h,w,classes]"
    )
    logits: int | None = piece(
        "the stage that its logits are as large as; None: no stage's, which HRDA cannot do with"
    )
    rebuilt: tuple[int, ...] | None = piece("the stages that MRM rebuilds")
    reads: tuple[int, ...] | None = piece("the stages that it reads: what stages=multi rebuilds")
    narrowest: int = piece("channels that the last map has at least", 1)
    own_attention: bool = piece(
        "whether HRDA's attention head is of its kind, else one 1x1 fusion of every stage", False
    )
    variants: Mapping[str, Mapping[str, Any]] = piece(
        "name after decoder= -> fields of config.Decoder that differ from its defaults",
        {},
    )
    beside: Mapping[str, Mapping[str, Any]] = piece(
        "name after encoder= -> fields of config.Decoder that differ from a variant's where it is "
        "published with that encoder",
        {},
    )
    shown: tuple[str, ...] = piece("fields that the shapes and names of the tensors show", ())
    described: tuple[str, ...] = piece("fields of those that are told people about a file", ())
    sharding: tuple[tuple[str, int | None], ...] = piece(
        "(pattern of a parameter below decoder/ or attention/, axis that is split over devices or "
        "None), for leaves that are neither kernel, bias nor scale or must not be split by outputs",
        (),
    )
    conversion: Reference | None = piece(
        "convert.layouts.DecoderFiles: how weight files call its tensors", None
    )


DECODER_KINDS = Table(DecoderKind, "model.decoder.kind")

DECODER_KINDS.register(
    DecoderKind(
        name="daformer",
        module="mrm_jax.models.daformer:build_daformer",
        logits=0,
        rebuilt=None,
        reads=None,
        variants={"daformer": {}, "daformer_conv1": {"fusion": "conv1"}},
        shown=("channels", "fusion", "dilations"),
        described=("fusion",),
        conversion="mrm_jax.convert.heads:DAFORMER_FILES",
    )
)
DECODER_KINDS.register(
    DecoderKind(
        name="segformer",
        module="mrm_jax.models.segformer:build_segformer",
        logits=0,
        rebuilt=None,
        reads=None,
        variants={"segformer": {"channels": 768}},
        # SegFormer (Xie et al., NeurIPS 2021), released configs: 768 for B2 to B5.
        beside={"mit_b0": {"channels": 256}, "mit_b1": {"channels": 256}},
        shown=("channels", "concat"),
        conversion="mrm_jax.convert.heads:SEGFORMER_FILES",
    )
)
# The released Rebuilder knows decoders that read all stages or the last alone; for DeepLabV3+ it
# rebuilds what carries the semantics and leaves the first stage as it is. Before DeepLabV2, whose
# mark in a file is a name that this one has as well.
_V3PLUS = {"channels": 512, "dilations": (1, 12, 24, 36)}
DECODER_KINDS.register(
    DecoderKind(
        name="deeplabv3plus",
        module="mrm_jax.models.deeplab:build_v3plus",
        logits=0,
        rebuilt=(-1,),
        reads=(0, -1),
        variants={"deeplabv3plus": _V3PLUS, "deeplabv3plus_bn": {**_V3PLUS, "norm": True}},
        shown=("channels", "dilations", "norm"),
        conversion="mrm_jax.convert.heads:DEEPLABV3PLUS_FILES",
    )
)
DECODER_KINDS.register(
    DecoderKind(
        name="deeplabv2",
        module="mrm_jax.models.deeplab:build_v2",
        logits=-1,
        rebuilt=(-1,),
        reads=(-1,),
        own_attention=True,
        variants={
            "deeplabv2": {"dilations": (6, 12)},
            "deeplabv2_full": {"dilations": (6, 12, 18, 24)},
        },
        shown=("dilations",),
        # The outputs of these are classes, whose number nothing divides.
        sharding=((r"(?:head/)?branch\d+/kernel", -2),),
        conversion="mrm_jax.convert.heads:DEEPLABV2_FILES",
    )
)
DECODER_KINDS.register(
    DecoderKind(
        name="vit_light",
        module="mrm_jax.models.vit_light:build_vit_light",
        logits=None,
        rebuilt=(-1,),
        reads=(-1,),
        narrowest=4,  # it halves them twice
        variants={"vit_light": {}},
        conversion="mrm_jax.convert.dinov2:LIGHT_FILES",
    )
)
