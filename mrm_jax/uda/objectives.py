"""What a pass is judged by: pure functions of the pass's outcome and a key."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

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
    metrics `ce_fused`, `ce_detail`. Source: HRDA eq. 7.
    """
    del key
    output, view = call.output, call.view
    loss = weighted_cross_entropy(output.logits["main"], view.label, view.weight)
    if output.offset is None or output.extent is None:
        return loss, {"ce": loss}
    top, left = output.offset
    at, extent = (0, top, left), (view.label.shape[0], *output.extent)
    label = jax.lax.dynamic_slice(jnp.asarray(view.label), at, extent)
    weight = jax.lax.dynamic_slice(jnp.asarray(view.weight), at, extent)
    detail = weighted_cross_entropy(output.logits["detail"], label, weight)
    share = jnp.asarray(call.scalars.detail_weight, loss.dtype)
    return (1 - share) * loss + share * detail, {"ce_fused": loss, "ce_detail": detail}
