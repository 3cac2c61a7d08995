"""Scores of a checkpoint from unlabelled target pictures alone, to pick one where there are no
labels.

`entropy`, `diversity` and `infomax` need the student, `agreement` a teacher, `masked_agreement` the
Rebuilder. All are read off the same crops and the same masks at every step, so scores of
checkpoints can be compared. Crops have the size of training: one compilation a run, memory that
training needs anyway, and a grid of tokens that hides what it hid in training.

Sources: information maximisation, Bridle et al. (1991), as Liang et al. (ICML 2020) adapt by it.
Picking by a network's own confidence has a known weakness: see docs/methods.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax import stop
from mrm_jax.config import Config, input_stats
from mrm_jax.evaluation import confusion
from mrm_jax.evaluation.inference import predict
from mrm_jax.evaluation.network import on_device, spread_rows
from mrm_jax.label_ids import IGNORE
from mrm_jax.models.segmentor import transformed
from mrm_jax.ops.normalise import normalise
from mrm_jax.ops.precision import multiplying
from mrm_jax.ops.resize import resize
from mrm_jax.rngs import per_sample, root, stream
from mrm_jax.types import Array, Scale, Tree, Unlabelled

PREFIX = "select/"
"""What the scores' names begin with in metrics.jsonl."""
MASK_SEED = 0
"""Seed of the masks. Not the run's seed: runs of several seeds are compared under the same ones."""


class Rebuilding(NamedTuple):
    """The Rebuilder of a run with MRM and its parameters."""

    module: nn.Module
    params: Tree


def label_free(
    config: Config,
    segmentor: nn.Module,
    networks: Mapping[str, Tree],
    crops: Unlabelled,
    *,
    rebuilding: Rebuilding | None = None,
) -> dict[str, float]:
    """Scores in 0..1 by name; higher is better for all but `entropy`. There are no labels in it.

    entropy: mean over pixels of the entropy of the student's softmax, over log K; diversity: the
    entropy of its mean, over log K; infomax: diversity - entropy, the mutual information of pixel
    and class. agreement: mean over classes of the IoU of the student's and the teacher's class
    maps; masked_agreement: of the student's own maps from whole and from rebuilt features. Classes
    that neither map has are left out; padding and margins count nowhere.

    networks: "student" and, if the method has one, "teacher", as `evaluate_networks` takes them.
    crops: u8[N,H,W,...] of equal size, see `data.pipeline.selection_crops`.
    """
    classes, rows = len(config.data.classes.names), config.evaluation.batch
    sure = np.zeros(classes + 2)
    counts: dict[str, np.ndarray] = {}
    with jax.transfer_guard("allow"):  # as in the evaluator
        networks = {name: on_device(variables) for name, variables in networks.items()}
        for index in _rows(len(crops.image), rows):
            stop.look()
            image, valid, index = spread_rows(
                networks["student"], *_part(crops, index, rows), np.resize(index, rows)
            )
            normal = _normalise(image, input_stats(config.model))
            with multiplying(config.model.precision):
                logits = _logits(config, segmentor, networks, normal, index, rebuilding)
            sure += np.asarray(jax.device_get(_certainty(logits["student"], valid)), np.float64)
            for name in logits.keys() - {"student"}:
                found = _agreement(logits["student"], logits[name], valid, classes=classes)
                counts[name] = counts.get(name, 0) + np.asarray(found, np.int64)
    named = {"teacher": "agreement", "masked": "masked_agreement"}
    agreed = {named[name]: confusion.scores(matrix).mean_iou for name, matrix in counts.items()}
    return {**_information(sure), **dict(sorted(agreed.items()))}


def _information(sums: np.ndarray) -> dict[str, float]:
    """From sums over pixels f64[K+2]: probabilities, entropy (nats) and the number of pixels."""
    *share, entropy, pixels = sums / max(sums[-1], 1)
    most = math.log(len(share))
    share = np.asarray(share)
    entropy = entropy / most
    diversity = -float(np.sum(share * np.log(np.maximum(share, 1e-30)))) / most
    return {"infomax": diversity - entropy, "entropy": entropy, "diversity": diversity}


