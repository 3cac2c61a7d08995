"""What a pass is judged by: pure functions of the pass's outcome and a key."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from mrm_jax.ops.resize import resize
from mrm_jax.types import IGNORE, Array, Metrics, SegOutput, View


@struct.dataclass
class Call:
    """One student forward: what came out, and the view that went in."""

    output: SegOutput
    view: View


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
    """Weighted cross entropy of the main logits; metric `ce`. Draws nothing from `key`."""
    del key
    loss = weighted_cross_entropy(call.output.logits["main"], call.view.label, call.view.weight)
    return loss, {"ce": loss}
