"""All randomness of a step, from named streams of one root key, the step and the global sample
index.

A sample's draws depend on its index alone, so the same seed and step give the same draws however a
batch is spread over devices and hosts. No network and no view draws for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.config import Config, detail_crop
from mrm_jax.rngs import per_sample, stream, typed
from mrm_jax.types import Array, Draws, Jitter
from mrm_jax.uda.methods import Pass

LABEL_VALUES = 256
ROUNDING = "teacher"
"""The key by which a teacher in bfloat16 is rounded, among those of the passes."""
AUGMENTED_VIEWS = ("mixed", "augmented", "masked", "augmented_target")


class Offsets(NamedTuple):
    """Where a detail crop may start: at `counts` multiples of `multiple` px in each direction.

    Source: HRDA sec. 3.2; peer: mmseg `hrda_encoder_decoder.py`, which never draws the last one,
    flush with the border.
    """

    counts: tuple[int, int]
    multiple: int

    def draw(self, key: jax.Array) -> jax.Array:
        """i32[2] (top, left), px: one for the whole batch."""
        counts = np.asarray(self.counts, np.int32)
        return jax.random.randint(key, (2,), 0, counts, jnp.int32) * self.multiple


def detail_offsets(config: Config) -> Offsets | None:
    """The offsets of a run's detail crops; None without HRDA."""
    multires = config.model.multires
    if not multires.enabled:
        return None
    multiple = multires.offset_multiple
    (height, width), detail = config.data.crop, detail_crop(config)
    counts = (_count(height - detail[0], multiple), _count(width - detail[1], multiple))
    return Offsets(counts, multiple)


def _count(margin: int, multiple: int) -> int:
    return max((margin + 1) // multiple, 1)


def draw(
    root_key: Array,
    step: Array | int,
    index: Array,
    *,
    passes: Sequence[Pass],
    grid: tuple[int, int],
    blocks: tuple[int, int] = (1, 1),
    inpainted: tuple[int, int] = (1, 1),
    offsets: Offsets | None = None,
    rounding: bool = False,
) -> Draws:
    """The draws of one step for the samples `index` i32[B], all floats in float32.

    root_key: u32[2], plain key data (as it is kept in a checkpoint). grid: tokens of a Rebuilder's
    mask. blocks: rows and columns of MIC's, or of the tokens that it hides; inpainted: of masked
    image modelling's. offsets: where HRDA's detail crops may start, None without HRDA. rounding:
    whether the teacher is rounded by chance.
    """
    root = typed(root_key)
    views = {row.view for row in passes}
    grids = {row.name: grid for row in passes if row.transform == "rebuild"}
    if offsets:
        grids |= {f"{name}/detail": grid for name in grids}
    grids |= {row.name: inpainted for row in passes if row.transform == "blank_image"}
    if "masked" in views:
        grids["masked"] = blocks
    mask: dict[str, Array] = {
        name: _uniform(root, f"mask/{name}", step, index, cells) for name, cells in grids.items()
    }
    return Draws(
        mix=_uniform(root, "mix", step, index, (LABEL_VALUES,)),
        augment={
            # MIC draws one order and one sigma for all pictures of its view.
            name: _jitter(root, f"augment/{name}", step, index, shared=name == "masked")
            for name in AUGMENTED_VIEWS
            if name in views
        },
        mask=mask,
        offset={
            row.name: offsets.draw(stream(root, f"offset/{row.name}", step))
            for row in passes
            if offsets
        },
        module={
            name: jax.random.key_data(stream(root, f"module/{name}", step))
            for name in [row.name for row in passes] + [ROUNDING] * rounding
        },
    )


def _uniform(
    root: jax.Array,
    name: str,
    step: Array | int,
    index: Array,
    shape: tuple[int, ...],
    low: float = 0.0,
) -> jax.Array:
    """f32[B, *shape] in [low, 1), each row from its sample's own key."""
    keys = per_sample(stream(root, name, step), jnp.asarray(index))
    return jax.vmap(lambda key: jax.random.uniform(key, shape, jnp.float32, low, 1.0))(keys)


def _jitter(root: jax.Array, name: str, step: Array | int, index: Array, *, shared: bool) -> Jitter:
    """`shared`: order and sigma are those of sample 0 for every sample."""
    common = jnp.zeros_like(index) if shared else index
    switches = jax.random.uniform(stream(root, f"{name}/switches", step), (2,), jnp.float32)
    order = _uniform(root, f"{name}/order", step, common, (4,))
    return Jitter(
        jitter_u=switches[0],
        blur_u=switches[1],
        strength=_uniform(root, f"{name}/strength", step, index, (4,), -1.0),
        order=jnp.argsort(order, axis=-1).astype(jnp.int32),
        sigma_u=_uniform(root, f"{name}/sigma", step, common, ()),
    )
