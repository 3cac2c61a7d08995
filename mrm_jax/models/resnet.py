"""ResNet with bottleneck blocks and dilated last stages, the encoder of the DeepLab networks.

Source: ResNet (He et al., CVPR 2016); reference: mmseg/models/backbones/resnet.py, `ResNetV1c` with
style "pytorch" and `contract_dilation`. The stem "7x7" is torchvision's.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrm_jax.config import Model
from mrm_jax.models.blocks import rematerialised, stacked_blocks
from mrm_jax.models.layers import BatchNorm, Conv, pointwise
from mrm_jax.ops.pool import max_pool
from mrm_jax.ops.stored import stored
from mrm_jax.types import Mode

# A block's output is this many times as wide as its 3x3 convolution.
EXPANSION = 4
# What the stem's convolution and its max pool shrink the image by, together.
STEM_STRIDE = 4


class Stem(nn.Module):
    """Convolutions, each with BatchNorm and ReLU, the first one of stride 2, and a max pool 3x3 of
    stride 2."""

    features: tuple[int, ...]
    kernel: int

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        """[B, ceil(H / 4), ceil(W / 4), features[-1]]."""
        for i, width in enumerate(self.features, start=1):
            stride = 2 if i == 1 else 1
            x = Conv(width, self.kernel, stride, use_bias=False, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(name=f"bn{i}")(x, mode))
        # Padded with -inf, as in the reference; ties are all 0, where the ReLU passes no gradient.
        return max_pool(x, 3, 2, ((1, 1), (1, 1)))


class Bottleneck(nn.Module):
    """1x1, dilated 3x3 (which has the stride), 1x1, each with BatchNorm, added to the input and
    rectified.

    `shortcut`: the input goes through a 1x1 convolution with the block's stride and a BatchNorm
    instead of being added as it is.
    """

    features: int
    stride: int
    dilation: int
    shortcut: bool
    mode: Mode

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        """([B, ceil(H / stride), ceil(W / stride), features], None): a scan's carry and its missing
        output."""
        width = self.features // EXPANSION
        y = nn.relu(BatchNorm(name="bn1")(pointwise(width, x, "conv1"), self.mode))
        conv = Conv(width, 3, self.stride, self.dilation, use_bias=False, name="conv2")
        y = nn.relu(BatchNorm(name="bn2")(conv(y), self.mode))
        y = pointwise(self.features, y, "conv3")
        # Starts at 0, so that a block starts as its shortcut; loaded weights replace it.
        y = BatchNorm(scale_init=nn.initializers.zeros, name="bn3")(y, self.mode)
        if self.shortcut:
            # A strided 1x1 convolution reads only these cells; a slice and a dense layer run
            # faster.
            x = pointwise(self.features, x[:, :: self.stride, :: self.stride], "shortcut")
            x = BatchNorm(name="shortcut_bn")(x, self.mode)
        return stored(nn.relu(x + y)), None


class Stage(nn.Module):
    """The blocks of one stage: `first`, and all others stacked under `rest` (leading axis =
    block)."""

    features: int
    depth: int
    stride: int
    dilation: int
    unroll: bool
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        """[B, ceil(H / stride), ceil(W / stride), features]."""
        block = rematerialised(Bottleneck, self.remat, looped=False)
        # The first block's dilation is half that of the others (`contract_dilation`).
        half = max(1, self.dilation // 2)
        first = block(self.features, self.stride, half, shortcut=True, mode=mode, name="first")
        x, _ = first(x, None)
        if self.depth == 1:
            return x
        rest = stacked_blocks(
            Bottleneck,
            depth=self.depth - 1,
            unroll=self.unroll,
            remat=self.remat,
            name="rest",
            features=self.features,
            stride=1,
            dilation=self.dilation,
            shortcut=False,
            mode=mode,
        )
        return rest(x, None)[0]


class ResNet(nn.Module):
    """ResNet of any size. Stages are called `layer1` … `layer4`, see `Stage`.

    dims, depths, strides, dilations: one entry a stage. dims are output channels, four times the
    width inside a block; the stem is as wide as the first stage's blocks. The first stride holds
    the stem's 4. stem: "v1c" is three 3x3 convolutions, the first two half as wide; "7x7" is one.
    dtype: compute dtype, None follows the image.
    """

    dims: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    strides: tuple[int, ...] = (4, 2, 1, 1)
    dilations: tuple[int, ...] = (1, 1, 2, 4)
    stem: Literal["v1c", "7x7"] = "v1c"
    dtype: jnp.dtype | None = None
    unroll: bool = True
    remat: Literal["none", "blocks", "full"] = "none"

    @nn.compact
    def __call__(self, image: jax.Array, mode: Mode) -> tuple[jax.Array, ...]:
        """One rectified map a stage, [B, ceil(H / s), ceil(W / s), dims[i]] with s the product of
        the strides so far."""
        if self.strides[0] % STEM_STRIDE:
            raise ValueError(
                f"strides start with {self.strides[0]}; the first holds the stem's {STEM_STRIDE} "
                f"and has to be a multiple of it, say {STEM_STRIDE}."
            )
        x = image.astype(self.dtype or image.dtype)
        width = self.dims[0] // EXPANSION
        features, kernel = (
            ((width // 2, width // 2, width), 3) if self.stem == "v1c" else ((width,), 7)
        )
        x = Stem(features, kernel, name="stem")(x, mode)
        strides = (self.strides[0] // STEM_STRIDE, *self.strides[1:])
        maps = []
        for i, (dim, depth, stride, dilation) in enumerate(
            zip(self.dims, self.depths, strides, self.dilations, strict=True), start=1
        ):
            stage = Stage(dim, depth, stride, dilation, self.unroll, self.remat, name=f"layer{i}")
            x = stage(x, mode)
            maps.append(x)
        return tuple(maps)


def build_resnet(model: Model, dtype: jnp.dtype | None) -> ResNet:
    """The encoder of a config."""
    encoder = model.encoder
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
