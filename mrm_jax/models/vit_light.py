"""VFM-UDA's decoder for a ViT's one map: twice doubled by transposed convolutions, then a 3x3 one.

Source: github.com/tue-mps/vfm-uda, models/vit_variants/vit_lightweight_head.py.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from mrm_jax.config import Decoder
from mrm_jax.models.blocks import recomputed
from mrm_jax.models.layers import Conv, Doubling, LayerNorm, dense, gelu
from mrm_jax.models.parameters import uniform
from mrm_jax.ops.precision import at_least_float32
from mrm_jax.types import Mode

_EPS = 1e-6


class LightHead(nn.Module):
    """Decoder of the last map; half and a quarter of its channels wide. No convolution has a bias,
    and nothing depends on the mode."""

    num_classes: int

    @nn.compact
    def __call__(self, features: tuple[jax.Array, ...], mode: Mode) -> jax.Array:
        """Logits [B, 4h, 4w, num_classes] of the last map [B, h, w, C], at least float32."""
        del mode
        x = features[-1]
        wide, narrow = x.shape[-1] // 2, x.shape[-1] // 4
        x = gelu(LayerNorm(_EPS, name="norm1")(Doubling(wide, use_bias=False, name="up1")(x)))
        x = LayerNorm(_EPS, name="norm2")(Doubling(narrow, use_bias=False, name="up2")(x))
        init = uniform((9 * narrow) ** -0.5)  # PyTorch's
        x = Conv(narrow, 3, use_bias=False, kernel_init=init, name="conv")(x)
        x = LayerNorm(_EPS, name="norm3")(x)
        x = x.astype(at_least_float32(x))
        init = uniform(narrow**-0.5)
        return dense(self.num_classes, x, "classifier", kernel_init=init, use_bias=False)


def build_vit_light(decoder: Decoder, num_classes: int, remat: str) -> nn.Module:
    """The decoder of a config."""
    del decoder
    return recomputed(LightHead, remat)(num_classes)
