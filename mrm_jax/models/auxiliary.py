"""Heads on the encoder's last map that exist for training alone: what MRM is compared with."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrm_jax.config import Method
from mrm_jax.models.layers import torch_dense
from mrm_jax.models.parameters import parameter
from mrm_jax.ops.precision import at_least_float32


class PixelHead(nn.Module):
    """The pixels of every cell from its features: one dense layer. `cell`: side of a cell, px.

    Source: SimMIM sec. 3 (Xie et al., CVPR 2022), where a linear head does as well as deeper ones.
    """

    cell: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalised colours f[B, h * cell, w * cell, 3] of a map [B, h, w, C], at least
        float32."""
        batch, height, width, _ = x.shape
        colours = torch_dense(3 * self.cell**2, x, "colours").astype(at_least_float32(x))
        colours = colours.reshape(batch, height, width, self.cell, self.cell, 3)
        return colours.swapaxes(2, 3).reshape(batch, height * self.cell, width * self.cell, 3)


class Prototypes(nn.Module):
    """How near features are to learned prototypes, `count` a class, in `dim` dimensions.

    Source: Zhou et al., "Rethinking Semantic Segmentation: A Prototype View" (CVPR 2022): cosines,
    and of a class the nearest prototype counts. Deviation: theirs are averages over the features of
    a class, these are parameters.
    """

    classes: int
    count: int
    dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Cosines f[B, h, w, classes] with each class's nearest prototype, of a map [B, h, w, C];
        at least float32."""
        wide = at_least_float32(x)
        shape = (self.classes, self.count, self.dim)
        vectors = parameter(self, "vectors", nn.initializers.normal(1.0), shape)
        projected = torch_dense(self.dim, x, "projection").astype(wide)
        cosines = jnp.einsum("bhwd,kpd->bhwkp", _unit(projected), _unit(vectors.astype(wide)))
        return cosines.max(-1)


def _unit(x: jax.Array) -> jax.Array:
    """`x` at length 1 along its last axis; 0 stays 0, and its gradient finite."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


def pixel_heads(method: Method, cell: int, num_classes: int) -> dict[str, nn.Module]:
    """What `objectives.pixel_regression` reads."""
    del method, num_classes
    return {"pixels": PixelHead(cell)}


def prototype_heads(method: Method, cell: int, num_classes: int) -> dict[str, nn.Module]:
    """What `objectives.contrast` reads."""
    del cell
    options = method.contrast
    return {"prototypes": Prototypes(num_classes, options.prototypes, options.dim)}
