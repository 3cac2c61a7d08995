"""The teacher: an exponential moving average of the student's parameters, which labels the target.

Source: Tarvainen and Valpola (2017), as DACS uses it (peer: mmseg `uda/dacs.py`). Only parameters
are averaged; the teacher's BatchNorm statistics are its own.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrm_jax.types import Array, SegOutput, Tree


def ema(student: Any, teacher: Any, step: Array, decay: Array | float) -> Any:
    """a * teacher + (1 - a) * student, leaf by leaf, with a = min(1 - 1 / (step + 1), decay).

    step: i[], updates done so far; at 0 the result is a copy of the student. Dtypes are those of
    `teacher`.
    """
    wide = jnp.promote_types(jnp.asarray(decay).dtype, jnp.float32)
    done = jnp.asarray(step).astype(wide)
    kept = jnp.minimum(done / (done + 1), jnp.asarray(decay, wide))
    return jax.tree.map(
        lambda s, t: kept.astype(t.dtype) * t + (1 - kept).astype(t.dtype) * s, student, teacher
    )


def predict(
    segmentor: nn.Module, params: Tree, batch_stats: Tree, image: Array
) -> tuple[SegOutput, Tree]:
    """Logits and features of normalised pictures and the BatchNorm moments of this forward ({}
    without BatchNorm).

    Normalises with the statistics of this batch and drops nothing, as the reference's teacher does,
    and lets no gradient out.
    """
    variables = jax.lax.stop_gradient({"params": params, "batch_stats": batch_stats})
    applied: Any = segmentor.apply(variables, image, mode="pseudo", mutable=["moments"])
    output, moved = applied
    return jax.lax.stop_gradient(output), moved.get("moments", {})
