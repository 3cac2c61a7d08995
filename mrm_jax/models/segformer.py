"""SegFormer's decoder: every stage projected by a dense layer, resized, concatenated, mixed by one
1x1 convolution.

Source: SegFormer sec. 3; reference: mmseg/models/decode_heads/segformer_head.py of the DAFormer and
MIC code.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax

from mrm_jax.config import Decoder
from mrm_jax.models.blocks import recomputed
from mrm_jax.models.daformer import ConvFusion, aligned
from mrm_jax.models.layers import dropout2d, torch_dense
from mrm_jax.ops.precision import at_least_float32
from mrm_jax.types import Mode


class SegformerHead(nn.Module):
    """Decoder of `channels` width. `concat` is the order of the four blocks that the fusing kernel
    reads.

    "c1..c4" is the order of the DAFormer and MIC code, "c4..c1" that of Hugging Face and of
    NVIDIA's weights.
    """

    num_classes: int
    channels: int = 768
    concat: Literal["c1..c4", "c4..c1"] = "c1..c4"
    dropout: float = 0.1

    @nn.compact
    def __call__(self, features: tuple[jax.Array, ...], mode: Mode) -> jax.Array:
        """Logits [B, h, w, num_classes] at the size of the first feature map, at least float32."""
        maps = [torch_dense(self.channels, f, f"linear{i}") for i, f in enumerate(features)]
        x = aligned(maps, reverse=self.concat == "c4..c1")
        x = dropout2d(ConvFusion(self.channels, name="fuse")(x, mode), self.dropout, mode)
        return torch_dense(self.num_classes, x.astype(at_least_float32(x)), "classifier")


def build_segformer(decoder: Decoder, num_classes: int, remat: str) -> nn.Module:
    """The decoder of a config."""
    return recomputed(SegformerHead, remat)(
        num_classes, decoder.channels, decoder.concat, decoder.dropout
    )
