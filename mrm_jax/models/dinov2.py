"""DINOv2: a plain Vision Transformer with LayerScale, on patches of one size, with or without
register tokens.

Source: Oquab et al., TMLR 2024, and Darcet et al., ICLR 2024 (registers); reference:
dinov2/models/vision_transformer.py of Meta's code. Its one map may go through a simple pyramid.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mrm_jax.config import Encoder, Model
from mrm_jax.models.blocks import stacked_blocks
from mrm_jax.models.layers import (
    Doubling,
    LayerNorm,
    SelfAttention,
    dense,
    drop_path_scales,
    gelu,
    scale_samples,
)
from mrm_jax.models.parameters import parameter, uniform
from mrm_jax.ops.attention import Form
from mrm_jax.ops.pool import max_pool
from mrm_jax.ops.precision import at_least_float32
from mrm_jax.ops.resize import resize
from mrm_jax.registry.dinov2 import ffn_width, tokens
from mrm_jax.types import Array, Mode

_INIT = nn.initializers.normal(0.02)
OFFSET = 0.1
"""Cells that Meta's code adds to a size before it divides by the learned one. Source: peer,
`interpolate_offset`."""


def fitted(image: jax.Array, how: str, patch: int) -> jax.Array:
    """Pictures f[B, H, W, C] with sides of whole patches, as `config.Encoder.resize` says."""
    height, width = image.shape[1:3]
    rows, columns = tokens(how, patch, height, width)
    size = rows * patch, columns * patch
    if how != "native":
        return resize(image, size)
    return jnp.pad(image, ((0, 0), (0, size[0] - height), (0, size[1] - width), (0, 0)))


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel, f64."""
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def position_weights(count: int, learned: int, how: str) -> np.ndarray:
    """Weights f64[count, learned] of the learned positions along one axis in those of a picture.

    offset, resize: PyTorch's bicubic, a = -0.75, four taps with indices clamped at the border, for
    a step of learned / (count + 0.1) or learned / count cells. antialias: a = -0.5, the kernel as
    wide as the step where that is above 1, weights that sum to 1 at the border too.
    """
    step = learned / (count + (OFFSET if how == "offset" else 0))
    centre = (np.arange(count) + 0.5) * step
    if how == "antialias":
        distance = np.arange(learned) + 0.5 - centre[:, None]
        weights = _cubic(distance / max(step, 1), -0.5)
        return weights / weights.sum(1, keepdims=True)
    weights, first = np.zeros((count, learned)), np.floor(centre - 0.5).astype(int)
    for tap in range(-1, 3):
        place = np.clip(first + tap, 0, learned - 1)
        np.add.at(weights, (np.arange(count), place), _cubic(centre - 0.5 - (first + tap), -0.75))
    return weights


def positions_of(table: jax.Array, size: tuple[int, int], how: str, registers: int) -> jax.Array:
    """Positions [*size, C] of a grid of patches from the learned ones [side, side, C]; `how` is
    `config.Encoder.positions`."""
    side = table.shape[0]
    if size == (side, side):
        return table
    if how == "meta":
        how = "antialias" if registers else "offset"
    rows, columns = (jnp.asarray(position_weights(n, side, how), table.dtype) for n in size)
    exact = lax.Precision.HIGHEST
    return jnp.einsum("ri,cj,ijd->rcd", rows, columns, table, precision=exact)


