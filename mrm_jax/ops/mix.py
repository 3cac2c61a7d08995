"""ClassMix: paste half of the source's classes onto the target.

Source: DACS (Tranheden et al., 2021); the classes are those of the whole batch, as the reference
trains (peer: mmseg `uda/dacs.py`, `models/utils/dacs_transforms.py`); the original draws from each
image's own.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.label_ids import IGNORE
from mrm_jax.types import Array


def class_mask(
    label: Array, scores: Array, *, num_classes: int, classes_of: Literal["batch", "image"]
) -> jax.Array:
    """The pixels to paste: bool[B, H, W], true where the label is one of the classes chosen for
    that image.

    label: i[B, H, W] with values below `num_classes` or 255. scores: f[B, 256], one for every label
    value and image; of the n values present, 255 included, each image takes the ceil(n / 2) with
    the highest scores. classes_of: whether "present" means in the whole batch or in the image
    itself.
    """
    label, scores = jnp.asarray(label), jnp.asarray(scores)
    ids = np.append(np.arange(min(num_classes, IGNORE)), IGNORE)
    # Comparing with every id costs less than a scatter and a gather, and keeps the batch axis apart
    # for sharding.
    same = label[..., None] == jnp.asarray(ids, label.dtype).reshape(1, 1, 1, -1)
    present = same.any((1, 2))
    if classes_of == "batch":
        present = jnp.broadcast_to(present.any(0, keepdims=True), present.shape)
    ranked = jnp.where(present, scores[:, ids], jnp.full((), -jnp.inf, scores.dtype))
    rank = jnp.argsort(jnp.argsort(-ranked, axis=-1), axis=-1)
    half = (present.sum(-1, keepdims=True) + 1) // 2
    chosen = present & (rank < half)
    return (same & chosen[:, None, None, :]).any(-1)


def paste(mask: Array, source: Array, target: Array) -> jax.Array:
    """`source` where `mask` bool[B, H, W] is true, else `target`; both [B, H, W] or [B, H, W, C],
    of one dtype.
    """
    where = jnp.asarray(mask).reshape(mask.shape + (1,) * (source.ndim - mask.ndim))
    return jnp.where(where, source, target)
