"""Inverted residuals: MobileNetV2, and EfficientNet-Lite, which differs in kernels, widths, padding
and epsilon.

Sources: MobileNetV2 (Sandler et al., CVPR 2018) table 2; EfficientNet (Tan and Le, ICML 2019) table
1; EfficientNet-Lite (tensorflow/tpu, models/official/efficientnet/lite): no squeeze-and-excitation,
ReLU6, a stem and a head of fixed width. References: torchvision's `mobilenet_v2` and the package
efficientnet_lite_pytorch.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.config import Model
from mrm_jax.models.blocks import rematerialised
from mrm_jax.models.layers import (
    BatchNorm,
    Conv,
    DepthwiseConv,
    Zeros,
    dense,
    drop_path_scales,
    pointwise,
    relu6,
    scale_samples,
)
from mrm_jax.models.parameters import fan_out_normal
from mrm_jax.ops.precision import at_least_float32
from mrm_jax.registry.encoders import STEM_STRIDE, mapped_stages
from mrm_jax.types import Mode


class InvertedResidual(nn.Module):
    """1x1 to a wider map, depthwise (which has the stride), 1x1 to `features`, each with BatchNorm
    and all but the last with ReLU6; added to the input where that has the same shape.

    expansion: width inside over the input's; 1: without the first 1x1.
    """

    features: int
    kernel: int
    stride: int
    expansion: int
    zeros: Zeros
    eps: float
    mode: Mode

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None) -> jax.Array:
        """[B, ceil(H / stride), ceil(W / stride), features] from [B, H, W, C]. `scale` [B]
        multiplies what is added, sample by sample; None leaves it as it is."""
        y, mode = x, self.mode
        if self.expansion > 1:
            y = pointwise(self.expansion * x.shape[-1], y, "expand")
            y = relu6(BatchNorm(self.eps, name="expand_bn")(y, mode))
        y = DepthwiseConv(
            fan_out_normal(self.kernel**2),
            use_bias=False,
            kernel=self.kernel,
            stride=self.stride,
            zeros=self.zeros,
            name="depthwise",
        )(y)
        y = relu6(BatchNorm(self.eps, name="depthwise_bn")(y, mode))
        y = BatchNorm(self.eps, name="project_bn")(pointwise(self.features, y, "project"), mode)
        if y.shape != x.shape:
            return y
        return x + (y if scale is None else scale_samples(y, scale))


class Classifier(nn.Module):
    """The head of ImageNet's training: a wide 1x1, the mean over the map, a dense layer. Its
    dropout is left out: nothing here trains it."""

    width: int
    classes: int
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        """Logits [B, classes] from the last map [B, H, W, C]."""
        y = relu6(BatchNorm(self.eps, name="bn")(pointwise(self.width, x, "conv"), mode))
        mean = y.astype(at_least_float32(y)).mean((1, 2)).astype(y.dtype)
        return dense(self.classes, mean, "dense", kernel_init=nn.initializers.normal(0.01))


class InvertedResiduals(nn.Module):
    """MobileNetV2 or EfficientNet-Lite of any size. Its blocks are counted through all stages:
    `{block}0`, `{block}1`, ...

    dims, depths, strides, kernels, expansions: one entry a stage; the first stride holds the
    stem's 2. block: what blocks are called, another name for each family, so that weights of one,
    which pads and normalises otherwise, never pass for the other's. drop_path: rate that the block
    after the last would have; rates rise linearly from 0 (drop-connect). classes: of the
    classifier, 0: it has none; head_width: channels that it averages. dtype: compute dtype, None
    follows the image.
    """

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    strides: tuple[int, ...]
    kernels: tuple[int, ...]
    expansions: tuple[int, ...]
    stem_width: int
    block: str
    zeros: Zeros
    eps: float
    drop_path: float = 0.0
    classes: int = 0
    head_width: int = 1280
    dtype: jnp.dtype | None = None
    remat: Literal["none", "blocks", "full"] = "none"

    @nn.compact
    def __call__(self, image: jax.Array, mode: Mode) -> tuple:
        """The linear output of the last block at each stride from 4 on, [B, ceil(H / s), ceil(W /
        s), C]; with a classifier (these maps, its logits f[B, classes])."""
        x = image.astype(self.dtype or image.dtype)
        stem = Conv(self.stem_width, 3, STEM_STRIDE, use_bias=False, zeros=self.zeros, name="stem")
        x = relu6(BatchNorm(self.eps, name="stem_bn")(stem(x), mode))
        block, count = rematerialised(InvertedResidual, self.remat, looped=False), 0
        scales = self._scales(mode, len(image))
        strides = (self.strides[0] // STEM_STRIDE, *self.strides[1:])
        maps = []
        for i, (dim, depth) in enumerate(zip(self.dims, self.depths, strict=True)):
            for j in range(depth):
                inverted = block(
                    dim,
                    self.kernels[i],
                    1 if j else strides[i],
                    self.expansions[i],
                    self.zeros,
                    self.eps,
                    mode,
                    name=f"{self.block}{count}",
                )
                x = inverted(x, None if scales is None else scales[count])
                count += 1
            if i in mapped_stages(self.strides):
                maps.append(x)
        if not self.classes:
            return tuple(maps)
        head = Classifier(self.head_width, self.classes, self.eps, name="classifier")
        return tuple(maps), head(x, mode)

    def _scales(self, mode: Mode, batch: int) -> jax.Array | None:
        """What each block's output is multiplied by, f32[blocks, batch]; None: by nothing."""
        if mode != "train" or self.drop_path == 0:
            return None
        blocks = sum(self.depths)
        rates = self.drop_path * np.arange(blocks) / blocks
        return drop_path_scales(self.make_rng("dropout"), rates, batch, branches=1)[:, 0]


def efficientnet_lite(
    model: Model, dtype: jnp.dtype | None, classes: int = 0, head_width: int = 1280
) -> InvertedResiduals:
    """The encoder of a config, padded and normalised as TensorFlow does."""
    return _built(model, dtype, classes, head_width, "mbconv", "same", 1e-3)


def mobilenet_v2(
    model: Model, dtype: jnp.dtype | None, classes: int = 0, head_width: int = 1280
) -> InvertedResiduals:
    """The encoder of a config, padded and normalised as PyTorch does."""
    return _built(model, dtype, classes, head_width, "bottleneck", "symmetric", 1e-5)


def _built(
    model: Model,
    dtype: jnp.dtype | None,
    classes: int,
    head_width: int,
    block: str,
    zeros: Zeros,
    eps: float,
) -> InvertedResiduals:
    encoder = model.encoder
    return InvertedResiduals(
        dims=encoder.dims,
        depths=encoder.depths,
        strides=encoder.strides,
        kernels=encoder.kernels,
        expansions=encoder.expansions,
        stem_width=encoder.stem_width,
        block=block,
        zeros=zeros,
        eps=eps,
        drop_path=encoder.drop_path,
        classes=classes,
        head_width=head_width,
        dtype=dtype,
        remat=model.remat,
    )