class FeedForward(nn.Module):
    """Two dense layers with a GELU between them, or gated: the SiLU of one half times the other."""

    hidden: int
    gated: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, C] from [B, N, C]."""
        if not self.gated:
            hidden = dense(self.hidden, x, "fc1", kernel_init=_INIT)
            return dense(x.shape[-1], hidden, "fc2", kernel_init=_INIT, of=gelu)
        both = dense(2 * self.hidden, x, "w12", kernel_init=_INIT)
        gate, value = jnp.split(both.astype(at_least_float32(both)), 2, axis=-1)
        hidden = (nn.silu(gate) * value).astype(x.dtype)
        return dense(x.shape[-1], hidden, "w3", kernel_init=_INIT)


class ViTBlock(nn.Module):
    """Attention, then feed-forward, each on a normalised input, scaled channel by channel, dropped
    with the same rate and added back."""

    heads: int
    hidden: int
    gated: bool
    eps: float
    form: Form = "plain"

    @nn.compact
    def __call__(self, x: jax.Array, scales: jax.Array | None) -> tuple[jax.Array, None]:
        """(tokens [B, N, C], None): a scan's carry and its missing output. `scales`: as for MiT's
        block."""
        branches = (
            SelfAttention(self.heads, _INIT, self.form, name="attn"),
            FeedForward(self.hidden, self.gated, name="mlp"),
        )
        for i, branch in enumerate(branches):
            mixed = branch(LayerNorm(self.eps, name=f"norm{i + 1}")(x))
            width = (x.shape[-1],)
            gamma = parameter(self, f"ls{i + 1}", nn.initializers.ones, width)
            mixed = mixed * gamma.astype(x.dtype).reshape(1, 1, -1)
            x = x + (mixed if scales is None else scale_samples(mixed, scales[i]))
        return x, None


class PatchEmbed(nn.Module):
    """Patches that do not overlap, each by one matrix product."""

    features: int
    patch: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H / patch, W / patch, features]; kernel HWIO [patch, patch, C, features]."""
        p, (batch, height, width, channels) = self.patch, x.shape
        init = uniform((p * p * channels) ** -0.5)  # PyTorch's
        kernel = parameter(self, "kernel", init, (p, p, channels, self.features))
        patches = x.reshape(batch, height // p, p, width // p, p, channels).swapaxes(2, 3)
        patches = patches.reshape(batch, height // p, width // p, -1)
        y = patches @ kernel.astype(x.dtype).reshape(-1, self.features)
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
        return y + bias.astype(x.dtype).reshape(1, 1, 1, -1)


class DinoV2(nn.Module):
    """DINOv2 of any size. The blocks are stored stacked under `blocks` (leading axis = block).

    patch: px. hidden: width inside the feed-forward part; gated: SwiGLU. registers: how many
    tokens. grid: learned positions a side; positions, resize: as in `config.Encoder`. drop_path:
    rate of the last block; rates rise linearly from 0. eps: of all LayerNorms. dtype: compute
    dtype, None follows the image.
    """

    dim: int
    depth: int
    heads: int
    hidden: int
    patch: int = 14
    gated: bool = False
    registers: int = 0
    grid: int = 37
    positions: Literal["meta", "resize", "antialias"] = "meta"
    resize: Literal["native", "1.1"] = "native"
    drop_path: float = 0.0
    eps: float = 1e-6
    dtype: jnp.dtype | None = None
    unroll: bool = True
    remat: Literal["none", "blocks", "full"] = "none"
    attention: Form = "plain"

    @nn.compact
    def __call__(
        self, image: jax.Array, mode: Mode, hide: Array | None = None
    ) -> tuple[jax.Array, ...]:
        """One normalised map [B, rows, columns, dim], see `registry.dinov2.tokens`.

        hide: bool[B, rows, columns], patches in whose place the mask token stands; none of what
        was there reaches any output.
        """
        scales = None
        if mode == "train" and self.drop_path > 0:
            rates = np.linspace(0, self.drop_path, self.depth)
            scales = drop_path_scales(self.make_rng("dropout"), rates, len(image))
        x = fitted(image, self.resize, self.patch).astype(self.dtype or image.dtype)
        x = PatchEmbed(self.dim, self.patch, name="patch_embed")(x)
        batch, rows, columns, _ = x.shape
        x = self._with_prefix(x, hide)
        blocks = stacked_blocks(
            ViTBlock,
            depth=self.depth,
            unroll=self.unroll,
            remat=self.remat,
            name="blocks",
            heads=self.heads,
            hidden=self.hidden,
            gated=self.gated,
            eps=self.eps,
            form=self.attention,
        )
        x, _ = blocks(x, scales)
        x = LayerNorm(self.eps, name="norm")(x)
        return (x[:, 1 + self.registers :].reshape(batch, rows, columns, -1),)

    def _with_prefix(self, x: jax.Array, hide: Array | None) -> jax.Array:
        """Tokens [B, 1 + registers + rows * columns, C] of patches [B, rows, columns, C]: hidden
        ones replaced, positions added, class token and registers (without one) before them."""
        dtype, wide = x.dtype, at_least_float32(x)

        def learned(name: str, *shape: int, zero: bool = False) -> jax.Array:
            init = nn.initializers.zeros if zero else _INIT
            return parameter(self, name, init, (*shape, self.dim)).astype(wide)

        batch, rows, columns, _ = x.shape
        mask_token = learned("mask_token", zero=True).astype(dtype)
        if hide is not None:
            x = jnp.where(jnp.asarray(hide)[..., None], mask_token.reshape(1, 1, 1, -1), x)
        table = learned("positions", 1 + self.grid**2)
        places = table[1:].reshape(self.grid, self.grid, self.dim)
        places = positions_of(places, (rows, columns), self.positions, self.registers)
        x = (x.astype(wide) + places[None]).reshape(batch, rows * columns, self.dim)
        prefix = [learned("cls_token")[None] + table[:1]]
        if self.registers:
            prefix.append(learned("register_tokens", self.registers))
        first = jnp.concatenate(prefix)
        first = jnp.broadcast_to(first[None], (batch, *first.shape))
        return jnp.concatenate([first, x], axis=1).astype(dtype)


class Pyramid(nn.Module):
    """Four maps of a ViT's one: 4 times its size and 2 times by transposed convolutions, itself,
    and half of it by maximum. Widths: a quarter, a half, all, all.

    Source: ViTDet sec. 3, "simple feature pyramid" (Li et al., ECCV 2022). Deviation: the larger
    maps end in a LayerNorm, where theirs goes on with convolutions to one width; every decoder here
    brings its own.
    """

    @nn.compact
    def __call__(self, maps: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """[B, 4h, 4w, C / 4], [B, 2h, 2w, C / 2], the map [B, h, w, C] as it is, and
        [B, ceil(h / 2), ceil(w / 2), C]."""
        (x,) = maps
        dim = x.shape[-1]
        four = gelu(LayerNorm(1e-6, name="norm4a")(Doubling(dim // 2, name="up4a")(x)))
        four = LayerNorm(1e-6, name="norm4b")(Doubling(dim // 4, name="up4b")(four))
        two = LayerNorm(1e-6, name="norm2")(Doubling(dim // 2, name="up2")(x))
        padding = ((0, x.shape[1] % 2), (0, x.shape[2] % 2))
        return four, two, x, max_pool(x, 2, 2, padding)


def build_dinov2(model: Model, dtype: jnp.dtype | None) -> DinoV2:
    """The encoder of a config."""
    encoder = model.encoder
    (dim,), (depth,) = encoder.dims, encoder.depths
    return DinoV2(
        dim=dim,
        depth=depth,
        heads=encoder.heads[0],
        hidden=ffn_width(encoder.ffn, dim, encoder.mlp_ratios[0]),
        patch=encoder.strides[0],
        gated=encoder.ffn == "swiglu",
        registers=encoder.registers,
        grid=encoder.position_grid,
        positions=encoder.positions,
        resize=encoder.resize,
        drop_path=encoder.drop_path,
        eps=encoder.norm_eps,
        dtype=dtype,
        unroll=model.unroll,
        remat=model.remat,
        attention=model.attention,
    )


def build_pyramid(encoder: Encoder) -> Pyramid | None:
    """The pyramid of a config that has one."""
    return Pyramid() if encoder.pyramid else None
