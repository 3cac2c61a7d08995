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

from mrm_jax.models.segmentor import Transform
from mrm_jax.ops.resize import resize
from mrm_jax.ops.windows import grid
from mrm_jax.types import Array, Mode, SegOutput

Size = tuple[int, int]


class MultiRes(nn.Module):
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
        image = jnp.asarray(image)
        size = (image.shape[1], image.shape[2])
        if transform is not None and offset is None:
            raise ValueError("MultiRes: a transform of the features needs the offset of one crop.")
        features = self.encoder(resize(image, (size[0] // 2, size[1] // 2)), mode)
        decoded = features if transform is None else transform(features, "context")
        context = self.decoder(decoded, mode)
        attention = jax.nn.sigmoid(self.attention(decoded, mode))
        extent = (min(self.detail[0], size[0]), min(self.detail[1], size[1]))
        canvas = self._cells(size)
        if offset is None:
            detail = self._windows(image, extent, canvas, mode)
            return SegOutput({"main": _fused(context, attention, detail)}, features)
        crop = self._crop(image, offset, extent, mode, transform)
        # Masked before it is enlarged: half a cell of attention reaches over the crop's border,
        # where there is no detail. The reference's order, kept.
        attention = attention * self._inside(attention, offset, extent)
        context = (1 - attention) * context
        placed = jax.lax.dynamic_update_slice(
            jnp.zeros((crop.shape[0], *canvas, crop.shape[-1]), crop.dtype),
            crop,
            (0, offset[0] // self.stride, offset[1] // self.stride, 0),
        )
        fused = resize(context, canvas) + resize(attention, canvas) * placed
        logits = {"main": fused, "context": context, "detail": crop}
        return SegOutput(logits, features, offset, extent)

    def _cells(self, size: Size) -> Size:
        return math.ceil(size[0] / self.stride), math.ceil(size[1] / self.stride)

    def _crop(
        self,
        image: jax.Array,
        offset: Array,
        extent: Size,
        mode: Mode,
        transform: Transform | None,
    ) -> jax.Array:
        """Logits of the crop of `extent` px at `offset`, f[B, h, w, K]."""
        size = (image.shape[0], *extent, image.shape[3])
        crop = jax.lax.dynamic_slice(image, (0, offset[0], offset[1], 0), size)
        features = self.encoder(crop, mode)
        return self.decoder(features if transform is None else transform(features, "detail"), mode)

    def _inside(self, attention: jax.Array, offset: Array, extent: Size) -> jax.Array:
        """1 in the context's cells that the detail crop covers, else 0: f[1, h, w, 1]."""
        cell, axes = 2 * self.stride, []
        for axis in range(2):
            # Offsets that are no multiple of a cell are rounded down, as in the reference.
            at = jnp.arange(attention.shape[axis + 1]) - offset[axis] // cell
            axes.append((at >= 0) & (at < extent[axis] // cell))
        inside = axes[0][:, None] & axes[1][None, :]
        return inside[None, :, :, None].astype(attention.dtype)

    def _windows(self, image: jax.Array, extent: Size, canvas: Size, mode: Mode) -> jax.Array:
        """Logits f[B, *canvas, K] of overlapping detail crops, which run as one batch: first the
        first crop of every picture, then the second."""
        batch, size = image.shape[0], (image.shape[1], image.shape[2])
        stride = (max(extent[0] // 2, 1), max(extent[1] // 2, 1))
        corners, _ = grid(size, extent, stride)
        crops = [image[:, y : y + extent[0], x : x + extent[1]] for y, x in corners]
        logits = self.decoder(self.encoder(jnp.concatenate(crops), mode), mode)
        tile = (logits.shape[1], logits.shape[2])
        total = jnp.zeros((batch, *canvas, logits.shape[-1]), logits.dtype)
        count = np.zeros((1, *canvas, 1))
        for i, corner in enumerate(corners):
            place: list[slice] = [slice(None)]
            for axis in range(2):
                # The last crop ends with the picture, so its logits end with the canvas, where a
                # side is no multiple of the stride too.
                last = corner[axis] + extent[axis] == size[axis]
                start = canvas[axis] - tile[axis] if last else corner[axis] // self.stride
                place.append(slice(start, start + tile[axis]))
            total = total.at[tuple(place)].add(logits[i * batch : (i + 1) * batch])
            count[tuple(place)] += 1
        return total / jnp.asarray(count, total.dtype)


def _fused(context: jax.Array, attention: jax.Array, detail: jax.Array) -> jax.Array:
    """Context where the attention is low, detail where it is high, at the detail's size."""
    size = (detail.shape[1], detail.shape[2])
    return resize((1 - attention) * context, size) + resize(attention, size) * detail
