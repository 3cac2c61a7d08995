"""HRDA: the whole picture at half its resolution for context, crops of it at the full one for
detail, and an attention map that decides, class by class, which of the two to believe.

Source: HRDA sec. 3 (Hoyer et al., ECCV 2022); peers: mmseg `segmentors/hrda_encoder_decoder.py`,
`decode_heads/hrda_head.py`. The reference keeps the crop box in the module between two calls; here
it comes in as an argument and leaves in the output.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.models.segmentor import Features, Transform, run_network
from mrm_jax.ops.resize import resize
from mrm_jax.ops.windows import grid
from mrm_jax.types import Array, Mode, SegOutput

Size = tuple[int, int]


class MultiResSegmentor(nn.Module):
    """One encoder and one decoder at two resolutions, and a scale-attention head.

    attention: a decoder of the same number of classes and the same stride as `decoder`. stride:
    input px a cell of their logits. detail: height and width of a detail crop, px.
    """

    encoder: nn.Module
    decoder: nn.Module
    attention: nn.Module
    stride: int
    detail: Size

    def __call__(
        self,
        image: Array,
        *,
        mode: Mode,
        transform: Transform | None = None,
        offset: Array | None = None,
    ) -> SegOutput:
        """Logits `main` f[B, h, w, K] fused at the decoder's stride, and the context's features.

        image: f[B, H, W, 3], normalised. With `offset` i32[2] (top, left; px, the same for the
        batch) there is one detail crop, as in training, and the output also holds the logits
        `context` (times 1 - attention, as the reference returns them) and `detail`, and where the
        crop lay. Without, detail crops that overlap by half cover the picture, as one batch, and
        their logits are averaged (teacher and test). transform: applied to the context's features
        and to the detail crop's, each under its name; needs an offset. Rngs and `moments` as in
        `Segmentor`; of each BatchNorm the context's moments come first.
        """
        if transform is not None and offset is None:
            raise ValueError("MultiRes: a transform of the features needs the offset of one crop.")
        return run_network(self, image, mode=mode, transform=transform, offset=offset)

    def encode(self, image: Array, *, mode: Mode, offset: Array | None = None) -> Features:
        """See `Network`. The detail maps are those of one crop, or without an offset of all crops:
        first those of the first picture, row by row, then of the second."""
        image = jnp.asarray(image)
        size = (image.shape[1], image.shape[2])
        context = self.encoder(resize(image, (size[0] // 2, size[1] // 2)), mode)
        height, width = self._extent(size)
        if offset is None:
            corners, _ = self._grid(size)
            crops = [image[:, y : y + height, x : x + width] for y, x in corners]
            # Crops of a picture stay beside each other, and so on its device.
            detail = jnp.stack(crops, axis=1).reshape(-1, height, width, image.shape[-1])
        else:
            detail = crop(image, offset, (height, width))
        return {"context": context, "detail": self.encoder(detail, mode)}

    def decode(
        self, features: Features, *, size: Size, mode: Mode, offset: Array | None = None
    ) -> SegOutput:
        """See `Network`."""
        maps = features["context"]
        context, detail = self.decoder(maps, mode), self.decoder(features["detail"], mode)
        attention = jax.nn.sigmoid(self.attention(maps, mode))
        canvas = math.ceil(size[0] / self.stride), math.ceil(size[1] / self.stride)
        if offset is None:
            placed = self._averaged(detail, size, canvas)
            return SegOutput({"main": _fused((1 - attention) * context, attention, placed)}, maps)
        extent = self._extent(size)
        # Masked before it is enlarged: half a cell of attention reaches over the crop's border,
        # where there is no detail. The reference's order, kept.
        attention = attention * self._inside(attention, offset, extent)
        context = (1 - attention) * context
        empty = jnp.zeros((detail.shape[0], *canvas, detail.shape[-1]), detail.dtype)
        placed = jax.lax.dynamic_update_slice(empty, detail, _corner(offset // self.stride, 4))
        fused = _fused(context, attention, placed)
        logits = {"main": fused, "context": context, "detail": detail}
        return SegOutput(logits, maps, offset, extent)

    def _extent(self, size: Size) -> Size:
        """Height and width, px, of a detail crop of a picture of `size`."""
        return min(self.detail[0], size[0]), min(self.detail[1], size[1])

    def _grid(self, size: Size) -> tuple[np.ndarray, Size]:
        """Corners of the crops that cover a picture of `size`, overlapping by half, and their
        extent."""
        extent = self._extent(size)
        return grid(size, extent, (max(extent[0] // 2, 1), max(extent[1] // 2, 1)))

    def _inside(self, attention: jax.Array, offset: Array, extent: Size) -> jax.Array:
        """1 in the context's cells that the detail crop covers, else 0: f[1, h, w, 1]."""
        cell, axes = 2 * self.stride, []
        for axis in range(2):
            # Offsets that are no multiple of a cell are rounded down, as in the reference.
            at = jnp.arange(attention.shape[axis + 1]) - offset[axis] // cell
            axes.append((at >= 0) & (at < extent[axis] // cell))
        inside = axes[0][:, None] & axes[1][None, :]
        return inside[None, :, :, None].astype(attention.dtype)

    def _averaged(self, logits: jax.Array, size: Size, canvas: Size) -> jax.Array:
        """Logits f[B, *canvas, K] of a picture of `size` from those of all its crops."""
        corners, extent = self._grid(size)
        logits = logits.reshape(-1, len(corners), *logits.shape[1:])
        batch, _, *tile, classes = logits.shape
        total = jnp.zeros((batch, *canvas, classes), logits.dtype)
        count = np.zeros((1, *canvas, 1))
        for i, corner in enumerate(corners):
            place: list[slice] = [slice(None)]
            for axis in range(2):
                # The last crop ends with the picture, so its logits end with the canvas, where a
                # side is no multiple of the stride too.
                last = corner[axis] + extent[axis] == size[axis]
                start = canvas[axis] - tile[axis] if last else corner[axis] // self.stride
                place.append(slice(start, start + tile[axis]))
            total = total.at[tuple(place)].add(logits[:, i])
            count[tuple(place)] += 1
        return total / jnp.asarray(count, total.dtype)


def crop(x: Array, offset: Array, size: Size) -> jax.Array:
    """The part of `size` of every `x` [B, H, W, ...] that starts at `offset` i32[2] (top, left)."""
    x = jnp.asarray(x)
    shape = (x.shape[0], *size, *x.shape[3:])
    return jax.lax.dynamic_slice(x, _corner(offset, x.ndim), shape)


def _corner(offset: Array, rank: int) -> tuple[jax.Array, ...]:
    zero = jnp.zeros_like(offset[0])
    return (zero, offset[0], offset[1], *[zero] * (rank - 3))


def _fused(context: jax.Array, attention: jax.Array, detail: jax.Array) -> jax.Array:
    """The context's share and, where the attention is high, the detail's, at the detail's size."""
    size = (detail.shape[1], detail.shape[2])
    return resize(context, size) + resize(attention, size) * detail
