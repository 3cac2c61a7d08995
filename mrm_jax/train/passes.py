"""How the passes of a step are run: encode, decode, judge, and add up the gradients.

One after the other, so that only one graph needs memory (as the reference does by calling backward
after each loss; peer: mmseg `uda/dacs.py`), or with all views through the encoder at once; on the
whole batch, or on equal parts of it in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mrm_jax.models.segmentor import Features, transformed
from mrm_jax.ops.mask import hidden_tokens
from mrm_jax.rngs import typed
from mrm_jax.train.state import Networks
from mrm_jax.types import Array, Draws, Frozen, Metrics, Mode, Scale, SegOutput, Tree, View
from mrm_jax.uda.methods import Pass
from mrm_jax.uda.objectives import Call, Whole

Execution = Literal["sequential", "stacked"]
Views = Mapping[str, View]


class _Parts(NamedTuple):
    """The batch of which the views at hand are one of `count` equal parts."""

    views: Views
    mask: Mapping[str, Array]
    number: int


class Shared(NamedTuple):
    """What all passes of a step read besides the parameters and their own view."""

    modules: Networks
    batch_stats: Tree
    frozen: Frozen
    draws: Draws
    parts: _Parts | None = None

    def key(self, row: Pass) -> jax.Array:
        """The key of the pass's dropout and objectives."""
        return typed(self.draws.module[row.name])

    def ratio(self, row: Pass) -> Array:
        """The share f[] that the pass hides, in expectation."""
        which = "mim" if row.transform == "blank_image" else "mrm"
        return self.frozen.scalars[f"method.{which}.ratio"]


class PassResult(NamedTuple):
    """Of one pass: its weighted loss f[], its metrics, and the moments of its BatchNorms."""

    loss: jax.Array
    metrics: Metrics
    moments: Tree


def accumulate(
    shared: Shared,
    rows: tuple[Pass, ...],
    params: Any,
    views: Views,
    step: Array,
    execution: Execution,
    microbatches: int = 1,
    *,
    unroll: bool = True,
) -> tuple[Any, Metrics, list[Tree]]:
    """(summed gradients, metrics, BatchNorm moments of each pass) of the passes `rows`.

    params: as in `TrainState`. Both executions give equal results up to rounding. Microbatches give
    those of the whole batch, since every loss is divided by what it counts over all of it, but for
    what a part sees of its own: BatchNorm's statistics (the moments are the parts' means) and the
    draws of dropout and drop-path. unroll: without it they run in a loop, in which a CPU is slow.
    """
    run = _stacked if execution == "stacked" and len(rows) > 1 else partial(_one_by_one, step)
    if microbatches > 1:
        run = partial(_in_parts, run, step, microbatches, unroll)
    grads, outcomes = run(shared, rows, params, views)
    metrics: Metrics = {}
    for row, outcome in zip(rows, outcomes, strict=True):
        metrics |= {f"{row.name}/{name}": metric for name, metric in outcome.metrics.items()}
    metrics["total/loss"] = _sum([outcome.loss for outcome in outcomes])
    return grads, metrics, [outcome.moments for outcome in outcomes]


def _one_by_one(
    step: Array, shared: Shared, rows: tuple[Pass, ...], params: Any, views: Views
) -> tuple[Any, list[PassResult]]:
    grads = jax.tree.map(jnp.zeros_like, params)
    outcomes: list[PassResult] = []
    for row in rows:
        view = views[row.view]
        if outcomes:
            view = replace(view, image=_after(grads, view.image, step))

        def loss(given: Any, row: Pass = row, view: View = view) -> tuple[jax.Array, PassResult]:
            outcome = run_pass(shared, row, given, view)
            return outcome.loss, outcome

        (_, outcome), grad = jax.value_and_grad(loss, has_aux=True)(params)
        grads = jax.tree.map(jnp.add, grads, grad)
        outcomes.append(outcome)
    return grads, outcomes


def run_pass(shared: Shared, row: Pass, params: Any, view: View) -> PassResult:
    """One pass in training: its view encoded, decoded and judged."""
    return _judge(shared, row, params, view, encode(shared, row, params, view, "train"))


def encode(shared: Shared, row: Pass, params: Any, view: View, mode: Mode) -> tuple[Features, Tree]:
    """The student's features of a view, masked where it or the pass says so, and BatchNorm
    moments."""
    image, offset = seen(shared, row, view.image), shared.draws.offset.get(row.name)
    return _encode(shared, params, image, shared.key(row), offset, view.hide, mode)


