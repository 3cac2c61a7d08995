"""SegFormer's decoder: every stage projected by a dense layer, resized, concatenated, mixed by one
1x1 convolution (see `SplitConv`).

Source: SegFormer sec. 3; reference: mmseg/models/decode_heads/segformer_head.py of the DAFormer and
MIC code.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax

from mrm_jax.config import Decoder
from mrm_jax.models.blocks import recomputed
from mrm_jax.models.daformer import normed
from mrm_jax.models.layers import dropout2d, torch_dense
from mrm_jax.models.parameters import fan_out_normal, parameter
from mrm_jax.ops.precision import at_least_float32
from mrm_jax.ops.product import product
from mrm_jax.ops.resize import resize
from mrm_jax.ops.stored import stored
from mrm_jax.types import Mode


class SplitConv(nn.Module):
    """1x1 convolution without bias of the concatenation of all maps at the largest one's size.

    Every map is multiplied with its rows of the kernel at its own size and enlarged after that:
    both are linear, one along channels and one along places, so the order does not matter. With
    four stages of strides 4 to 32 it is a third of the products.
    """

    channels: int

    @nn.compact
    def __call__(self, maps: list[jax.Array]) -> jax.Array:
        """[B, H, W, channels] from maps [B, h, w, C] in the order of the kernel's rows; H, W are
        the largest of h, w."""
        size = max((m.shape[1], m.shape[2]) for m in maps)
        inputs, init = sum(m.shape[-1] for m in maps), fan_out_normal(self.channels)
        kernel = parameter(self, "kernel", init, (inputs, self.channels))
        wide, first, parts = at_least_float32(maps[0]), 0, []
        for m in maps:
            rows = kernel[first : first + m.shape[-1]].astype(m.dtype)
            parts.append(resize(product(m, rows), size).astype(wide))
            first += m.shape[-1]
        # Its gradient goes to every part: BatchNorm's would be computed anew for each.
        return stored(sum(parts[1:], parts[0]).astype(maps[0].dtype))


class SplitFusion(nn.Module):
    """`SplitConv`, BatchNorm and ReLU."""

    channels: int

    @nn.compact
    def __call__(self, maps: list[jax.Array], mode: Mode) -> jax.Array:
        """[B, H, W, channels] at the size of the largest map."""
        return normed(SplitConv(self.channels, name="conv")(maps), "bn", mode)


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
        maps = maps[::-1] if self.concat == "c4..c1" else maps
        x = dropout2d(SplitFusion(self.channels, name="fuse")(maps, mode), self.dropout, mode)
        return torch_dense(self.num_classes, x.astype(at_least_float32(x)), "classifier")


def build_segformer(decoder: Decoder, num_classes: int, remat: str) -> nn.Module:
    """The decoder of a config."""
    return recomputed(SegformerHead, remat)(
        num_classes, decoder.channels, decoder.concat, decoder.dropout
    )
