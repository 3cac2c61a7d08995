"""The teacher: an exponential moving average of the student's parameters, which labels the target.

Source: Tarvainen and Valpola (2017), as DACS uses it (peer: mmseg `uda/dacs.py`). Only parameters
are averaged; the teacher's BatchNorm statistics are its own.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrm_jax.ops.precision import round_by_chance
from mrm_jax.types import Array, SegOutput, Tree


def ema(
    student: Any, teacher: Any, step: Array, decay: Array | float, key: jax.Array | None = None
) -> Any:
    """a * teacher + (1 - a) * student, leaf by leaf, with a = min(1 - 1 / (step + 1), decay).

    step: i[], updates done so far; at 0 the result is a copy of the student. Dtypes are those of
    `teacher`. With a `key` they are bfloat16, and the sum is rounded by chance: its mantissa of 8
    bits would lose steps of 1 / 1000 when rounded to the nearest.
    """
    wide = jnp.promote_types(jnp.asarray(decay).dtype, jnp.float32)
    done = jnp.asarray(step).astype(wide)
    kept = jnp.minimum(done / (done + 1), jnp.asarray(decay, wide))

    def mean(s: jax.Array, t: jax.Array) -> jax.Array:
        return kept.astype(t.dtype) * t + (1 - kept).astype(t.dtype) * s

    if key is None:
        return jax.tree.map(mean, student, teacher)
    leaves, structure = jax.tree.flatten(student)
    wide_teacher = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(teacher)]
    keys = jax.random.split(key, len(leaves))
    rounded = map(round_by_chance, map(mean, leaves, wide_teacher), keys)
    return jax.tree.unflatten(structure, list(rounded))


def teacher_forward(
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
