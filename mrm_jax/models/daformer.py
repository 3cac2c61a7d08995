"""DAFormer's decoder: all stages embedded, brought to the first one's size, and fused with a wide
context.

Source: DAFormer sec. 3.2; reference: mmseg/models/decode_heads/daformer_head.py. The 1x1 fusion is
also HRDA's attention head.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrm_jax.config import Decoder
from mrm_jax.models.blocks import recomputed
from mrm_jax.models.layers import BatchNorm, Conv, DepthwiseConv, dense, dropout2d, torch_dense
from mrm_jax.models.parameters import fan_out_normal
from mrm_jax.ops.precision import at_least_float32
from mrm_jax.ops.resize import resize
from mrm_jax.ops.stored import stored
from mrm_jax.types import Mode


def normed(x: jax.Array, bn: str, mode: Mode) -> jax.Array:
    """ReLU of the batch-normalised `x`; the BatchNorm is called `bn` in the enclosing compact
    module. Without a name nothing is normalised."""
    return nn.relu(BatchNorm(name=bn)(x, mode) if bn else x)


def aligned(maps: list[jax.Array]) -> jax.Array:
    """All maps resized to the first one's size and concatenated along channels."""
    size = (maps[0].shape[1], maps[0].shape[2])
    return jnp.concatenate([resize(m, size) for m in maps], axis=-1)


class ConvFusion(nn.Module):
    """1x1 convolution without bias, BatchNorm, ReLU; or with a bias and no BatchNorm."""

    channels: int
    norm: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        """[B, H, W, channels]."""
        init = fan_out_normal(self.channels)
        x = dense(self.channels, x, "conv", kernel_init=init, use_bias=not self.norm)
        return normed(x, "bn" if self.norm else "", mode)


class SeparableBranch(nn.Module):
    """Dilated depthwise 3x3, BatchNorm, ReLU, then 1x1, BatchNorm, ReLU; without `norm` the
    convolutions have a bias instead."""

    channels: int
    dilation: int
    norm: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        """[B, H, W, channels]."""
        bias = not self.norm
        # 9 * C: the reference's rule counts a depthwise kernel's outputs without dividing by its
        # groups.
        init = fan_out_normal(9 * x.shape[-1])
        x = DepthwiseConv(init, self.dilation, use_bias=bias, name="depthwise")(x)
        x = normed(x, "depthwise_bn" if self.norm else "", mode)
        init = fan_out_normal(self.channels)
        x = dense(self.channels, x, "pointwise", kernel_init=init, use_bias=bias)
        return normed(x, "pointwise_bn" if self.norm else "", mode)


class FusionBottleneck(nn.Module):
    """3x3 convolution without bias, BatchNorm, ReLU; or with a bias and no BatchNorm."""

    channels: int
    norm: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        """[B, H, W, channels]."""
        x = Conv(self.channels, 3, use_bias=not self.norm, name="conv")(x)
        return normed(x, "bn" if self.norm else "", mode)


class AsppFusion(nn.Module):
    """Parallel branches of different reach, concatenated and mixed: a dilation of 1 is a plain 1x1,
    the others separable 3x3."""

    channels: int
    dilations: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        """[B, H, W, channels]."""
        # Its gradient, the sum of the branches', is read by every map that was aligned.
        x = stored(x)
        branches = []
        for i, dilation in enumerate(self.dilations):
            if dilation == 1:
                branch = ConvFusion(self.channels, name=f"branch{i}")
            else:
                branch = SeparableBranch(self.channels, dilation, name=f"branch{i}")
            branches.append(branch(x, mode))
        return FusionBottleneck(self.channels, name="bottleneck")(
            jnp.concatenate(branches, -1), mode
        )


class DaformerHead(nn.Module):
    """Decoder with context-aware fusion ("aspp") or a single 1x1 convolution ("conv1")."""

    num_classes: int
    channels: int = 256
    fusion: Literal["aspp", "conv1"] = "aspp"
    dilations: tuple[int, ...] = (1, 6, 12, 18)
    dropout: float = 0.1

    @nn.compact
    def __call__(self, features: tuple[jax.Array, ...], mode: Mode) -> jax.Array:
        """Logits [B, h, w, num_classes] at the size of the first feature map, at least float32."""
        x = aligned([torch_dense(self.channels, f, f"embed{i}") for i, f in enumerate(features)])
        if self.fusion == "aspp":
            x = AsppFusion(self.channels, self.dilations, name="fuse")(x, mode)
        else:
            x = ConvFusion(self.channels, name="fuse")(x, mode)
        x = dropout2d(x, self.dropout, mode)
        x = x.astype(at_least_float32(x))
        return dense(self.num_classes, x, "classifier", kernel_init=nn.initializers.normal(0.01))


def build_daformer(decoder: Decoder, num_classes: int, remat: str) -> nn.Module:
    """The decoder of a config."""
    return recomputed(DaformerHead, remat)(
        num_classes, decoder.channels, decoder.fusion, decoder.dilations, decoder.dropout
    )
