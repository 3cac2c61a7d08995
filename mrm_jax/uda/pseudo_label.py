"""Pseudo-labels and their weights from the teacher's logits.

Source: DACS sec. 3 and DAFormer sec. 3.1 (peer: mmseg `uda/dacs.py`): every pixel keeps its label,
however unsure; the share of sure pixels scales the loss.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from mrm_jax.ops.resize import resize
from mrm_jax.types import Array, Metrics


@struct.dataclass
class PseudoLabel:
    """`label` i32[B,H,W] (never 255), `weight` f[B,H,W] in [0, 1], `confident_share` f[] of all
    pixels of the batch; `features`, the teacher's maps, where a pass regresses them.
    """

    label: jax.Array
    weight: jax.Array
    confident_share: jax.Array
    features: tuple[jax.Array, ...] | None = None


def make(
    logits: Array,
    valid: Array,
    threshold: Array | float,
    *,
    weight_over: Literal["batch", "image"],
    mirrored: Array | None = None,
) -> PseudoLabel:
    """Pseudo-labels at the size of `valid` from logits f[B, h, w, K], which are upsampled
    bilinearly first. mirrored: logits of the mirror images, whose probabilities are mirrored back
    and averaged with those of the pictures.

    The weight is the share of pixels whose confidence reaches `threshold`, one number a batch (as
    the reference trains) or an image, times `valid` [B, H, W]. The share counts all pixels, those
    outside the validity map too.
    """
    valid = jnp.asarray(valid)
    size = (valid.shape[1], valid.shape[2])
    if mirrored is None:
        label, confidence = most_likely(_enlarged(logits, size))
    else:
        label, confidence = _label_of_both(_enlarged(logits, size), _enlarged(mirrored, size))
    sure = (confidence >= jnp.asarray(threshold, confidence.dtype)).astype(confidence.dtype)
    axes = (0, 1, 2) if weight_over == "batch" else (1, 2)
    share = sure.mean(axes, keepdims=True)
    weight = share * valid.astype(confidence.dtype)
    return jax.lax.stop_gradient(PseudoLabel(label, weight, sure.mean()))


def _enlarged(logits: Array, size: tuple[int, int]) -> jax.Array:
    """Logits f[B, *size, K] in at least float32."""
    logits = jnp.asarray(logits)
    return resize(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), size)


def most_likely(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of logits f[B, H, W, K], the most likely class i32[B, H, W] and its probability."""
    highest = logits.max(-1, keepdims=True)
    # The largest softmax output is exp(0) over the sum: no map of all probabilities is needed.
    confidence = 1 / jnp.exp(logits - highest).sum(-1)
    return logits.argmax(-1).astype(jnp.int32), confidence


def _label_of_both(logits: jax.Array, mirrored: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same of the mean of both's probabilities. Source: peer, vfm-uda uda_vit_generic.py."""
    back = jax.nn.softmax(mirrored, axis=-1)[:, :, ::-1]
    mean = (jax.nn.softmax(logits, axis=-1) + back) / 2
    return mean.argmax(-1).astype(jnp.int32), mean.max(-1)


def metrics(pseudo: PseudoLabel, num_classes: int) -> Metrics:
    """`teacher/confident_share` f[], and `teacher/class_share` f[K], the share of pixels that each
    class is given.
    """
    share = pseudo.confident_share
    same = pseudo.label[..., None] == jnp.arange(num_classes).reshape(1, 1, 1, -1)
    return {
        "teacher/confident_share": share,
        "teacher/class_share": same.astype(share.dtype).mean((0, 1, 2)),
    }
