"""A pass of a step in training: encode its view, transform the features, decode, judge.

`executions.py` runs all passes of a step. Peer: mmseg `uda/dacs.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrm_jax.models.segmentor import Features, transformed
from mrm_jax.ops.mask import hidden_tokens
from mrm_jax.rngs import typed
from mrm_jax.train.state import Networks
from mrm_jax.types import Array, Draws, Frozen, Metrics, Mode, Scale, SegOutput, Tree, View
from mrm_jax.uda.methods import Pass
from mrm_jax.uda.objectives import Call, Whole

Views = Mapping[str, View]


class Parts(NamedTuple):
    """The batch of which the views at hand are one of `count` equal parts."""

    views: Views
    mask: Mapping[str, Array]
    number: int


def traced_once(segmentor: nn.Module) -> Callable[..., tuple[Any, Tree]]:
    """network(variables, x, key, arrays, method=, mode=, size=None): what the method returns for
    `x` and `arrays`, and BatchNorm moments.

    Traced once for all passes that give it equal shapes, as is its gradient, which saves four
    tenths of the tracing of a step with four passes. XLA puts it in where it is called, and
    compiles what it always did.
    """

    @partial(jax.jit, static_argnames=("method", "mode", "size"))
    def network(
        variables: Tree,
        x: Any,
        key: jax.Array,
        arrays: dict[str, Any],
        *,
        method: str,
        mode: Mode,
        size: tuple[int, int] | None = None,
    ) -> tuple[Any, Tree]:
        sized: Any = {} if size is None else {"size": size}
        applied: Any = segmentor.apply(
            variables,
            x,
            mode=mode,
            **arrays,
            **sized,
            rngs={"dropout": key},
            mutable=["moments"],
            method=method,
        )
        output, moved = applied
        return output, moved.get("moments", {})

    return network


class Shared(NamedTuple):
    """What all passes of a step read besides the parameters and their own view. segmentor:
    `traced_once` of the modules' own."""

    modules: Networks
    segmentor: Callable[..., tuple[Any, Tree]]
    batch_stats: Tree
    frozen: Frozen
    draws: Draws
    parts: Parts | None = None

    @classmethod
    def of(cls, modules: Networks, batch_stats: Tree, frozen: Frozen, draws: Draws) -> Shared:
        """Of a step, whose passes share one trace of the network."""
        return cls(modules, traced_once(modules.segmentor), batch_stats, frozen, draws)

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


def run_pass(shared: Shared, row: Pass, params: Any, view: View) -> PassResult:
    """One pass in training: its view encoded, decoded and judged."""
    return decode_and_judge(shared, row, params, view, encode(shared, row, params, view, "train"))


def encode(shared: Shared, row: Pass, params: Any, view: View, mode: Mode) -> tuple[Features, Tree]:
    """The student's features of a view, masked where it or the pass says so, and BatchNorm
    moments."""
    image, offset = seen(shared, row, view.image), shared.draws.offset.get(row.name)
    return run_encoder(shared, params, image, shared.key(row), offset, view.hide, mode)


def run_encoder(
    shared: Shared,
    params: Any,
    image: Array,
    key: jax.Array,
    offset: Array | None,
    hide: Array | None,
    mode: Mode,
) -> tuple[Features, Tree]:
    """The student's features of pictures f[B, H, W, 3], and BatchNorm moments. offset: of HRDA's
    detail crop; hide: the tokens that the encoder hides."""
    arrays = {"offset": offset}
    if hide is not None:  # which most networks do not know
        arrays["hide"] = hide
    variables = {"params": params["segmentor"], "batch_stats": shared.batch_stats}
    return shared.segmentor(variables, image, key, arrays, method="encode", mode=mode)


def seen(shared: Shared, row: Pass, image: Array) -> jax.Array:
    """What the pass encodes of pictures f[B, H, W, 3]: all, or hidden blocks at 0, the mean
    colour."""
    image = jnp.asarray(image)
    if row.transform != "blank_image":
        return image
    size = (image.shape[1], image.shape[2])
    hide = hidden_tokens(shared.draws.mask[row.name], shared.ratio(row), size)[..., None]
    return jnp.where(hide, jnp.zeros((), image.dtype), image)


def decode_and_judge(
    shared: Shared, row: Pass, params: Any, view: View, encoded: tuple[Features, Tree]
) -> PassResult:
    """What the pass makes of its encoded view: transformed, decoded, judged by all its objectives,
    weighted."""
    features, moments = encoded
    maps = transform(shared, row, params, features)
    output, more = SegOutput({}, ()), {}
    if row.decoded:
        size = (view.image.shape[1], view.image.shape[2])
        output, more = decode(shared, row, params, maps, size, "train")
    output = replace(output, features=features["context"])
    loss, metrics = judge(shared, row, params, view, output, maps["context"])
    return PassResult(loss, metrics, {**moments, **more})


def judge(
    shared: Shared,
    row: Pass,
    params: Any,
    view: View,
    output: SegOutput,
    maps: tuple[jax.Array, ...],
) -> tuple[jax.Array, Metrics]:
    """The weighted loss f[] of all objectives of the pass, and their metrics."""
    call = _call(shared, row, params, output, view, maps)
    metrics: Metrics = {}
    losses = []
    for i, objective in enumerate(row.objectives):
        loss, found = objective(call, jax.random.fold_in(shared.key(row), i))
        losses.append(loss)
        metrics |= found
    total = added_up(losses)
    if row.weight is not None:
        total = total * shared.frozen.scalars[row.weight].astype(total.dtype)
    return total, metrics


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
    offset = shared.draws.offset.get(row.name)
    return run_decoder(shared, network, features, size, shared.key(row), offset, mode)


def run_decoder(
    shared: Shared,
    network: Any,
    features: Features,
    size: tuple[int, int],
    key: jax.Array,
    offset: Array | None,
    mode: Mode,
) -> tuple[SegOutput, Tree]:
    """Logits by the parameters `network` of the segmentor, and BatchNorm moments."""
    variables = {"params": network, "batch_stats": shared.batch_stats}
    arrays = {"offset": offset}
    return shared.segmentor(variables, features, key, arrays, method="decode", mode=mode, size=size)


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


def added_up(values: list[jax.Array]) -> jax.Array:
    """The sum of at least one number."""
    return sum(values[1:], values[0])
