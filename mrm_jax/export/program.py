"""A trained network as one function from pictures to classes, for formats that hold programs.

Normalisation, windows and the resize to the picture's size are inside. What exists for training
alone (Rebuilder, heads, optimiser) is no part of a `TrainedNetwork`, and so of no program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.config import detail_crop, input_stats, smallest_picture
from mrm_jax.evaluation.inference import whole_logits
from mrm_jax.evaluation.network import TrainedNetwork
from mrm_jax.models.build import build_segmentor
from mrm_jax.ops.normalise import normalise

Segment = Callable[[Any], tuple[Any, Any]]
"""(train ids u8[b,H,W], probabilities f32[b,H,W,K]) of pictures RGB [b,H,W,3], levels 0..255 as
u8 or f32."""


def plain(net: TrainedNetwork) -> TrainedNetwork:
    """`net` as it is exported: in float32, at one scale, without mirroring."""
    config = net.config
    model = replace(config.model, dtype="float32", remat="none", unroll=True)
    evaluation = replace(config.evaluation, scales=(1.0,), flip=False)
    module = build_segmentor(model, len(net.classes), detail_crop(config))
    found = replace(config, model=model, evaluation=evaluation)
    return replace(net, config=found, module=module)


def program(net: TrainedNetwork) -> Segment:
    """`net` (see `plain`) as a function; its variables are constants of what is traced from it.

    Each picture is read at its own size. One picture's program is mapped over b, so that b may be
    symbolic: operations choose their forms by sizes.
    """
    return jax.vmap(_single(net))


def program_of_one(net: TrainedNetwork) -> Segment:
    """`program` for b = 1, with nothing mapped, which leaves operations of fewer axes."""
    segment = _single(net)

    def one(pictures: jax.Array) -> tuple[jax.Array, jax.Array]:
        ids, found = segment(pictures[0])
        return ids[None], found[None]

    return one


def _single(net: TrainedNetwork) -> Segment:
    """(ids u8[H,W], probabilities f32[H,W,K]) of one picture [H,W,3]."""
    config, module = net.config, net.module
    stats, smallest = input_stats(config.model), smallest_picture(config.model)

    def forward(image: Any) -> jax.Array:
        below, right = (max(0, smallest - side) for side in image.shape[1:3])
        image = jnp.pad(image, ((0, 0), (0, below), (0, right), (0, 0)))
        output: Any = module.apply(net.variables, image, mode="eval")
        return output.logits["main"]

    def segment(picture: jax.Array) -> tuple[jax.Array, jax.Array]:
        image = normalise(picture, stats)[None]
        logits = whole_logits(forward, image, protocol=config.evaluation, smallest=smallest)[0]
        ids = jnp.argmax(logits, axis=-1).astype(jnp.uint8)
        return ids, jax.nn.softmax(logits, axis=-1)

    return segment


def probabilities(net: TrainedNetwork, pictures: np.ndarray) -> np.ndarray:
    """f32[b,H,W,K] of u8[b,H,W,3] as `evaluate` and `predict` compute them, a picture at a time:
    what an export is compared with."""
    size, found = pictures.shape[1:3], []
    for picture in pictures:
        parts = net.strips((picture[None],), (size[0], size[1]), "probabilities")
        found.append(np.concatenate([strip.cut()[0] for strip in parts]))
    return np.stack(found)
