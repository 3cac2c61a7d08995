"""The Rebuilder of masked representation modelling: hides part of the features and predicts it from
what is left.

The last stage's features become tokens on a coarse grid; some tokens are replaced by a learned one;
a small transformer looks at all of them; projectors turn its output back into maps of every stage,
which are used where the token was hidden. Source: MRM sec. 3; reference:
mmseg/models/utils/rebuilder.py of the MRM code.
"""

from __future__ import annotations

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.models.blocks import recomputed, stacked_blocks
from mrm_jax.models.layers import LayerNorm, SelfAttention, TransposedConv, dense, gelu, torch_dense
from mrm_jax.models.parameters import parameter
from mrm_jax.ops.attention import Form
from mrm_jax.ops.resize import resize
from mrm_jax.types import FeatureSpec

_XAVIER = nn.initializers.xavier_uniform()
MAX_DOUBLINGS = 3


def doublings(size: tuple[int, int], grid: tuple[int, int]) -> int:
    """How many times a projector doubles the grid for a stage of `size`: ceil(log2(size / grid)),
    within 0 to 3.

    Factors 1, 2, 4 and 8 give exactly the published projectors. What is missing or too much is made
    up by bilinear resizing.
    """
    factor = max(size[0] / grid[0], size[1] / grid[1])
    return min(max(math.ceil(math.log2(factor)), 0), MAX_DOUBLINGS)


def sine_cosine_table(grid: tuple[int, int], dim: int) -> np.ndarray:
    """Fixed sine-cosine table f32[rows * columns, dim]: [sin r w, cos r w, sin c w, cos c w], w_k =
    10000^(-k / (dim / 4)).

    The first half tells the row, the second the column, as in the reference.
    """
    quarter = dim // 4
    frequency = 10000.0 ** (-np.arange(quarter) / quarter)
    row, column = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    angles = [position.reshape(-1, 1) * frequency for position in (row, column)]
    parts = [function(angle) for angle in angles for function in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)


class MLP(nn.Module):
    """Two dense layers with a GELU between them."""

    ratio: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, C] from [B, N, C]."""
        hidden = dense(self.ratio * x.shape[-1], x, "fc1", kernel_init=_XAVIER)
        return dense(x.shape[-1], hidden, "fc2", kernel_init=_XAVIER, of=gelu)


class TokenBlock(nn.Module):
    """Pre-norm transformer block without any dropping."""

    heads: int
    mlp_ratio: int
    form: Form = "plain"

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        """(tokens [B, N, C], None): a scan's carry and its missing output."""
        attention = SelfAttention(self.heads, _XAVIER, self.form, name="attn")
        x = x + attention(LayerNorm(1e-5, name="norm1")(x))
        return x + MLP(self.mlp_ratio, name="mlp")(LayerNorm(1e-5, name="norm2")(x)), None


class Projector(nn.Module):
    """From the token map to one stage: `doublings` transposed convolutions, a 1x1 convolution,
    resizing if sizes still differ, and a LayerNorm after it (so that rebuilt vectors have unit
    variance at every position).
    """

    channels: int
    doublings: int

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int]) -> jax.Array:
        """[B, *size, channels] from [B, rows, columns, dim]."""
        dim = x.shape[-1]
        widths = (dim // 2, dim // 4, dim // 4)[: self.doublings]
        for i, width in enumerate(widths):
            x = TransposedConv(width, name=f"deconv{i}")(x)
            if i + 1 < len(widths):
                x = gelu(LayerNorm(1e-6, name=f"norm{i}")(x))
        return LayerNorm(1e-6, name="norm")(resize(torch_dense(self.channels, x, "conv"), size))


class Blank(nn.Module):
    """Stands where a Rebuilder would and predicts nothing: hidden positions of the maps `stages`
    become 0 (MRM's ablation "mask without reconstruction")."""

    stages: tuple[int, ...]
    grid: tuple[int, int] = (16, 16)

    def __call__(
        self, features: tuple[jax.Array, ...], uniforms: jax.Array, ratio: jax.Array | float
    ) -> tuple[jax.Array, ...]:
        """See `Rebuilder`."""
        blanked = list(features)
        for i in self.stages:
            size = (features[i].shape[1], features[i].shape[2])
            shown = resize((uniforms > ratio)[..., None], size, method="nearest")
            blanked[i] = jnp.where(shown, features[i], jnp.zeros((), features[i].dtype))
        return tuple(blanked)


class Rebuilder(nn.Module):
    """Replaces hidden positions of the feature maps by what a transformer predicts for them.

    spec: of the encoder. nominal: crop size (height, width) in pixels; with the maps' sizes it
    fixes the projectors' layers, so the layout does not depend on the image actually seen (any size
    works). grid: tokens (rows, columns). stages: indices of the maps that are rebuilt: all for
    decoders that read all stages, only the last for DeepLabV2; the others pass unchanged.
    """

    spec: FeatureSpec
    nominal: tuple[int, int]
    stages: tuple[int, ...]
    grid: tuple[int, int] = (16, 16)
    dim: int = 512
    depth: int = 2
    heads: int = 16
    mlp_ratio: int = 4
    unroll: bool = True
    remat: Literal["none", "blocks", "full"] = "none"
    attention: Form = "plain"

    @nn.compact
    def __call__(
        self, features: tuple[jax.Array, ...], uniforms: jax.Array, ratio: jax.Array | float
    ) -> tuple[jax.Array, ...]:
        """Maps of the same number, shapes and dtypes as `features`.

        uniforms: f[B, rows, columns] in [0, 1); a token is visible where it is above `ratio` (the
        expected share hidden).
        """
        if uniforms.shape[1:] != self.grid:
            raise ValueError(
                f"Rebuilder: uniforms has the grid {uniforms.shape[1:]}, the module {self.grid}."
            )
        visible = (uniforms > ratio)[..., None]
        tokens = self._predict(features[-1], visible)
        rebuilt, nominal = list(features), self.spec.sizes(*self.nominal)
        for i in self.stages:
            size = (features[i].shape[1], features[i].shape[2])
            projector = recomputed(Projector, self.remat)(
                self.spec.channels[i], doublings(nominal[i], self.grid), name=f"projector{i + 1}"
            )
            shown = resize(visible, size, method="nearest")
            rebuilt[i] = jnp.where(
                shown, features[i], projector(tokens, size).astype(features[i].dtype)
            )
        return tuple(rebuilt)

    def _predict(self, last: jax.Array, visible: jax.Array) -> jax.Array:
        """Token map [B, rows, columns, dim] predicted from the visible tokens of the `last`
        stage."""
        x = resize(dense(self.dim, last, "embed", kernel_init=_XAVIER), self.grid)
        token = parameter(self, "mask_token", nn.initializers.normal(0.02), (self.dim,))
        x = jnp.where(visible, x, token.astype(x.dtype).reshape(1, 1, 1, -1))
        table = jnp.asarray(sine_cosine_table(self.grid, self.dim), x.dtype)
        x = x.reshape(x.shape[0], -1, self.dim) + table[None]
        blocks = stacked_blocks(
            TokenBlock,
            depth=self.depth,
            unroll=self.unroll,
            remat=self.remat,
            name="blocks",
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            form=self.attention,
        )
        x, _ = blocks(x, None)
        return LayerNorm(1e-5, name="norm")(x).reshape(-1, *self.grid, self.dim)