def _encode(
    shared: Shared,
    params: Any,
    image: Array,
    key: jax.Array,
    offset: Array | None,
    hide: Array | None,
    mode: Mode,
) -> tuple[Features, Tree]:
    hidden: Any = {} if hide is None else {"hide": hide}  # which most networks do not know
    applied: Any = shared.modules.segmentor.apply(
        {"params": params["segmentor"], "batch_stats": shared.batch_stats},
        image,
        mode=mode,
        offset=offset,
        **hidden,
        rngs={"dropout": key},
        mutable=["moments"],
        method="encode",
    )
    features, moved = applied
    return features, moved.get("moments", {})


def seen(shared: Shared, row: Pass, image: Array) -> jax.Array:
    """What the pass encodes of pictures f[B, H, W, 3]: all, or hidden blocks at 0, the mean
    colour."""
    image = jnp.asarray(image)
    if row.transform != "blank_image":
        return image
    size = (image.shape[1], image.shape[2])
    hide = hidden_tokens(shared.draws.mask[row.name], shared.ratio(row), size)[..., None]
    return jnp.where(hide, jnp.zeros((), image.dtype), image)


def _judge(
    shared: Shared, row: Pass, params: Any, view: View, encoded: tuple[Features, Tree]
) -> PassResult:
    """What the pass makes of its encoded view: decoded, judged by all its objectives, weighted."""
    features, moments = encoded
    maps = transform(shared, row, params, features)
    output, more = SegOutput({}, ()), {}
    if row.decoded:
        size = (view.image.shape[1], view.image.shape[2])
        output, more = decode(shared, row, params, maps, size, "train")
    output = replace(output, features=features["context"])
    call = _call(shared, row, params, output, view, maps["context"])
    metrics: Metrics = {}
    losses = []
    for i, objective in enumerate(row.objectives):
        loss, found = objective(call, jax.random.fold_in(shared.key(row), i))
        losses.append(loss)
        metrics |= found
    total = _sum(losses)
    if row.weight is not None:
        total = total * shared.frozen.scalars[row.weight].astype(total.dtype)
    return PassResult(total, metrics, {**moments, **more})


def transform(shared: Shared, row: Pass, params: Any, features: Features) -> Features:
    """The features with those that the pass hides rebuilt, and with no gradient to the encoder
    where it trains the decoder alone."""
    rebuilder: Any = shared.modules.rebuilder  # there is one in every method with such a pass

    def rebuild(maps: tuple[jax.Array, ...], scale: Scale) -> tuple[jax.Array, ...]:
        mask = shared.draws.mask[row.name if scale == "context" else f"{row.name}/{scale}"]
        return rebuilder.apply({"params": params["rebuilder"]}, maps, mask, shared.ratio(row))

    if row.trains == "decoder":
        features = jax.lax.stop_gradient(features)
    return transformed(features, rebuild) if row.transform == "rebuild" else features


def decode(
    shared: Shared,
    row: Pass,
    params: Any,
    features: Features,
    size: tuple[int, int],
    mode: Mode,
) -> tuple[SegOutput, Tree]:
    """The student's logits from the transformed features of a picture of `size`, and BatchNorm
    moments."""
    network = params["segmentor"]
    if row.trains == "encoder":
        network = jax.lax.stop_gradient(network)  # of which only decoder and attention are run here
    applied: Any = shared.modules.segmentor.apply(
        {"params": network, "batch_stats": shared.batch_stats},
        features,
        size=size,
        mode=mode,
        offset=shared.draws.offset.get(row.name),
        rngs={"dropout": shared.key(row)},
        mutable=["moments"],
        method="decode",
    )
    output, moved = applied
    return output, moved.get("moments", {})


def _call(
    shared: Shared,
    row: Pass,
    params: Any,
    output: SegOutput,
    view: View,
    maps: tuple[jax.Array, ...],
) -> Call:
    heads: dict[str, Any] = {
        name: partial(head.apply, {"params": params["auxiliary"][name]})
        for name, head in shared.modules.auxiliary.items()
    }
    rebuilder: Any = shared.modules.rebuilder

    def hides(mask: Mapping[str, Array]) -> jax.Array | None:
        return jnp.asarray(mask[row.name]) <= shared.ratio(row) if row.transform else None

    whole = None
    if shared.parts is not None:
        views, mask, number = shared.parts
        whole = Whole(views[row.view].label, hides(mask), number)
    return Call(
        output,
        view,
        shared.frozen.scalars,
        maps=maps,
        stages=rebuilder.stages if row.transform == "rebuild" else (),
        mask=hides(shared.draws.mask),
        heads=heads,
        whole=whole,
    )


