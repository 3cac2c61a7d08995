"""How the passes of a step are run, and their gradients added up.

One after the other, so that only one graph needs memory (as the reference does by calling backward
after each loss; peer: mmseg `uda/dacs.py`); as turns of a loop, so that one network is compiled; or
with all views through the encoder at once. On the whole batch, or on equal parts of it in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mrm_jax.ops.order import after
from mrm_jax.rngs import typed
from mrm_jax.train.passes import (
    Parts,
    PassResult,
    Shared,
    Views,
    added_up,
    decode_and_judge,
    judge,
    run_decoder,
    run_encoder,
    run_pass,
    seen,
    transform,
)
from mrm_jax.types import Array, Metrics, SegOutput, Tree, View
from mrm_jax.uda.methods import Pass

Execution = Literal["sequential", "looped", "stacked"]


def accumulate(
    shared: Shared,
    rows: tuple[Pass, ...],
    params: Any,
    views: Views,
    execution: Execution,
    microbatches: int = 1,
    *,
    unroll: bool = True,
) -> tuple[Any, Metrics, list[Tree]]:
    """(summed gradients, metrics, BatchNorm moments of each pass) of the passes `rows`.

    params: as in `TrainState`. All executions give equal results up to rounding. Microbatches give
    those of the whole batch, since every loss is divided by what it counts over all of it, but for
    what a part sees of its own: BatchNorm's statistics (the moments are the parts' means) and the
    draws of dropout and drop-path. unroll: whether parts follow each other or are turns of a loop.
    """
    run = {"sequential": _one_by_one, "looped": _looped, "stacked": _stacked}[execution]
    if len(rows) == 1:
        run = _one_by_one
    if microbatches > 1:
        run = partial(_in_parts, run, microbatches, unroll)
    grads, outcomes = run(shared, rows, params, views)
    metrics: Metrics = {}
    for row, outcome in zip(rows, outcomes, strict=True):
        metrics |= {f"{row.name}/{name}": metric for name, metric in outcome.metrics.items()}
    metrics["total/loss"] = added_up([outcome.loss for outcome in outcomes])
    return grads, metrics, [outcome.moments for outcome in outcomes]


def _one_by_one(
    shared: Shared, rows: tuple[Pass, ...], params: Any, views: Views
) -> tuple[Any, list[PassResult]]:
    grads = jax.tree.map(jnp.zeros_like, params)
    outcomes: list[PassResult] = []
    for row in rows:
        view = views[row.view]
        if outcomes:
            view = replace(view, image=_after(grads, view.image))

        def loss(given: Any, row: Pass = row, view: View = view) -> tuple[jax.Array, PassResult]:
            outcome = run_pass(shared, row, given, view)
            return outcome.loss, outcome

        (_, outcome), grad = jax.value_and_grad(loss, has_aux=True)(params)
        grads = jax.tree.map(jnp.add, grads, grad)
        outcomes.append(outcome)
    return grads, outcomes


def _after(grads: Any, image: Array) -> jax.Array:
    """`image`, but not to be had before `grads` are: only one pass's graph is alive. Left free, XLA
    runs all forwards first and keeps the activations of every pass at once."""
    firsts = [jax.lax.slice(g, (0,) * g.ndim, (1,) * g.ndim).sum() for g in jax.tree.leaves(grads)]
    return after(jnp.asarray(image), sum(firsts[1:], firsts[0]))


class _Inputs(NamedTuple):
    """What the encoder gets in each of several passes, stacked; None: of no pass."""

    image: jax.Array
    key: jax.Array
    offset: jax.Array | None
    hide: jax.Array | None


def _inputs(shared: Shared, rows: Sequence[Pass], views: Views) -> _Inputs:
    offsets = [jnp.asarray(shared.draws.offset[row.name]) for row in rows if shared.draws.offset]
    return _Inputs(
        jnp.stack([seen(shared, row, views[row.view].image) for row in rows]),
        jnp.stack([shared.key(row) for row in rows]),
        jnp.stack(offsets) if offsets else None,
        _hidden([views[row.view] for row in rows]),
    )


def _stacked(
    shared: Shared, rows: tuple[Pass, ...], params: Any, views: Views
) -> tuple[Any, list[PassResult]]:
    """The views are stacked on an axis before the batch's; each keeps its own BatchNorm statistics
    and draws."""

    def total(given: Any) -> tuple[jax.Array, list[PassResult]]:
        def through(inputs: _Inputs) -> Any:
            return run_encoder(shared, given, *inputs, "train")

        encoded = jax.vmap(through)(_inputs(shared, rows, views))
        outcomes = []
        for i, row in enumerate(rows):
            mine = jax.tree.map(itemgetter(i), encoded)
            outcomes.append(decode_and_judge(shared, row, given, views[row.view], mine))
        return added_up([outcome.loss for outcome in outcomes]), outcomes

    (_, outcomes), grads = jax.value_and_grad(total, has_aux=True)(params)
    return grads, outcomes


def _looped(
    shared: Shared, rows: tuple[Pass, ...], params: Any, views: Views
) -> tuple[Any, list[PassResult]]:
    """The rows that decode are turns of one loop, so encoder and decoder are compiled once for all
    of them. A turn chooses its row's transform and losses by its number."""
    turns = [row for row in rows if row.decoded]
    others = tuple(row for row in rows if not row.decoded)
    grads, apart = _one_by_one(shared, others, params, views)
    heads = {name: params[name] for name in ("auxiliary",) if name in params}

    def turn(total: Any, given: tuple[jax.Array, _Inputs]) -> tuple[Any, Any]:
        number, inputs = given
        through = partial(_through, shared, turns, number, inputs)
        maps, pull, (output, moments) = jax.vjp(through, params, has_aux=True)
        judges = [partial(_slopes, shared, turns, i, views, output) for i in range(len(turns))]
        losses, of_maps, of_heads = jax.lax.switch(number, judges, maps, heads)
        (grad,) = pull(of_maps)
        total = jax.tree.map(jnp.add, total, grad)
        added = {name: jax.tree.map(jnp.add, total[name], of_heads[name]) for name in heads}
        return total | added, (losses, moments)

    given = (jnp.arange(len(turns)), _inputs(shared, turns, views))
    grads, (losses, moments) = jax.lax.scan(turn, grads, given)
    looped = [
        PassResult(*jax.tree.map(itemgetter(i), (*losses[i], moments))) for i in range(len(turns))
    ]
    return grads, [(looped if row.decoded else apart).pop(0) for row in rows]


