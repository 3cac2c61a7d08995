"""One array has one digest, wherever it lies and however it is split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mrm_jax import sharding
from mrm_jax.runs import digest

TYPES = ("float32", "bfloat16", "float16", "int32", "uint32", "int8", "bool", "float8_e4m3fn")


def _bytes(kind, shape=(3, 4, 6)):
    rng = np.random.default_rng(0)
    dtype = jnp.dtype(kind)
    raw = rng.integers(0, 2 if kind == "bool" else 256, (*shape[:-1], shape[-1] * dtype.itemsize))
    return raw.astype(np.uint8).view(dtype)


@pytest.mark.parametrize("kind", TYPES)
def test_devices_that_share_an_array_find_the_digest_that_numpy_finds(kind):
    array = _bytes(kind)  # any bits, NaN among them
    wanted = digest.on_host(array)
    for spec in (PartitionSpec(), PartitionSpec(None, None, "fsdp")):
        mesh = sharding.mesh(2, fsdp=2)
        split = jax.device_put(array, NamedSharding(mesh, spec))
        np.testing.assert_array_equal(*digest.on_devices([split]), wanted)
        assert digest.digests({"a": split}) == digest.digests({"a": array})


@pytest.mark.parametrize("kind", [*TYPES, "float64", "int64"])
def test_a_flipped_bit_anywhere_gives_another_digest(kind):
    array = _bytes(kind, shape=(2, 2))
    found = {digest.on_host(array).tobytes()}
    raw = array.view(np.uint8)
    bits = 1 if kind == "bool" else 8
    for place in range(raw.size):
        for bit in range(bits):
            raw.reshape(-1)[place] ^= 1 << bit
            found.add(digest.on_host(array).tobytes())
            raw.reshape(-1)[place] ^= 1 << bit
    assert len(found) == 1 + raw.size * bits


def test_places_types_and_shapes_count_and_memory_does_not():
    rows = np.arange(70_000.0, dtype=np.float32)  # more than is mixed at a time
    swapped = rows.copy()
    swapped[[1, 69_999]] = swapped[[69_999, 1]]
    trees = [rows, swapped, rows.astype(np.int32), rows.reshape(2, -1), rows[::-1], np.float32(1)]
    found = [digest.digests({"a": {"b": np.asarray(tree)}})["a/b"] for tree in trees]
    assert len({*found}) == len(trees)
    assert found[3].startswith("float32[2,35000] ")
    table = rows.reshape(100, 700)
    assert digest.digests([np.asfortranarray(table)]) == digest.digests([table])
    assert digest.differing({"a": "1", "b": "2"}, {"a": "1", "b": "2"}) is None
    assert digest.differing({"a": "1"}, {"a": "1", "b": "2"}) == "b"
