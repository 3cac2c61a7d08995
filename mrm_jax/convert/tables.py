"""The kinds of name layout that `import_torch` reads and `export_torch` writes.

Names of encoders and decoders come from what is registered (`registry/`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace

from mrm_jax.convert.encoders import HF_FIVE, HF_HUB, MIT
from mrm_jax.convert.heads import (
    HF_HEAD_FIVE,
    HF_HEAD_HUB,
    SEGFORMER_NVIDIA,
)
from mrm_jax.convert.layouts import DecoderFiles, EncoderFiles, LayoutKind, Part
from mrm_jax.convert.rebuilder import REBUILDER_MULTI, REBUILDER_SINGLE
from mrm_jax.convert.rules import Drop
from mrm_jax.errors import UsageError
from mrm_jax.registry import DECODER_KINDS, ENCODER_KINDS, referenced

_OTHER_HEADS = Drop(r"(decode_head|auxiliary_head)\..*", "a decoder; this kind is the encoder")


def _others(backbone: Part, neck: Part) -> dict[str, LayoutKind]:
    """Kinds of more than an encoder. `backbone`, `neck`: a segmentor's under mmseg's names."""
    decoders = decoder_files().values()
    heads = tuple(layout for files in decoders for layout in files.layouts)
    attentions = tuple(layout for files in decoders for layout in files.attentions)
    return {
        "decoder": LayoutKind((Part("decoder", heads),), spares=("decode_head.",)),
        "segmentor": LayoutKind(
            (backbone, neck, Part("decoder", heads, "decode_head.", "decoder/")),
            wrapped=(
                backbone,
                Part("decoder", heads, "decode_head.head.", "decoder/"),
                Part("attention", attentions, "decode_head.scale_attention.", "attention/"),
            ),
            drops=(Drop(r"auxiliary_head\..*", "a second decoder, used in training alone"),),
            copies=("model.", "ema_model.", "imnet_model."),
        ),
        "segformer_nvidia": LayoutKind(
            (
                Part("encoder", (MIT,), "backbone.", "encoder/"),
                Part("decoder", (SEGFORMER_NVIDIA,), "decode_head.", "decoder/"),
            ),
            concat_order="c4..c1",
        ),
        "rebuilder": LayoutKind((Part("rebuilder", (REBUILDER_MULTI, REBUILDER_SINGLE)),)),
        "hf_segformer": LayoutKind(
            (
                Part("encoder", (HF_HUB, HF_FIVE), "segformer.", "encoder/", bare=True),
                Part(
                    "decoder",
                    (HF_HEAD_HUB, HF_HEAD_FIVE),
                    "decode_head.",
                    "decoder/",
                    optional=True,
                ),
            ),
            (Drop(r"classifier\.(weight|bias)", "the classifier of ImageNet's 1000 classes"),),
            concat_order="c4..c1",
        ),
    }


def decoder_files() -> dict[str, DecoderFiles]:
    """What registered decoders say about files, by `config.model.decoder.kind`."""
    return {row.name: referenced(row.conversion) for row in DECODER_KINDS if row.conversion}


def encoder_files() -> dict[str, EncoderFiles]:
    """What registered encoders say about files, by `config.model.encoder.kind`."""
    return {row.name: referenced(row.conversion) for row in ENCODER_KINDS if row.conversion}


@functools.lru_cache(maxsize=1)
def _kinds(changes: int) -> dict[str, LayoutKind]:
    """All kinds after so many `changes` of what is registered."""
    del changes
    alone: dict[str, LayoutKind] = {}
    sized: dict[str, LayoutKind] = {}
    for files in encoder_files().values():
        for layout in (*files.layouts, *files.alone):
            if layout.name in alone:
                raise UsageError(
                    f"two registered encoders have a layout called {layout.name}.",
                    field="EncoderKind.layouts",
                    value=layout.name,
                )
            part = Part("encoder", (layout,))
            alone[layout.name] = LayoutKind((part,), (_OTHER_HEADS,), spares=("backbone.",))
        alone |= files.kinds
        for name, (layout, facts) in files.sizes.items():
            sized[name] = replace(alone[layout], sizes=facts, found=False)
    layouts = tuple(layout for files in encoder_files().values() for layout in files.layouts)
    backbone = Part("encoder", layouts, "backbone.", "encoder/")
    necks = tuple(layout for files in encoder_files().values() for layout in files.necks)
    neck = Part("neck", necks, "neck.", "neck/", optional=True)
    return {**alone, **_others(backbone, neck), **sized}


class _Kinds(Mapping[str, LayoutKind]):
    """The kinds there are by the time that one is asked for."""

    def __getitem__(self, name: str) -> LayoutKind:
        return _kinds(ENCODER_KINDS.changes + DECODER_KINDS.changes)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_kinds(ENCODER_KINDS.changes + DECODER_KINDS.changes))

    def __len__(self) -> int:
        return len(_kinds(ENCODER_KINDS.changes + DECODER_KINDS.changes))


KINDS: Mapping[str, LayoutKind] = _Kinds()
