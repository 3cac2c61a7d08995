"""The kinds of name layout that `import_torch` reads and `export_torch` writes.

A new encoder or decoder is a Layout in its own file and a place in a Kind here.
"""

from __future__ import annotations

from dataclasses import replace

from mrm_jax.convert.encoders import HF_FIVE, HF_HUB, MIT, MIT_MMSEG
from mrm_jax.convert.heads import (
    DAFORMER_ASPP,
    DAFORMER_CONV1,
    DEEPLABV2,
    DEEPLABV3PLUS,
    DEEPLABV3PLUS_BN,
    HF_HEAD_FIVE,
    HF_HEAD_HUB,
    SEGFORMER,
    SEGFORMER_NVIDIA,
    as_attention,
)
from mrm_jax.convert.layouts import Kind, Part
from mrm_jax.convert.rebuilder import REBUILDER_MULTI, REBUILDER_SINGLE
from mrm_jax.convert.resnet import RESNET_TORCHVISION, RESNET_V1C
from mrm_jax.convert.rules import Drop

# DeepLabV2 last: its mark is a name that DeepLabV3+ has as well.
HEADS = (
    DAFORMER_ASPP,
    DAFORMER_CONV1,
    SEGFORMER,
    DEEPLABV3PLUS_BN,
    DEEPLABV3PLUS,
    DEEPLABV2,
)
ATTENTIONS = (as_attention(DAFORMER_CONV1), as_attention(DEEPLABV2))
_OTHER_HEADS = Drop(r"(decode_head|auxiliary_head)\..*", "a decoder; this kind is the encoder")
_ENCODER_KIND = Kind((Part("encoder", (MIT,)),), (_OTHER_HEADS,), spare="backbone.")

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

_BACKBONE = Part(
    "encoder", (MIT, MIT_MMSEG, RESNET_V1C, RESNET_TORCHVISION), "backbone.", "encoder/"
)

# ResNet paper, table 1.
RESNET_DEPTHS = {"resnet50_v1c": (3, 4, 6, 3), "resnet101_v1c": (3, 4, 23, 3)}

KINDS = {
    "mit": _ENCODER_KIND,
    "mit_mmseg": replace(_ENCODER_KIND, parts=(Part("encoder", (MIT_MMSEG,)),)),
    "resnet_v1c": replace(_ENCODER_KIND, parts=(Part("encoder", (RESNET_V1C,)),)),
    "resnet_torchvision": replace(_ENCODER_KIND, parts=(Part("encoder", (RESNET_TORCHVISION,)),)),
    "decoder": Kind((Part("decoder", HEADS),), spare="decode_head."),
    "segmentor": Kind(
        (_BACKBONE, Part("decoder", HEADS, "decode_head.", "decoder/")),
        wrapped=(
            _BACKBONE,
            Part("decoder", HEADS, "decode_head.head.", "decoder/"),
            Part("attention", ATTENTIONS, "decode_head.scale_attention.", "attention/"),
        ),
        drops=(Drop(r"auxiliary_head\..*", "a second decoder, used in training alone"),),
        copies=("model.", "ema_model.", "imnet_model."),
    ),
    "segformer_nvidia": Kind(
        (
            Part("encoder", (MIT,), "backbone.", "encoder/"),
            Part("decoder", (SEGFORMER_NVIDIA,), "decode_head.", "decoder/"),
        ),
        concat_order="c4..c1",
    ),
    "rebuilder": Kind((Part("rebuilder", (REBUILDER_MULTI, REBUILDER_SINGLE)),)),
    "hf_segformer": Kind(
        (
            Part("encoder", (HF_HUB, HF_FIVE), "segformer.", "encoder/", bare=True),
            Part("decoder", (HF_HEAD_HUB, HF_HEAD_FIVE), "decode_head.", "decoder/", optional=True),
        ),
        (Drop(r"classifier\.(weight|bias)", "the classifier of ImageNet's 1000 classes"),),
        concat_order="c4..c1",
    ),
}
for _name, (_dims, _depths) in MIT_SIZES.items():
    _sizes = (("dims", _dims), ("depths", _depths), ("sr_ratios", (8, 4, 2, 1)))
    KINDS[_name] = replace(_ENCODER_KIND, sizes=_sizes)
for _name, _depths in RESNET_DEPTHS.items():
    _sizes = (("dims", (256, 512, 1024, 2048)), ("depths", _depths))
    KINDS[_name] = replace(KINDS["resnet_v1c"], sizes=_sizes)
