"""What a pass is judged by: pure functions of the pass's outcome and a key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mrm_jax.label_ids import IGNORE
from mrm_jax.models.multires import crop
from mrm_jax.ops.resize import resize
from mrm_jax.types import Array, Metrics, Scalars, SegOutput, View


@struct.dataclass
class Whole:
    """All of a batch that is computed in `parts` equal parts, one call each, to save memory: labels
    u8[B, H, W] and `mask` (see `Call`) of all rows. A loss that divides by a number of pixels asks
    here for their number in the batch, which its own part does not show.
    """

    label: Array
    mask: Array | None
    parts: int = struct.field(pytree_node=False)


@struct.dataclass
class Call:
    """All that an objective may look at after one student forward of one pass.

    output: logits and the encoder's own feature maps. view: the pictures that went in, with labels
    and weights. scalars: options that are traced numbers, by dotted path. maps: the feature maps as
    the pass's transform left them, finest first; under HRDA those of the context. stages: which of
    them were rebuilt. mask: bool[B, rows, columns], true where features or blocks of the picture
    were hidden; None where nothing was. heads: auxiliary heads by name, functions of the last map.
    whole: None, or the batch of which this call computes one part. What a loss counts, it counts
    over all of it and divides by the parts, so that the parts' mean is the loss of the batch.
    """

    output: SegOutput
    view: View
    scalars: Scalars
    maps: tuple[jax.Array, ...] = ()
    stages: tuple[int, ...] = struct.field(pytree_node=False, default=())
    mask: jax.Array | None = None
    heads: Mapping[str, Callable[[jax.Array], jax.Array]] = struct.field(
        pytree_node=False, default_factory=dict
    )
    whole: Whole | None = None


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
    share = jnp.asarray(call.scalars["model.multires.detail_weight"], loss.dtype)
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

    def cells(label: Array) -> jax.Array:
        label = majority_label(label, size, num_classes=num_classes, min_share=min_share)
        if classes is None:
            return jnp.ones(label.shape, bool)
        ids = jnp.asarray(classes, label.dtype).reshape(1, 1, 1, -1)
        return (label[..., None] == ids).any(-1)

    chosen = cells(call.view.label)
    total = chosen if call.whole is None else cells(call.whole.label)
    wide = jnp.promote_types(features.dtype, jnp.float32)
    squared = jnp.square(features.astype(wide) - jnp.asarray(anchor).astype(wide)).sum(-1)
    counted = chosen & (squared > 0)  # the root's slope at 0 is infinite
    distance = jnp.where(counted, jnp.sqrt(jnp.where(counted, squared, 1)), 0)
    mean = distance.sum() / _share(total.sum().astype(wide), call)
    weight = jnp.asarray(call.scalars["method.feature_distance.weight"], wide)
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


def contrast(call: Call, key: jax.Array) -> tuple[jax.Array, Metrics]:
    """Times its weight, the cross entropy of every cell's cosines with the classes' nearest
    prototypes, divided by the temperature; metric `contrast`, unweighted. Draws nothing from `key`.

    A cell has label and weight of the pixel in its middle; the mean is that of
    `weighted_cross_entropy`. Source: Zhou et al. (CVPR 2022), with the pseudo-labels' weights.
    """
    del key
    cosines = call.heads["prototypes"](call.output.features[-1])
    pixels, cells = call.view.label.shape[1:], cosines.shape[1:3]
    # Cells of a ViT may be no whole px.
    rows, columns = (
        ((np.arange(count) + 0.5) * side / count).astype(int)
        for side, count in zip(pixels, cells, strict=True)
    )
    label, weight = (
        jnp.asarray(x)[:, rows][:, :, columns] for x in (call.view.label, call.view.weight)
    )
    temperature = jnp.asarray(call.scalars["method.contrast.temperature"], cosines.dtype)
    loss = weighted_cross_entropy(cosines / temperature, label, weight)
    return jnp.asarray(call.scalars["method.contrast.weight"], loss.dtype) * loss, {
        "contrast": loss
    }


def pixel_regression(call: Call, key: jax.Array) -> tuple[jax.Array, Metrics]:
    """Mean absolute difference, over hidden pixels and colours, of the pixels that a head reads
    from the last map and the view's normalised picture; metric `pixels`. Draws nothing from `key`.

    Under HRDA the picture is the context's. Nothing hidden gives 0. Source: SimMIM sec. 3.
    """
    del key
    found = call.heads["pixels"](call.maps[-1])
    size = (found.shape[1], found.shape[2])
    loss = _mean_hidden(jnp.abs(found - resize(jnp.asarray(call.view.image), size)), call)
    return loss, {"pixels": loss}


def feature_regression(
    call: Call, key: jax.Array, *, of: Literal["student", "teacher"]
) -> tuple[jax.Array, Metrics]:
    """Mean squared difference, over hidden cells and channels, of rebuilt maps and those that the
    student's encoder or the teacher's made of the whole picture, under stop-gradient, averaged over
    the rebuilt stages; metric `features`. Draws nothing from `key`. Nothing hidden gives 0.

    Source: MRM's ablation of its target, which does not name a distance.
    """
    del key
    wanted = call.output.features if of == "student" else call.view.taught
    if wanted is None:
        raise ValueError("Regression of the teacher's features needs a view with its maps.")
    losses = []
    for i in call.stages:
        wide = jnp.promote_types(call.maps[i].dtype, jnp.float32)
        target = jax.lax.stop_gradient(wanted[i]).astype(wide)
        losses.append(_mean_hidden(jnp.square(call.maps[i].astype(wide) - target), call))
    loss = jnp.stack(losses).mean()
    return loss, {"features": loss}


def _mean_hidden(error: jax.Array, call: Call) -> jax.Array:
    """The mean f[] of `error` f[B, h, w, C] where the call's coarser `mask` is true; 0 where
    nothing is."""
    if call.mask is None:
        raise ValueError("A loss of what is hidden needs a pass with a transform.")
    size = (error.shape[1], error.shape[2])

    def cells(mask: Array) -> jax.Array:
        return resize(jnp.asarray(mask)[..., None], size, method="nearest").astype(error.dtype)

    counted = cells(call.mask)
    whole = None if call.whole is None else call.whole.mask
    total = (counted if whole is None else cells(whole)).sum() * error.shape[-1]
    return (error * counted).sum() / _share(total, call)


def _share(total: jax.Array, call: Call) -> jax.Array:
    """What a sum over the call is divided by, where `total` are counted over all of its batch."""
    parts = 1 if call.whole is None else call.whole.parts
    return jnp.maximum(total, 1) / parts


def weighted(objective: Objective, weight: float) -> Objective:
    """`objective` with its loss times `weight` and its metrics as they are."""

    def judged(call: Call, key: jax.Array) -> tuple[jax.Array, Metrics]:
        loss, metrics = objective(call, key)
        return jnp.asarray(weight, loss.dtype) * loss, metrics

    return judged
