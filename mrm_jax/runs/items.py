"""A training state as the items of a checkpoint, and whether a checkpoint's items are those of a
state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import serialization

from mrm_jax.errors import RunError
from mrm_jax.rngs import typed
from mrm_jax.runs.digest import differing, signatures
from mrm_jax.runs.saved import DamagedError, digests_of
from mrm_jax.types import TrainState


def split(state: TrainState) -> dict[str, Any]:
    """The state as plain nested dicts, one an item; items without arrays are left out."""
    tree = serialization.to_state_dict(replace(state, root_key=_key_data(state.root_key)))
    items = {
        "student": {"params": tree["params"]["segmentor"], "batch_stats": tree["batch_stats"]},
        "teacher": {"params": tree["teacher_params"], "batch_stats": tree["teacher_batch_stats"]},
        "rebuilder": tree["params"].get("rebuilder", {}),
        "auxiliary": tree["params"].get("auxiliary", {}),
        "training": {name: tree[name] for name in ("step", "opt_state", "root_key")},
    }
    return {name: item for name, item in items.items() if jax.tree.leaves(item)}


def join(items: Mapping[str, Any], like: TrainState) -> TrainState:
    """The inverse of `split`; what was left out is empty in `like` too."""
    empty: dict[str, Any] = {"params": {}, "batch_stats": {}}
    student, teacher = items["student"], items.get("teacher", empty)
    extras = {k: items.get(k, {}) for k in ("rebuilder", "auxiliary") if k in like.params}
    tree = {
        "params": {"segmentor": student["params"], **extras},
        "batch_stats": student["batch_stats"],
        "teacher_params": teacher["params"],
        "teacher_batch_stats": teacher["batch_stats"],
        **items["training"],
    }
    state: Any = serialization.from_state_dict(like, tree)
    if jnp.issubdtype(like.root_key.dtype, jax.dtypes.prng_key):
        state = replace(state, root_key=typed(state.root_key))
    return state


def _key_data(key: Any) -> Any:
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if isinstance(key, jax.ShapeDtypeStruct):
        shape = jax.eval_shape(jax.random.key_data, key)
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=key.sharding)
    return jax.random.key_data(key)


def abstract_leaf(leaf: Any) -> jax.ShapeDtypeStruct:
    """A leaf's shape, type and place without its content."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def check_items(folder: Path, facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises RunError where a checkpoint lacks an item that a state has, or, as far as its digests
    tell, has arrays of other names, types or shapes."""
    for item, tree in wanted.items():
        if not (folder / item).is_dir():
            if item == "student":
                raise DamagedError(folder, f"{item} is not there")
            raise RunError(
                f"The checkpoint {folder} evaluates and predicts, but no run goes on from it: its "
                f"folder '{item}' is not there.",
                f"Put it back, or move {folder} away to go on from the one before it.",
            )
        if "digests" not in facts:
            continue
        ours = signatures(tree)
        theirs = {n: text.partition(" ")[0] for n, text in digests_of(facts, item).items()}
        path = differing(theirs, ours)
        if path is not None:
            raise RunError(
                f"The checkpoint {folder} is of another state than this run's: {item}/{path} is "
                f"{theirs.get(path, 'not there')} in it and {ours.get(path, 'not there')} here. "
                "Go on with the version of mrm_jax that wrote it, or train again in a new folder."
            )
