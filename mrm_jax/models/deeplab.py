"""DeepLab's decoders: parallel dilated convolutions, summed (V2) or concatenated and refined with
the first stage's detail (V3+).

Source: DeepLab (Chen et al., PAMI 2018) and DeepLabV3+ (Chen et al., ECCV 2018); reference:
mmseg/models/decode_heads/dlv2_head.py and sep_aspp_head.py.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrm_jax.config import Decoder
from mrm_jax.models.blocks import recomputed
from mrm_jax.models.daformer import ConvFusion, FusionBottleneck, SeparableBranch
from mrm_jax.models.layers import Conv, dense, dropout2d
from mrm_jax.ops.precision import at_least_float32
from mrm_jax.ops.resize import resize
from mrm_jax.types import Mode

_CLASSIFIER_INIT = nn.initializers.normal(0.01)


class DeeplabV2Head(nn.Module):
    """The sum of parallel 3x3 convolutions of the last map, one a dilation; no norm, no
    dropout."""

    num_classes: int
    dilations: tuple[int, ...] = (6, 12)

    @nn.compact
    def __call__(self, features: tuple[jax.Array, ...], mode: Mode) -> jax.Array:
        """Logits [B, h, w, num_classes] at the size of the last feature map, at least float32;
        the same in every mode."""
        x = features[-1]
        x = x.astype(at_least_float32(x))
        total = jnp.zeros((), x.dtype)
        for i, dilation in enumerate(self.dilations):
            branch = Conv(
                self.num_classes,
                3,
                dilation=dilation,
                kernel_init=_CLASSIFIER_INIT,
                name=f"branch{i}",
            )
            total += branch(x)
        return total


class DeeplabV3PlusHead(nn.Module):
    """Separable ASPP with image pooling on the last map, brought to the first map's size and
    refined together with it.

    channels: width of every branch; low_channels: what the first map is reduced to; dilations: 1 is
    a plain 1x1, the others separable 3x3. norm: BatchNorm after every convolution but the
    classifier; without it they have a bias.
    """

    num_classes: int
    channels: int = 512
    dilations: tuple[int, ...] = (1, 12, 24, 36)
    low_channels: int = 48
    norm: bool = False
    dropout: float = 0.1

    @nn.compact
    def __call__(self, features: tuple[jax.Array, ...], mode: Mode) -> jax.Array:
        """Logits [B, h, w, num_classes] at the size of the first feature map, at least float32."""
        low, x = features[0], features[-1]
        pooled = x.astype(at_least_float32(x)).mean((1, 2), keepdims=True).astype(x.dtype)
        pooled = ConvFusion(self.channels, self.norm, name="pool")(pooled, mode)
        branches = [jnp.broadcast_to(pooled, (*x.shape[:3], self.channels))]
        for i, dilation in enumerate(self.dilations):
            if dilation == 1:
                branch = ConvFusion(self.channels, self.norm, name=f"branch{i}")
            else:
                branch = SeparableBranch(self.channels, dilation, self.norm, name=f"branch{i}")
            branches.append(branch(x, mode))
        mixed = jnp.concatenate(branches, -1)
        x = FusionBottleneck(self.channels, self.norm, name="bottleneck")(mixed, mode)
        low = ConvFusion(self.low_channels, self.norm, name="low")(low, mode)
        x = jnp.concatenate([resize(x, (low.shape[1], low.shape[2])), low], -1)
        for i in range(2):
            x = SeparableBranch(self.channels, 1, self.norm, name=f"refine{i}")(x, mode)
        x = dropout2d(x, self.dropout, mode)
        x = x.astype(at_least_float32(x))
        return dense(self.num_classes, x, "classifier", kernel_init=_CLASSIFIER_INIT)


def build_v2(decoder: Decoder, num_classes: int, remat: str) -> nn.Module:
    """The DeepLabV2 decoder of a config."""
    return recomputed(DeeplabV2Head, remat)(num_classes, decoder.dilations)


def build_v3plus(decoder: Decoder, num_classes: int, remat: str) -> nn.Module:
    """The DeepLabV3+ decoder of a config."""
    return recomputed(DeeplabV3PlusHead, remat)(
        num_classes,
        decoder.channels,
        decoder.dilations,
        decoder.low_channels,
        decoder.norm,
        decoder.dropout,
    )
