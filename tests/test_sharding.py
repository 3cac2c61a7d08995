"""Where arrays live."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from refusals import refused

from mrm_jax import sharding
from mrm_jax.config import MRM, Config, Mesh, Method, Train
from mrm_jax.errors import UsageError
from mrm_jax.train.step import build_step
from mrm_jax.types import Batch, Labelled, Unlabelled


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


def test_a_leaf_without_a_rule_is_named():
    with pytest.raises(ValueError, match="momentum/w"):
        sharding.of_state({"momentum": {"w": np.zeros(2)}}, sharding.mesh(1))


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
        sharding.imagined_mesh(Config(train=train, mesh=mesh), devices)


def test_a_run_on_devices_that_are_there_is_refused_alike():
    if jax.device_count() < 2:
        pytest.skip("needs two devices; tests/conftest.py asks XLA for two unless XLA_FLAGS is set")
    config = Config(train=Train(batch=2, microbatches=2), mesh=Mesh(devices=2))
    with refused("config.train.batch", 2, way_out="config.mesh.devices=1"):
        sharding.run_mesh(config)
    assert sharding.run_mesh(replace(config, train=Train(batch=4, microbatches=2))).size == 2
