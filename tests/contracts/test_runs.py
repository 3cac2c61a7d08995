"""Whole runs, uncomputed: every config with every recipe has networks, and the step of every family
of networks keeps its state at full size."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mrm_jax import recipes, sharding
from mrm_jax.config import Classes, Config, Data, Model
from mrm_jax.main import load_config
from mrm_jax.models.multires import MultiResSegmentor
from mrm_jax.models.segmentor import Segmentor
from mrm_jax.recipes import RECIPES
from mrm_jax.train import step
from mrm_jax.types import Batch, Labelled, Unlabelled

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
BATCH, CLASSES = 2, 19
NAMES = tuple(f"class{i}" for i in range(CLASSES))
BASE = Config(data=Data(classes=Classes(NAMES, ((0, 0, 0),) * CLASSES)), model=Model(unroll=False))
FAMILIES = {
    "daformer": "encoder=mit_b5,decoder=daformer",
    "deeplabv2": "encoder=resnet101,decoder=deeplabv2",
    "deeplabv3plus": "encoder=resnet101,decoder=deeplabv3plus",
    "efficientnet_lite": "encoder=efficientnet_lite0,decoder=daformer",
    "hrda_daformer": "encoder=mit_b5,decoder=daformer,hrda=true,crop=1024",
    "hrda_deeplabv2": "encoder=resnet101,decoder=deeplabv2,hrda=true,crop=1024",
}
# Each family and each method with MRM and without.
RUNS = (
    ("dacs", True, "deeplabv2"),
    ("dacs", True, "deeplabv3plus"),
    ("daformer", True, "daformer"),
    ("hrda", True, "hrda_daformer"),
    ("mic", True, "hrda_deeplabv2"),
    ("daformer", True, "efficientnet_lite"),
    ("dacs", False, "deeplabv2"),
    ("daformer", False, "deeplabv3plus"),
    ("hrda", False, "hrda_deeplabv2"),
    ("mic", False, "hrda_daformer"),
    ("source_only", False, "daformer"),
)
PASSES = {"source_only": ("source",), "mic": ("source", "mixed", "masked")}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_with_every_recipe_is_built(path, recipe):
    labels = "--config.data.target.labels=labels"  # the oracle reads them, no other method does
    weights = "--config.model.encoder.weights=mit.pth"  # where DAFormer's frozen encoder is from
    made = load_config([f"--config={path}:{recipe}", labels, weights])
    assert made is not None
    modules = step.build_step(made).networks
    assert (modules.rebuilder is not None) == made.method.mrm.enabled
    assert isinstance(
        modules.segmentor, MultiResSegmentor if made.model.multires.enabled else Segmentor
    )


def abstract_batch(crop):
    picture = jax.ShapeDtypeStruct((BATCH, *crop, 3), jnp.uint8)
    plane = jax.ShapeDtypeStruct((BATCH, *crop), jnp.uint8)
    index = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    return Batch(Labelled(picture, plane), Unlabelled(picture, plane), index)


def kinds(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize(("method", "mrm", "family"), RUNS)
def test_a_full_size_step_keeps_its_state_and_names_its_metrics(method, mrm, family):
    made = recipes.apply(BASE, f"{method},mrm={str(mrm).lower()},{FAMILIES[family]}")
    program = step.build_step(made)
    state = jax.eval_shape(program.init, jax.ShapeDtypeStruct((2,), jnp.uint32))
    batch = abstract_batch(made.data.crop)
    student = {"params": state.params["segmentor"], "batch_stats": state.batch_stats}
    encoder = {name: tree.get("encoder", {}) for name, tree in student.items()}
    distance = method in ("daformer", "hrda", "mic")
    frozen = program.frozen(made, encoder if distance else None)
    # On the mesh of a run the forms of other platforms are not traced.
    with jax.sharding.use_abstract_mesh(sharding.mesh(1).abstract_mesh):
        after, metrics = jax.eval_shape(program.train_step, state, frozen, batch)
    assert kinds(after) == kinds(state)
    hrda, taught = "hrda" in family, method != "source_only"
    parts = ["encoder", "decoder", *["rebuilder"] * mrm, *["attention"] * hrda]
    passes = [*PASSES.get(method, ("source", "mixed")), *["reconstructed"] * mrm]
    expected = {
        *(
            f"{name}/{ce}"
            for name in passes
            for ce in (("ce_fused", "ce_detail") if hrda else ("ce",))
        ),
        *(f"grad_norm/{part}" for part in parts),
        *(("teacher/class_share", "teacher/confident_share") if taught else ()),
        *(("source/feature_distance",) if distance else ()),
        *("total/loss", "learning_rate", "finite"),
    }
    assert metrics.keys() == expected
    found = {name: (metric.shape, metric.dtype) for name, metric in metrics.items()}
    assert found.pop("finite") == ((), jnp.bool_)
    if taught:
        assert found.pop("teacher/class_share") == ((CLASSES,), jnp.float32)
    assert set(found.values()) == {((), jnp.dtype("float32"))}
    assert bool(state.params["rebuilder"]) == mrm
    assert bool(state.teacher_params) == taught
    assert ("attention" in state.params["segmentor"]) == hrda
