"""What a run holds between steps: networks, their fresh state, and the numbers that are traced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrm_jax import options
from mrm_jax.config import Config, detail_crop
from mrm_jax.models.build import build_auxiliary, build_rebuilder, build_segmentor, feature_spec
from mrm_jax.rngs import stream, typed
from mrm_jax.train.optimizer import adam
from mrm_jax.types import Array, Frozen, Scalars, TrainState, Tree
from mrm_jax.uda.methods import has_teacher


class Networks(NamedTuple):
    """The modules of a run; `rebuilder` is None where nothing is rebuilt, `auxiliary` are the heads
    on the last map that exist for training alone, by name."""

    segmentor: nn.Module
    rebuilder: nn.Module | None
    auxiliary: Mapping[str, nn.Module] = MappingProxyType({})


def build_networks(config: Config) -> Networks:
    """The modules that `config` describes."""
    model, classes = config.model, len(config.data.classes.names)
    segmentor = build_segmentor(model, classes, detail_crop(config))
    spec = feature_spec(model.encoder)
    auxiliary = build_auxiliary(config.method, spec.strides[-1], classes)
    if not config.method.mrm.enabled:
        return Networks(segmentor, None, auxiliary)
    rebuilder = build_rebuilder(
        config.method.mrm,
        spec,
        model.decoder.kind,
        detail_crop(config) if model.multires.enabled else config.data.crop,
        unroll=model.unroll,
        remat=model.remat,
        attention=model.attention,
    )
    return Networks(segmentor, rebuilder, auxiliary)


def initial_networks(config: Config) -> Networks:
    """Those of `build_networks` with the blocks of a stage in a loop, which draws the same numbers:
    a MiT-B5's parameters in 20 s of one core, 68 s with 52 blocks one after the other."""
    looped = replace(config, model=replace(config.model, unroll=False))
    return build_networks(looped)


def init_state(config: Config, modules: Networks, key: Array) -> TrainState:
    """A fresh state; a pure function of `key`, u32[2] key data or a typed key. No two leaves share
    a buffer under jit.

    The teacher starts as the student's copy and is empty ({}) for a method without one.
    `jax.eval_shape` of this function gives the abstract state.
    """
    root = typed(key)
    image = jnp.zeros((1, *config.data.crop, 3))
    keys = {"params": stream(root, "init/segmentor", 0)}
    corner = jnp.zeros(2, jnp.int32)
    variables: Any = modules.segmentor.init(keys, image, mode="eval", offset=corner)
    params: dict[str, Any] = {"segmentor": variables["params"], "rebuilder": {}}
    stats = variables.get("batch_stats", {})
    features: Any = ()
    if modules.rebuilder is not None or modules.auxiliary:
        seen: Any = jax.eval_shape(partial(modules.segmentor.apply, mode="eval"), variables, image)
        features = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), seen.features)
    if modules.rebuilder is not None:
        tokens = jnp.zeros((1, *config.method.mrm.grid))
        fresh: Any = modules.rebuilder.init(
            stream(root, "init/rebuilder", 0), features, tokens, 0.0
        )
        params["rebuilder"] = fresh.get("params", {})
    for name, head in modules.auxiliary.items():
        fresh = head.init(stream(root, f"init/{name}", 0), features[-1])
        params.setdefault("auxiliary", {})[name] = fresh["params"]
    teacher = has_teacher(config.method)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=stats,
        teacher_params=_copy(params["segmentor"], config) if teacher else {},
        teacher_batch_stats=jax.tree.map(jnp.copy, stats) if teacher else {},
        opt_state=adam(config.optimizer).init(params),
        root_key=jax.random.key_data(root),
    )


def _copy(params: Tree, config: Config) -> Tree:
    """The teacher's first parameters; kept narrower only where that is asked for."""
    if config.method.teacher_dtype == "float32":
        return jax.tree.map(jnp.copy, params)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)


def scalars(config: Config) -> Scalars:
    """The traced numbers of a run, in JAX's default float type."""
    return jax.tree.map(lambda number: jnp.asarray(number, float), options.numbers(config))


def frozen(config: Config, encoder: Tree | None = None) -> Frozen:
    """What the step reads and never changes. encoder: {"params", "batch_stats"} of the one that the
    feature distance compares with."""
    encoder = encoder or {}
    return Frozen(scalars(config), encoder.get("params", {}), encoder.get("batch_stats", {}))
