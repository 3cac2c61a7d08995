"""What a pass is judged by: pure functions of the pass's outcome and a key."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mrm_jax.models.multires import crop
from mrm_jax.ops.resize import resize
from mrm_jax.types import IGNORE, Array, Metrics, Scalars, SegOutput, View


@struct.dataclass
class Call:
    """One student forward: what came out, the view that went in, and the run's traced numbers."""

    output: SegOutput
    view: View
    scalars: Scalars


Objective = Callable[[Call, jax.Array], tuple[jax.Array, Metrics]]
"""(call, key) -> (loss f[], metrics under names that the pass's name is put before)."""


def weighted_cross_entropy(logits: Array, label: Array, weight: Array | None = None) -> jax.Array:
    """Cross entropy f[] of logits f[B, h, w, K], upsampled to the label's size, times `weight` f[B,
    H, W] (none: 1).

    The mean is over all B * H * W pixels: a pixel labelled 255 adds 0 and still counts, so a batch
    of which half is ignored has half the loss, and all ignored gives 0. At least float32. Source:
    peer mmseg `losses/cross_entropy_loss.py`.
    """
    logits, label = jnp.asarray(logits), jnp.asarray(label)
    logits = resize(
        logits.astype(jnp.promote_types(logits.dtype, jnp.float32)),
        (label.shape[1], label.shape[2]),
    )
    counted = label != IGNORE
    index = jnp.where(counted, label, jnp.zeros((), label.dtype)).astype(jnp.int32)
    score = jnp.take_along_axis(logits, index[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - score
    if weight is not None:
        loss = loss * jnp.asarray(weight).astype(loss.dtype)
    return jnp.where(counted, loss, jnp.zeros((), loss.dtype)).mean()


def cross_entropy(call: Call, key: jax.Array) -> tuple[jax.Array, Metrics]:
    """Weighted cross entropy of the main logits; metric `ce`. Draws nothing from `key`.

    With HRDA's detail crop: (1 - detail_weight) times that of the fused logits plus detail_weight
    times that of the detail logits on their own crop of labels and weights, a mean over the crop;
    metrics `ce_fused`, `ce_detail`. Source: HRDA sec. 3.3.
    """
    del key
    output, view = call.output, call.view
    loss = weighted_cross_entropy(output.logits["main"], view.label, view.weight)
    if output.offset is None or output.extent is None:
        return loss, {"ce": loss}
    label = crop(view.label, output.offset, output.extent)
    weight = crop(view.weight, output.offset, output.extent)
    detail = weighted_cross_entropy(output.logits["detail"], label, weight)
    share = jnp.asarray(call.scalars.detail_weight, loss.dtype)
    return (1 - share) * loss + share * detail, {"ce_fused": loss, "ce_detail": detail}


def feature_distance(
    call: Call,
    key: jax.Array,
    *,
    classes: tuple[int, ...] | None,
    num_classes: int,
    min_share: float,
) -> tuple[jax.Array, Metrics]:
    """Times its weight, the mean distance of the last map to the view's anchor over the cells of
    `classes` (None: all cells); metric `feature_distance`, unweighted. Draws nothing from `key`.

    The distance of a cell is the Euclidean norm over channels. Without such a cell, and where two
    maps are equal, loss and gradient are 0 (the reference's loss is NaN there, its gradient 0).
    Source: DAFormer sec. 3.3; peer: mmseg `uda/dacs.py`, `calc_feat_dist`.
    """
    del key
    features, anchor = call.output.features[-1], call.view.anchor
    if anchor is None:
        raise ValueError("The feature distance needs a view with an anchor.")
    size = (features.shape[1], features.shape[2])
    label = majority_label(call.view.label, size, num_classes=num_classes, min_share=min_share)
    chosen = jnp.ones(label.shape, bool)
    if classes is not None:
        ids = jnp.asarray(classes, label.dtype).reshape(1, 1, 1, -1)
        chosen = (label[..., None] == ids).any(-1)
    wide = jnp.promote_types(features.dtype, jnp.float32)
    squared = jnp.square(features.astype(wide) - jnp.asarray(anchor).astype(wide)).sum(-1)
    counted = chosen & (squared > 0)  # the root's slope at 0 is infinite
    distance = jnp.where(counted, jnp.sqrt(jnp.where(counted, squared, 1)), 0)
    mean = distance.sum() / jnp.maximum(chosen.sum(), 1).astype(wide)
    weight = jnp.asarray(call.scalars.feature_distance_weight, wide)
    return weight * mean, {"feature_distance": mean}


def majority_label(
    label: Array, size: tuple[int, int], *, num_classes: int, min_share: float
) -> jax.Array:
    """i32[B, *size]: the most frequent label of every cell; 255 where that is 255, or covers less
    than `min_share` of the cell.

    label: i[B, H, W], below `num_classes` or 255, which counts as a label too. A cell is a square
    of W // width px; rows and columns beyond the last whole cell are cut off; among equals the
    lowest label wins. Source: peer mmseg `utils/dacs_transforms`, `downscale_label_ratio`.
    """
    label = jnp.asarray(label)
    side, count = label.shape[2] // size[1], min(num_classes, IGNORE)
    cells = label[:, : side * size[0], : side * size[1]]
    cells = cells.reshape(-1, size[0], side, size[1], side, 1)
    ids = np.append(np.arange(count), IGNORE)
    same = cells == jnp.asarray(ids, label.dtype).reshape(1, 1, 1, 1, 1, -1)
    share = same.mean((2, 4), dtype=jnp.float32)
    winner = jnp.asarray(ids, jnp.int32)[share.argmax(-1)]
    return jnp.where(share.max(-1) >= min_share, winner, IGNORE)
