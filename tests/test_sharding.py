"""Where arrays live."""

import gc
import importlib.util
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from refusals import refused

from mrm_jax import sharding
from mrm_jax.config import MRM, Augment, Config, Mesh, Method, Model, Train
from mrm_jax.errors import UsageError
from mrm_jax.machine import chips, plan
from mrm_jax.models.build import build_encoder
from mrm_jax.registry import ENCODER_KINDS
from mrm_jax.train.step import build_step
from mrm_jax.types import Batch, Jitter, Labelled, Unlabelled
from mrm_jax.uda.views import strong_augment
from mrm_jax.variants import ENCODERS


def test_every_leaf_of_the_real_state_has_a_rule_and_is_replicated():
    base = Config(method=Method(mrm=MRM(enabled=True)))
    state = jax.eval_shape(build_step(base).init, np.zeros(2, np.uint32))
    found = sharding.of_state(state, sharding.mesh(1))
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert {leaf.spec for leaf in jax.tree.leaves(found)} == {PartitionSpec()}


def test_learnt_leaves_are_split_and_one_that_cannot_be_is_named():
    if jax.device_count() < 2:
        pytest.skip("needs two devices; tests/conftest.py asks XLA for two unless XLA_FLAGS is set")
    mesh = sharding.mesh(2, fsdp=2)
    fitting = {"params": {"a": {"kernel": np.zeros((3, 4)), "bias": np.zeros(4)}}}
    found = sharding.of_state(fitting, mesh)["params"]["a"]
    assert found["kernel"].spec == PartitionSpec(None, "fsdp")
    assert found["bias"].spec == PartitionSpec()
    odd = {"params": {"a": {"kernel": np.zeros((4, 3))}}}
    with pytest.raises(UsageError, match=r"fsdp is 2, .* axis -1 of params/a/kernel, of shape"):
        sharding.of_state(odd, mesh)
    with refused("config.mesh.fsdp", 3, way_out="one of 1, 2"):
        sharding.mesh(2, fsdp=3)
    with refused("config.mesh.fsdp", 2, way_out="use 1."):
        sharding.mesh(1, fsdp=2)


@pytest.mark.parametrize("name", [n for n in ENCODERS if n.startswith(("eff", "mob", "pvt"))])
def test_every_kernel_of_a_pretrained_encoder_is_split_over_sixteen_devices(name):
    """Its blocks have as few as 16 outputs, so the narrow kernels are split along their inputs."""
    module = build_encoder(Model(encoder=ENCODERS[name], unroll=False))
    picture = np.zeros((1, 64, 64, 3), np.float32)
    encoder = jax.eval_shape(lambda k: module.init(k, picture, "eval"), jax.random.key(0))
    mesh = AbstractMesh((1, 16), ("data", "fsdp"))
    state = {"params": {"segmentor": {"encoder": encoder["params"]}}}
    found = jax.tree_util.tree_leaves_with_path(sharding.of_state(state, mesh))
    assert len(found) == len(jax.tree.leaves(encoder["params"]))
    for path, leaf in found:
        assert ("fsdp" in leaf.spec) == (path[-1].key == "kernel"), path


def test_a_leaf_without_a_rule_is_named():
    with pytest.raises(ValueError, match="momentum/w"):
        sharding.of_state({"momentum": {"w": np.zeros(2)}}, sharding.mesh(1))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="an option of XLA's CPU compiler")
def test_a_step_overwrites_the_old_moments_where_they_lie():
    """Of the parameters' size only the gradient is held beside the state."""
    leaf = {"a": {"kernel": jax.ShapeDtypeStruct((256, 1024), np.float32)}}
    state = {"params": leaf, "opt_state": {"mu": leaf, "nu": leaf}}

    def step(state, frozen, x):
        params, moments = state["params"], state["opt_state"]
        grads = jax.grad(lambda p: ((x @ p["a"]["kernel"]) ** 2).sum())(params)
        moves, moments = optax.scale_by_adam().update(
            grads, optax.ScaleByAdamState(np.int32(0), moments["mu"], moments["nu"])
        )
        new = optax.apply_updates(params, jax.tree.map(lambda move: -frozen * move, moves))
        new = {"params": new, "opt_state": {"mu": moments.mu, "nu": moments.nu}}
        return jax.tree.map(lambda ours, old: jax.numpy.where(frozen > 0, ours, old), new, state), 0

    given = jax.ShapeDtypeStruct((), np.float32), jax.ShapeDtypeStruct((8, 256), np.float32)
    compiled = sharding.jit_step(step, state, sharding.mesh(1)).lower(state, *given).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * 4 * 256 * 1024


def test_the_program_that_makes_a_first_state_is_not_kept():
    mesh, key = sharding.mesh(1), jax.random.key_data(jax.random.key(0))
    client = mesh.devices.flat[0].client

    def make(key):
        kernel = jax.random.normal(jax.random.wrap_key_data(key), (4, 4))
        return {"params": {"dense": {"kernel": kernel}}}

    def programs():
        gc.collect()
        return len(client.live_executables())

    before = programs()
    assert sharding.init_on_mesh(make, key, mesh)["params"]["dense"]["kernel"].shape == (4, 4)
    assert programs() == before
    jax.jit(make)(key)
    assert programs() > before  # it would be seen


