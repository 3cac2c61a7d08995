"""The pytrees that travel from data to views, passes, update and evaluation.

Arrays only: nothing here holds a function, so all can be donated, sharded, saved and compared.
Shapes: `B H W` image, `h w` feature map, `K` classes, `C` channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray
Tree = Mapping[str, Any]
Metrics = dict[str, jax.Array]
"""Scalars of one step under their metrics.jsonl names, such as `mixed/ce`."""

Scalars = Mapping[str, Any]
"""Options of a run that are traced, f[] each by its dotted path, such as "method.mrm.ratio": runs
that differ only here share one program. Which they are, and where the step is given another number
than the option's value (`optimizer.warmup` in steps), says their declaration (`options.option`).
"""

Scale = Literal["context", "detail"]
"""Which features: of the whole picture, or of HRDA's detail crop."""

Mode = Literal["train", "pseudo", "eval"]
"""How a network runs (peer: mmseg `uda/dacs.py`).

train: BatchNorm normalises with batch statistics, dropout and drop-path act (the student).
pseudo: batch statistics, dropout and drop-path off (the teacher making pseudo-labels).
eval: running statistics, dropout and drop-path off.
"""


@struct.dataclass
class FeatureSpec:
    """What an encoder hands out, one entry a stage. `strides` are total (input pixels a cell).

    map_sizes(height, width): rows and columns of every map of such a picture; None: its sides by
    `strides`, rounded up.
    """

    channels: tuple[int, ...] = struct.field(pytree_node=False)
    strides: tuple[int, ...] = struct.field(pytree_node=False)
    map_sizes: Callable[[int, int], tuple[tuple[int, int], ...]] | None = struct.field(
        pytree_node=False, default=None
    )

    def sizes(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of every map of a picture of so many px."""
        if self.map_sizes is not None:
            return self.map_sizes(height, width)
        return tuple((-(-height // stride), -(-width // stride)) for stride in self.strides)


@struct.dataclass
class Labelled:
    """Pictures with ground truth: `image` u8[B,H,W,3] RGB, `label` u8[B,H,W], 255 = ignore."""

    image: Array
    label: Array


@struct.dataclass
class Unlabelled:
    """Pictures alone: `image` u8[B,H,W,3] RGB, `valid` u8[B,H,W], 0 in padding and margins."""

    image: Array
    valid: Array


@struct.dataclass
class Batch:
    """One step's data. Target labels do not exist here, so training cannot read them.

    Where no pass looks at the target, its pictures have neither rows nor columns: u8[B,0,0,3].
    `index` i32[B] is the global sample index, `step * B + i`; randomness is keyed by it.
    """

    source: Labelled
    target: Unlabelled
    index: Array


@struct.dataclass
class Jitter:
    """Draws of one strong augmentation.

    `jitter_u`, `blur_u` f[] are the switches shared by the batch; the rest is one row an image:
    `strength` f[B,4] in [-1, 1) scales brightness, contrast, saturation, hue; `order` i32[B,4] is
    the order in which they act; `sigma_u` f[B] in [0, 1).
    """

    jitter_u: Array
    blur_u: Array
    strength: Array
    order: Array
    sigma_u: Array


@struct.dataclass
class Draws:
    """Everything random in one step, so that it can be repeated from stored choices.

    `mix` f[B,256]: a score for every label id and image; the larger half present is pasted.
    `augment`: `Jitter` of every strongly augmented view, by name ("mixed", "augmented", ...).
    `mask` f[B,gh,gw] uniforms of every rebuilt view, by pass name ("reconstructed", ...) and, for
    a detail crop, "<pass>/detail"; and those of hidden blocks of pictures, "masked" (MIC; or of the
    encoder's tokens) and "inpainted" (masked image modelling).
    `offset` i32[2] (top, left; px) of the detail crop of every pass; {} without HRDA.
    `module` keys: dropout and drop-path of every pass, by pass name; "teacher" where it is rounded.
    """

    mix: Array
    augment: dict[str, Jitter]
    mask: dict[str, Array]
    offset: dict[str, Array]
    module: dict[str, Array]


@struct.dataclass
class View:
    """What a pass looks at, always under stop-gradient.

    `image` f[B,H,W,3] normalised, `label` i32[B,H,W], `weight` f[B,H,W]; `anchor` f[B,h,w,C] is
    what a frozen encoder's last stage makes of the picture, `taught` are the teacher's maps of it,
    `hide` bool[B,rows,columns] are the tokens in whose place the encoder puts its mask token; or
    None.
    """

    image: Array
    label: Array
    weight: Array
    anchor: Array | None = None
    taught: tuple[Array, ...] | None = None
    hide: Array | None = None


@struct.dataclass
class SegOutput:
    """What a network returns: `logits["main"]` f[B,h,w,K] at the decoder's stride, and features.

    No logits where a pass decodes nothing. Under HRDA with a detail crop also `logits["detail"]`,
    and where the crop lay in the picture: `offset` i32[2] (top, left) and `extent` (height, width),
    px.
    """

    logits: dict[str, jax.Array]
    features: tuple[jax.Array, ...]
    offset: Array | None = None
    extent: tuple[int, int] | None = struct.field(pytree_node=False, default=None)


@struct.dataclass
class TrainState:
    """All that a step changes. `params` = {"segmentor", "rebuilder"} ({} without MRM), and
    "auxiliary", by name, where heads are used that exist for training alone.
    """

    step: Array
    params: dict[str, Any]
    batch_stats: Tree
    teacher_params: Tree
    teacher_batch_stats: Tree
    opt_state: Any
    root_key: Array


@struct.dataclass
class Frozen:
    """What a step reads and never changes: second argument of the step, never donated.

    `imagenet_params`, `imagenet_batch_stats`: the encoder of the feature distance ({} when unused).
    """

    scalars: Scalars
    imagenet_params: Tree
    imagenet_batch_stats: Tree