def _sum(values: list[jax.Array]) -> jax.Array:
    return sum(values[1:], values[0])


def _after(grads: Any, image: Array, step: Array) -> jax.Array:
    """`image` as it is, but not to be had before `grads` are: only one pass's graph is alive.

    Left free, XLA runs all forwards first and keeps the activations of every pass at once; its CPU
    compiler drops optimization barriers before it orders the program, so this is a true dependency.
    """
    firsts = [jax.lax.slice(g, (0,) * g.ndim, (1,) * g.ndim).sum() for g in jax.tree.leaves(grads)]
    # A step number is never negative, which the compiler cannot know.
    return jnp.where(step >= 0, image, sum(firsts[1:], firsts[0]).astype(image.dtype))


def _stacked(
    shared: Shared, rows: tuple[Pass, ...], params: Any, views: Views
) -> tuple[Any, list[PassResult]]:
    """The views are stacked on an axis before the batch's; each keeps its own BatchNorm statistics
    and draws."""
    images = jnp.stack([seen(shared, row, views[row.view].image) for row in rows])
    keys = jnp.stack([shared.key(row) for row in rows])
    offsets = [jnp.asarray(shared.draws.offset[row.name]) for row in rows if shared.draws.offset]
    hide = _hidden([views[row.view] for row in rows])

    def total(given: Any) -> tuple[jax.Array, list[PassResult]]:
        def through(
            image: jax.Array, key: jax.Array, offset: jax.Array | None, hide: jax.Array | None
        ) -> Any:
            return _encode(shared, given, image, key, offset, hide, "train")

        encoded = jax.vmap(through)(images, keys, jnp.stack(offsets) if offsets else None, hide)
        outcomes = []
        for i, row in enumerate(rows):
            mine = jax.tree.map(lambda leaf, i=i: leaf[i], encoded)
            outcomes.append(_judge(shared, row, given, views[row.view], mine))
        return _sum([outcome.loss for outcome in outcomes]), outcomes

    (_, outcomes), grads = jax.value_and_grad(total, has_aux=True)(params)
    return grads, outcomes


def _hidden(views: list[View]) -> jax.Array | None:
    """What the encoder hides of each view, bool[views, B, rows, columns]; None: no view says."""
    given = [jnp.asarray(view.hide) for view in views if view.hide is not None]
    if not given:
        return None
    nothing = jnp.zeros_like(given[0])
    return jnp.stack([nothing if view.hide is None else view.hide for view in views])


def _in_parts(
    run: Callable[..., tuple[Any, list[PassResult]]],
    step: Array,
    parts: int,
    unroll: bool,
    shared: Shared,
    rows: tuple[Pass, ...],
    params: Any,
    views: Views,
) -> tuple[Any, list[PassResult]]:
    """`run` of every part, averaged. A part takes every so many-th sample, so that each device
    keeps working on what it holds."""
    draws = shared.draws

    def split(leaf: Array) -> jax.Array:
        leaf = jnp.asarray(leaf)
        return leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1)

    def own_key(key: Array, number: jax.Array) -> jax.Array:
        return jax.random.key_data(jax.random.fold_in(typed(key), number))

    def one(total: Any, part: tuple[Any, jax.Array]) -> tuple[Any, list[PassResult]]:
        (mine, mask), number = part
        mine = {n: replace(v, image=_after(total, v.image, step)) for n, v in mine.items()}
        module = {name: own_key(key, number) for name, key in draws.module.items()}
        drawn = replace(draws, mask=mask, module=module)
        own = shared._replace(draws=drawn, parts=_Parts(views, draws.mask, parts))
        grads, outcomes = run(own, rows, params, mine)
        return jax.tree.map(jnp.add, total, grads), outcomes

    each = jax.tree.map(split, ({row.view: views[row.view] for row in rows}, draws.mask))
    start = jax.tree.map(jnp.zeros_like, params)
    given = (each, jnp.arange(parts))
    total, found = jax.lax.scan(one, start, given, unroll=parts if unroll else 1)
    return jax.tree.map(lambda leaf: leaf / parts, total), jax.tree.map(_mean, found)


def _mean(leaf: jax.Array) -> jax.Array:
    return leaf.mean(0)