def test_the_batch_is_spread_in_contiguous_blocks():
    if jax.device_count() < 2:
        pytest.skip("needs two devices; tests/conftest.py asks XLA for two unless XLA_FLAGS is set")
    image, label = np.zeros((4, 2, 2, 3), np.uint8), np.zeros((4, 2, 2), np.uint8)
    index = np.arange(4, dtype=np.int32)
    batch = Batch(Labelled(image, label), Unlabelled(image, label), index)
    put = sharding.put_batch(batch, sharding.mesh(2))
    parts = [np.asarray(shard.data) for shard in put.index.addressable_shards]
    np.testing.assert_array_equal(parts, [[0, 1], [2, 3]])
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), batch, put))


def augmented(mesh, rows):
    """What strong augmentation, two conditionals in a row, is given and its jitted form."""
    copies, stats = sharding.replicated(mesh), ENCODER_KINDS[Model().encoder.kind].input
    image = jax.ShapeDtypeStruct((2, 16, 32, 3), np.float32, sharding=rows)
    shapes = {"jitter_u": (), "blur_u": (), "strength": (2, 4), "order": (2, 4), "sigma_u": (2,)}
    draws = {
        name: jax.ShapeDtypeStruct(
            shape, np.int32 if name == "order" else np.float32, sharding=copies
        )
        for name, shape in shapes.items()
    }
    names = ("jitter", "blur")
    scalars = {f"method.augment.{name}_probability": 0.5 for name in names}

    def augment(image, draws):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # as in `jit_step`
            return strong_augment(image, Jitter(**draws), scalars, Augment(), stats)

    return jax.jit(augment, out_shardings=rows), (image, draws)


def test_a_picture_stays_on_its_device_between_two_conditionals():
    if jax.device_count() < 2:
        pytest.skip("needs two devices; tests/conftest.py asks XLA for two unless XLA_FLAGS is set")
    mesh = sharding.mesh(2)
    augment, shapes = augmented(mesh, sharding.over_batch(mesh))
    conditional, constraint = "stablehlo.case", "sdy.sharding_constraint"
    lines = [
        word
        for line in augment.lower(*shapes).as_text().splitlines()
        for word in (conditional, constraint)
        if word in line
    ]
    assert lines == [conditional, constraint, conditional]
    image = np.ones((2, 3), np.float32)
    assert sharding.by_picture(image) is image  # outside of a step


@pytest.mark.skipif(
    not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)),
    reason="needs JAX's CUDA plugin, which compiles for GPUs that are not there",
)
def test_augmentation_on_gpus_moves_no_pictures_between_them(monkeypatch):
    where = chips.parse_topology("h100:2")
    mesh = plan._mesh(Config(train=Train(batch=2)), where, True, print)

    def gathers():
        augment, shapes = augmented(mesh, sharding.over_batch(mesh))
        compiled = augment.lower(*shapes).compile(compiler_options=plan._OPTIONS["gpu"])
        return plan.collectives(compiled.as_text())

    assert gathers() == {}
    monkeypatch.setattr(sharding, "by_picture", lambda x: x)
    if not gathers():
        pytest.fail("XLA needs no help any more: take by_picture away")


def test_too_many_devices_are_refused_with_the_number_there_is():
    count = jax.device_count()
    with refused("config.mesh.devices", count + 1, way_out=f"1 to {count}"):
        sharding.mesh(count + 1)


@pytest.mark.parametrize(
    ("batch", "parts", "devices", "fsdp", "ways"),
    [
        (3, 1, 2, 1, "batch is 3, which 2 .* Use config.train.batch=2 or 4, or .*devices=1."),
        (1, 1, 4, 1, "batch is 1, which 4 .* Use config.train.batch=4, or config.mesh.devices=1."),
        (
            *(8, 4, 4, 1),
            r"batch is 8 in 4 parts \(config.train.microbatches\), which 4 devices .* Use "
            "config.train.microbatches=2, or config.train.batch=16, or config.mesh.devices=2.",
        ),
        (24, 2, 8, 1, "microbatches=1 or 3, or config.train.batch=16 or 32, or .*devices=6."),
        (12, 4, 4, 2, "microbatches=3, or config.train.batch=16.$"),
        (12, 3, 8, 4, "Use config.train.batch=24, or config.mesh.devices=4."),
        (6, 2, 4, 1, "Use config.train.batch=8, or config.mesh.devices=3."),
    ],
)
def test_parts_that_devices_cannot_share_are_refused_with_the_nearest_numbers_that_fit(
    batch, parts, devices, fsdp, ways
):
    train, mesh = Train(batch=batch, microbatches=parts), Mesh(fsdp=fsdp)
    with pytest.raises(UsageError, match=ways):
        sharding.imagined_mesh(Config(train=train, mesh=mesh), devices, "tpu")


def test_a_run_on_devices_that_are_there_is_refused_alike():
    if jax.device_count() < 2:
        pytest.skip("needs two devices; tests/conftest.py asks XLA for two unless XLA_FLAGS is set")
    config = Config(train=Train(batch=2, microbatches=2), mesh=Mesh(devices=2))
    with refused("config.train.batch", 2, way_out="config.mesh.devices=1"):
        sharding.run_mesh(config)
    assert sharding.run_mesh(replace(config, train=Train(batch=4, microbatches=2))).size == 2


def test_of_one_device_no_range_is_offered(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    with refused("config.mesh.devices", 3, way_out="Use 1, or leave it empty"):
        sharding.mesh(3)
