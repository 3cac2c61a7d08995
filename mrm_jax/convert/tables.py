"""The kinds of name layout that `import_torch` reads and `export_torch` writes.

A new encoder or decoder is a Layout in its own file and a place in a Kind here.
"""

from __future__ import annotations

from dataclasses import replace

from mrm_jax.convert.encoders import HF_FIVE, HF_HUB, MIT, MIT_MMSEG
from mrm_jax.convert.heads import (
    DAFORMER_ASPP,
    DAFORMER_CONV1,
    HF_HEAD_FIVE,
    HF_HEAD_HUB,
    SEGFORMER,
)
from mrm_jax.convert.layouts import Kind, Part
from mrm_jax.convert.rebuilder import REBUILDER_MULTI, REBUILDER_SINGLE
from mrm_jax.convert.rules import Drop

HEADS = (DAFORMER_ASPP, DAFORMER_CONV1, SEGFORMER)
_OTHER_HEADS = Drop(r"(decode_head|auxiliary_head)\..*", "a decoder; this kind is the encoder")
_MIT_KIND = Kind((Part("encoder", (MIT,)),), (_OTHER_HEADS,), spare="backbone.")

# SegFormer paper, table 6; dims, depths and the reduction of keys and values.
_SMALL, _LARGE = (32, 64, 160, 256), (64, 128, 320, 512)
MIT_SIZES = {
    "mit_b0": (_SMALL, (2, 2, 2, 2)),
    "mit_b1": (_LARGE, (2, 2, 2, 2)),
    "mit_b2": (_LARGE, (3, 4, 6, 3)),
    "mit_b3": (_LARGE, (3, 4, 18, 3)),
    "mit_b4": (_LARGE, (3, 8, 27, 3)),
    "mit_b5": (_LARGE, (3, 6, 40, 3)),
}

KINDS = {
    "mit": _MIT_KIND,
    "mit_mmseg": replace(_MIT_KIND, parts=(Part("encoder", (MIT_MMSEG,)),)),
    "decoder": Kind((Part("decoder", HEADS),), spare="decode_head."),
    "segmentor": Kind(
        (
            Part("encoder", (MIT, MIT_MMSEG), "backbone.", "encoder/"),
            Part("decoder", HEADS, "decode_head.", "decoder/"),
        ),
        copies=("model.", "ema_model.", "imnet_model."),
    ),
    "rebuilder": Kind((Part("rebuilder", (REBUILDER_MULTI, REBUILDER_SINGLE)),)),
    "hf_segformer": Kind(
        (
            Part("encoder", (HF_HUB, HF_FIVE), "segformer.", "encoder/"),
            Part("decoder", (HF_HEAD_HUB, HF_HEAD_FIVE), "decode_head.", "decoder/", optional=True),
        ),
        (Drop(r"classifier\.(weight|bias)", "the classifier of ImageNet's 1000 classes"),),
        concat_order="c4..c1",
    ),
}
for _name, (_dims, _depths) in MIT_SIZES.items():
    _sizes = (("dims", _dims), ("depths", _depths), ("sr_ratios", (8, 4, 2, 1)))
    KINDS[_name] = replace(_MIT_KIND, sizes=_sizes)