def _logits(
    config: Config,
    segmentor: nn.Module,
    networks: Mapping[str, Tree],
    image: jax.Array,
    index: Array,
    rebuilding: Rebuilding | None,
) -> dict[str, jax.Array]:
    """Logits f[B,H,W,K] of student, teacher and, as `masked`, of the student's rebuilt features."""
    found = {}
    if rebuilding is not None:
        found["student"], found["masked"] = _whole_and_masked(
            segmentor,
            rebuilding.module,
            networks["student"],
            rebuilding.params,
            image,
            index,
            config.method.mrm.ratio,
        )
    for name, variables in networks.items():
        if name not in found:
            found[name] = predict(segmentor, variables, image)
    return found


@partial(jax.jit, static_argnames=("segmentor", "rebuilder"))
def _whole_and_masked(
    segmentor: nn.Module,
    rebuilder: Any,
    variables: Tree,
    params: Tree,
    image: Array,
    index: Array,
    ratio: Array | float,
) -> tuple[jax.Array, jax.Array]:
    """Logits f[B,H,W,K] of one encoding, decoded as it is and with hidden tokens rebuilt.

    index: i[B], which pictures they are; each has its own mask. HRDA: every detail crop too.
    """
    size = (image.shape[1], image.shape[2])
    features: Any = segmentor.apply(variables, image, mode="eval", method="encode")

    def rebuild(maps: tuple[jax.Array, ...], scale: Scale) -> tuple[jax.Array, ...]:
        uniforms = _uniforms(scale, index, len(maps[-1]) // len(index), rebuilder.grid)
        return rebuilder.apply({"params": params}, maps, uniforms, ratio)

    def decode(maps: Any) -> jax.Array:
        output: Any = segmentor.apply(variables, maps, size=size, mode="eval", method="decode")
        return resize(output.logits["main"], size)

    return decode(features), decode(transformed(features, rebuild))


def _uniforms(scale: Scale, index: Array, parts: int, grid: tuple[int, int]) -> jax.Array:
    """f32[parts * B, *grid] in [0, 1): of every picture's part 0, then 1 (HRDA's crops)."""
    key = root(MASK_SEED)
    keys = [per_sample(stream(key, f"selection/{scale}", part), index) for part in range(parts)]
    return jax.vmap(lambda key: jax.random.uniform(key, grid, jnp.float32))(jnp.concatenate(keys))


_normalise = jax.jit(normalise, static_argnames="stats")


@jax.jit
def _certainty(logits: jax.Array, valid: Array) -> jax.Array:
    """f32[K+2], sums over valid pixels: probabilities, entropy in nats, and the pixels."""
    logs = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    shares = jnp.exp(logs)
    entropy = -(shares * logs).sum(-1, keepdims=True)
    each = jnp.concatenate([shares, entropy, jnp.ones_like(entropy)], axis=-1)
    return jnp.where(valid[..., None] > 0, each, 0).sum((0, 1, 2))


@partial(jax.jit, static_argnames="classes")
def _agreement(one: jax.Array, other: jax.Array, valid: Array, *, classes: int) -> jax.Array:
    """Confusion i32[K,K] of the classes that two logits f[B,H,W,K] are largest in."""
    label = jnp.where(valid > 0, one.argmax(-1), IGNORE)
    return confusion.confusion_matrix(other.argmax(-1), label, classes)


def _rows(count: int, rows: int) -> list[np.ndarray]:
    return [np.arange(first, min(first + rows, count)) for first in range(0, count, rows)]


def _part(crops: Unlabelled, index: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and validity of `index`, filled up to `rows` with ones that count nowhere."""
    missing = ((0, rows - len(index)), (0, 0), (0, 0))
    image = np.asarray(crops.image)[index]
    return (
        np.pad(image, (*missing, (0, 0))),
        np.pad(np.asarray(crops.valid)[index], missing),
    )
