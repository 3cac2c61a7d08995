"""The views of a step: what its passes look at, made from the batch, the pseudo-labels and the
draws.

Source: DACS sec. 3 (peer: mmseg `uda/dacs.py`): classes of the source are pasted onto the target,
then the mixed picture is jittered and blurred. Source and target themselves are never augmented
beyond what the loader did.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from mrm_jax import sharding
from mrm_jax.config import Augment, Method
from mrm_jax.ops.augment import colour_jitter, gaussian_blur
from mrm_jax.ops.mask import hidden_tokens
from mrm_jax.ops.mix import class_mask, paste
from mrm_jax.ops.normalise import from_unit, normalise, to_unit
from mrm_jax.registry import InputStats
from mrm_jax.types import Array, Batch, Draws, Jitter, Labelled, Scalars, Unlabelled, View
from mrm_jax.uda.pseudo_label import PseudoLabel


def normalise_batch(batch: Batch, stats: InputStats, dtype: jnp.dtype) -> Batch:
    """The batch with pictures normalised in `dtype` and labels i32; the rest unchanged."""
    source = Labelled(
        normalise(batch.source.image, stats, dtype),
        jnp.asarray(batch.source.label).astype(jnp.int32),
    )
    target = Unlabelled(normalise(batch.target.image, stats, dtype), batch.target.valid)
    return Batch(source, target, batch.index)


def strong_augment(
    image: Array, draws: Jitter, scalars: Scalars, options: Augment, stats: InputStats
) -> jax.Array:
    """Normalised pictures f[B, H, W, 3], colour-jittered and blurred where the batch's switches say
    so.
    """

    def jitter(x: jax.Array) -> jax.Array:
        strength = jnp.asarray(draws.strength).astype(x.dtype) * options.jitter_strength
        return from_unit(colour_jitter(to_unit(x, stats), strength, draws.order), stats)

    def blur(x: jax.Array) -> jax.Array:
        low, high = options.blur_sigma
        return gaussian_blur(x, low + (high - low) * jnp.asarray(draws.sigma_u).astype(x.dtype))

    image = jnp.asarray(image)
    image = jax.lax.cond(
        draws.jitter_u < scalars["method.augment.jitter_probability"], jitter, lambda x: x, image
    )
    return jax.lax.cond(
        draws.blur_u < scalars["method.augment.blur_probability"],
        blur,
        lambda x: x,
        sharding.by_picture(image),
    )


def make_views(
    pseudo: PseudoLabel | None,
    batch: Batch,
    draws: Draws,
    scalars: Scalars,
    *,
    names: Collection[str],
    method: Method,
    num_classes: int,
    stats: InputStats,
) -> dict[str, View]:
    """The views `names` (of source, augmented, target, augmented_target, mixed, masked) of a
    normalised batch, under stop-gradient; "augmented" is the source.

    `pseudo` is needed for all but source and augmented. Pasted pixels carry the source's label and
    weight 1, the others the pseudo-label and its weight. Source i is pasted onto target i. `stats`:
    what the pictures are normalised by.
    """
    ones = jnp.ones(batch.source.label.shape, batch.source.image.dtype)
    source = View(batch.source.image, batch.source.label, ones)
    views = {"source": source}
    if pseudo is not None:
        weight = pseudo.weight.astype(ones.dtype)
        views["target"] = View(batch.target.image, pseudo.label, weight)
    for name, plain in (("augmented", "source"), ("augmented_target", "target")):
        if name in names:
            image = views[plain].image
            image = strong_augment(image, draws.augment[name], scalars, method.augment, stats)
            views[name] = replace(views[plain], image=image)
    if "masked" in names:
        views["masked"] = _masked(source, views["target"], draws, scalars, method, stats)
    if "mixed" in names:
        views["mixed"] = _mixed(source, views["target"], draws, scalars, method, num_classes, stats)
    return jax.lax.stop_gradient({name: views[name] for name in names})


def _mixed(
    source: View,
    target: View,
    draws: Draws,
    scalars: Scalars,
    method: Method,
    num_classes: int,
    stats: InputStats,
) -> View:
    mask = class_mask(
        source.label, draws.mix, num_classes=num_classes, classes_of=method.mix_classes_of
    )
    image = paste(mask, source.image, target.image)
    return View(
        strong_augment(image, draws.augment["mixed"], scalars, method.augment, stats),
        paste(mask, source.label, target.label),
        paste(mask, source.weight, target.weight),
    )


def _masked(
    source: View,
    target: View,
    draws: Draws,
    scalars: Scalars,
    method: Method,
    stats: InputStats,
) -> View:
    """MIC's pictures with blocks hidden: augmented targets, or plain sources and targets by halves.

    A hidden pixel is 0, the mean colour. Source: MIC sec. 3; peer: mmseg
    `uda/masking_consistency_module.py`, modes "separatetrgaug" and "separate". Hidden tokens leave
    the picture whole; peer: vfm-uda models/token_masking.py, where a draw below the ratio hides.
    """
    if method.mic.images == "both":
        half = len(source.image) // 2
        first: Any = jax.tree.map(lambda x: x[:half], (source, target))
        view: View = jax.tree.map(lambda s, t: jnp.concatenate([s, t]), *first)
    else:
        image = strong_augment(
            target.image, draws.augment["masked"], scalars, method.augment, stats
        )
        view = replace(target, image=image)
    uniforms, ratio = draws.mask["masked"], scalars["method.mic.ratio"]
    if method.mic.hide == "tokens":
        return replace(view, hide=uniforms < ratio)
    size = (view.image.shape[1], view.image.shape[2])
    hide = hidden_tokens(uniforms, ratio, size)[..., None]
    return replace(view, image=jnp.where(hide, jnp.zeros((), view.image.dtype), view.image))
