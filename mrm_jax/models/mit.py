"""Mix Transformer (MiT), the encoder of SegFormer and DAFormer: four stages of overlapping patches
and efficient attention. PVTv2 (without its linear variant) is the same network with wider MLPs in
some stages.

Sources: SegFormer sec. 3; PVTv2 (Wang et al., CVMJ 2022) table 1; reference:
mmseg/models/backbones/mix_transformer.py of the DAFormer and MIC code.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.config import Model
from mrm_jax.models.blocks import stacked_blocks
from mrm_jax.models.layers import (
    Conv,
    DepthwiseConv,
    LayerNorm,
    PatchReduction,
    dense,
    drop_path_scales,
    gelu,
    scale_samples,
)
from mrm_jax.models.parameters import fan_out_normal
from mrm_jax.ops.attention import Form, attend
from mrm_jax.types import Mode

# The reference truncates at +-2 absolute, which is 100 standard deviations: a plain normal.
_LINEAR_INIT = nn.initializers.normal(0.02)


class Attention(nn.Module):
    """Self-attention whose keys and values come from a map reduced by `sr_ratio` in each
    direction."""

    heads: int
    sr_ratio: int
    reduction_eps: float
    form: Form = "plain"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] from [B, H, W, C]."""
        batch, _, _, channels = x.shape
        query = dense(channels, x, "q", kernel_init=_LINEAR_INIT)
        source = x
        if self.sr_ratio > 1:
            source = PatchReduction(self.sr_ratio, name="sr")(x)
            source = LayerNorm(self.reduction_eps, name="norm")(source)
        kv = dense(2 * channels, source, "kv", kernel_init=_LINEAR_INIT)
        key, value = jnp.split(kv.reshape(batch, -1, 2 * channels), 2, axis=-1)
        mixed = attend(query.reshape(batch, -1, channels), key, value, self.heads, self.form)
        return dense(channels, mixed.reshape(x.shape), "proj", kernel_init=_LINEAR_INIT)


class MixFFN(nn.Module):
    """Two dense layers with a depthwise 3x3 convolution and a GELU between them; it is what tells
    positions apart."""

    ratio: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] from [B, H, W, C]."""
        y = dense(self.ratio * x.shape[-1], x, "fc1", kernel_init=_LINEAR_INIT)
        y = DepthwiseConv(fan_out_normal(9), name="dwconv")(y)
        return dense(x.shape[-1], y, "fc2", kernel_init=_LINEAR_INIT, of=gelu)


class Block(nn.Module):
    """One MiT block: attention, then Mix-FFN, each on a normalised input and added back, each
    dropped with the same rate."""

    heads: int
    sr_ratio: int
    mlp_ratio: int
    eps: float
    reduction_eps: float
    form: Form = "plain"

    @nn.compact
    def __call__(self, x: jax.Array, scales: jax.Array | None) -> tuple[jax.Array, None]:
        """(map [B, H, W, C], None): a scan's carry and its missing output.

        `scales` [2, B] multiplies the two branches sample by sample; None leaves them as they are.
        """
        attention = Attention(self.heads, self.sr_ratio, self.reduction_eps, self.form, name="attn")
        mixed = attention(LayerNorm(self.eps, name="norm1")(x))
        x = x + (mixed if scales is None else scale_samples(mixed, scales[0]))
        mixed = MixFFN(self.mlp_ratio, name="mlp")(LayerNorm(self.eps, name="norm2")(x))
        return x + (mixed if scales is None else scale_samples(mixed, scales[1])), None


class OverlapPatchEmbed(nn.Module):
    """Overlapping patches: a strided convolution and a LayerNorm."""

    features: int
    kernel: int
    stride: int
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ceil(H / stride), ceil(W / stride), features]."""
        return LayerNorm(self.eps, name="norm")(
            Conv(self.features, self.kernel, self.stride, name="proj")(x)
        )


class MixTransformer(nn.Module):
    """MiT of any size. The blocks of a stage are stored stacked under `block1` … `block4` (leading
    axis = block).

    dims, depths, heads, sr_ratios, strides, mlp_ratios: one entry a stage; the first patch
    embedding has a 7x7 kernel, the others 3x3. drop_path: rate of the last block; rates rise
    linearly from 0 over all blocks of all stages. eps: of block and stage norms; embed_eps,
    reduction_eps: of the norms after patch embedding and attention's reduction (PyTorch's default
    in the reference; Hugging Face runs all three at 1e-5). dtype: compute dtype, None follows the
    image.
    """

    dims: tuple[int, ...] = (32, 64, 160, 256)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    heads: tuple[int, ...] = (1, 2, 5, 8)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    strides: tuple[int, ...] = (4, 2, 2, 2)
    mlp_ratios: tuple[int, ...] = (4, 4, 4, 4)
    drop_path: float = 0.1
    eps: float = 1e-6
    embed_eps: float = 1e-5
    reduction_eps: float = 1e-5
    dtype: jnp.dtype | None = None
    unroll: bool = True
    remat: Literal["none", "blocks", "full"] = "none"
    attention: Form = "plain"

    @nn.compact
    def __call__(self, image: jax.Array, mode: Mode) -> tuple[jax.Array, ...]:
        """One normalised map a stage, [B, ceil(H / s), ceil(W / s), dims[i]] with s the product of
        the strides so far."""
        scales = None
        if mode == "train" and self.drop_path > 0:
            rates = np.linspace(0, self.drop_path, sum(self.depths))
            scales = drop_path_scales(self.make_rng("dropout"), rates, len(image))
        x = image.astype(self.dtype or image.dtype)
        features = []
        for i, (dim, depth) in enumerate(zip(self.dims, self.depths, strict=True)):
            embed = OverlapPatchEmbed(
                dim, 3 if i else 7, self.strides[i], self.embed_eps, name=f"patch_embed{i + 1}"
            )
            blocks = stacked_blocks(
                Block,
                depth=depth,
                unroll=self.unroll,
                remat=self.remat,
                name=f"block{i + 1}",
                heads=self.heads[i],
                sr_ratio=self.sr_ratios[i],
                mlp_ratio=self.mlp_ratios[i],
                eps=self.eps,
                reduction_eps=self.reduction_eps,
                form=self.attention,
            )
            start = sum(self.depths[:i])
            mine = None if scales is None else scales[start : start + depth]
            x, _ = blocks(embed(x), mine)
            x = LayerNorm(self.eps, name=f"norm{i + 1}")(x)
            features.append(x)
        return tuple(features)


def build_mit(model: Model, dtype: jnp.dtype | None) -> MixTransformer:
    """The encoder of a config."""
    encoder = model.encoder
    return MixTransformer(
        dims=encoder.dims,
        depths=encoder.depths,
        heads=encoder.heads,
        sr_ratios=encoder.sr_ratios,
        strides=encoder.strides,
        mlp_ratios=encoder.mlp_ratios,
        drop_path=encoder.drop_path,
        eps=encoder.norm_eps,
        embed_eps=encoder.embed_norm_eps,
        reduction_eps=encoder.embed_norm_eps,
        dtype=dtype,
        unroll=model.unroll,
        remat=model.remat,
        attention=model.attention,
    )