class _Maps(NamedTuple):
    """What losses have slopes to: logits, and the context's features before and after the
    transform."""

    logits: dict[str, jax.Array]
    features: tuple[jax.Array, ...]
    transformed: tuple[jax.Array, ...]


def _through(
    shared: Shared, turns: Sequence[Pass], number: jax.Array, inputs: _Inputs, params: Any
) -> tuple[_Maps, tuple[SegOutput, Tree]]:
    """The maps of row `number`; the output without them, and BatchNorm moments."""
    features, moments = run_encoder(shared, params, *inputs, "train")
    changing = [row for row in turns if row.transform == "rebuild" or row.trains == "decoder"]
    maps = features
    if changing:
        which = [changing.index(row) + 1 if row in changing else 0 for row in turns]
        forms = [partial(transform, shared, row) for row in changing]
        maps = jax.lax.switch(
            jnp.asarray(which)[number], [lambda _, maps: maps, *forms], params, features
        )
    network = params["segmentor"]
    fixed = [row.trains == "encoder" for row in turns]
    if any(fixed):
        network = jax.tree.map(
            lambda leaf: jnp.where(jnp.asarray(fixed)[number], jax.lax.stop_gradient(leaf), leaf),
            network,
        )
    size = (inputs.image.shape[1], inputs.image.shape[2])
    output, more = run_decoder(shared, network, maps, size, inputs.key, inputs.offset, "train")
    found = _Maps(output.logits, features["context"], maps["context"])
    return found, (replace(output, logits={}, features=()), {**moments, **more})


def _slopes(
    shared: Shared,
    turns: Sequence[Pass],
    number: int,
    views: Views,
    output: SegOutput,
    maps: _Maps,
    heads: Any,
) -> tuple[list[tuple[jax.Array, Metrics]], _Maps, Any]:
    """Loss and metrics of row `number`, and the slopes of the loss to its maps and to the heads.

    The other rows' are 0: all branches of a switch return the same. A loss is differentiated inside
    its branch, since a switch that is differentiated keeps what any of its branches needs.
    """

    def loss(row: Pass, maps: _Maps, heads: Any) -> tuple[jax.Array, Metrics]:
        found = replace(output, logits=maps.logits, features=maps.features)
        return judge(shared, row, heads, views[row.view], found, maps.transformed)

    losses = []
    for row in turns:
        shapes = jax.eval_shape(partial(loss, row), maps, heads)
        losses.append(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))
    mine = partial(loss, turns[number])
    losses[number], slopes = jax.value_and_grad(mine, (0, 1), has_aux=True)(maps, heads)
    return losses, *slopes


def _hidden(views: list[View]) -> jax.Array | None:
    """What the encoder hides of each view, bool[views, B, rows, columns]; None: no view says."""
    given = [jnp.asarray(view.hide) for view in views if view.hide is not None]
    if not given:
        return None
    nothing = jnp.zeros_like(given[0])
    return jnp.stack([nothing if view.hide is None else view.hide for view in views])


def _in_parts(
    run: Callable[..., tuple[Any, list[PassResult]]],
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
        mine = {n: replace(v, image=_after(total, v.image)) for n, v in mine.items()}
        module = {name: own_key(key, number) for name, key in draws.module.items()}
        drawn = replace(draws, mask=mask, module=module)
        own = shared._replace(draws=drawn, parts=Parts(views, draws.mask, parts))
        grads, outcomes = run(own, rows, params, mine)
        return jax.tree.map(jnp.add, total, grads), outcomes

    each = jax.tree.map(split, ({row.view: views[row.view] for row in rows}, draws.mask))
    start = jax.tree.map(jnp.zeros_like, params)
    given = (each, jnp.arange(parts))
    total, found = jax.lax.scan(one, start, given, unroll=parts if unroll else 1)
    return jax.tree.map(lambda leaf: leaf / parts, total), jax.tree.map(_mean, found)


def _mean(leaf: jax.Array) -> jax.Array:
    return leaf.mean(0)
