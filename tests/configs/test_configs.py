"""Every config that ships can be trained as far as shapes tell, at full size, uncomputed."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mrm_jax import sharding
from mrm_jax.main import load_config
from mrm_jax.train import step
from mrm_jax.types import Batch, Labelled, Unlabelled

# These differ from GTA5 to Cityscapes in data alone.
SAME_NETWORKS = ("synthia_to_cityscapes", "cityscapes_to_acdc", "cityscapes_to_dark_zurich")
CONFIGS = [
    path
    for path in sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
    if path.stem not in SAME_NETWORKS
]


def _step(path, *overrides):
    """The abstract state before and after a step, and its metrics."""
    # Loops have the same shapes and are traced in a fraction of the time.
    config = load_config([f"--config={path}", "--config.model.unroll=false", *overrides])
    assert config is not None
    shape = (config.train.batch, *config.data.crop)
    picture = jax.ShapeDtypeStruct((*shape, 3), jnp.uint8)
    plane = jax.ShapeDtypeStruct(shape, jnp.uint8)
    index = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    batch = Batch(Labelled(picture, plane), Unlabelled(picture, plane), index)
    program = step.build_step(config)
    state = jax.eval_shape(program.init, jax.ShapeDtypeStruct((2,), jnp.uint32))
    # On the mesh of a run the forms of other platforms are not traced.
    with jax.sharding.use_abstract_mesh(sharding.mesh(1).abstract_mesh):
        after = jax.eval_shape(program.train_step, state, program.frozen(config), batch)
    return state, *after


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_step_of_the_config_keeps_the_shapes_of_its_state(path):
    state, after, metrics = _step(path)
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(
        lambda leaf: leaf.shape, state
    )
    assert {"source/ce", "mixed/ce", "reconstructed/ce", "total/loss"} <= set(metrics)


def test_a_teacher_in_bfloat16_and_parts_of_a_batch_keep_shapes_and_dtypes():
    path = next(path for path in CONFIGS if path.stem == "tiny")
    changes = ("method.teacher_dtype=bfloat16", "train.batch=4", "train.microbatches=2")
    state, after, _ = _step(path, *(f"--config.{change}" for change in changes))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(state.teacher_params)} == {jnp.dtype("bfloat16")}
