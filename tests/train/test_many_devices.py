"""The same global batch gives the same step however many devices share it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from many_devices import MESHES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("devices") / "out.npz"
    program = Path(__file__).with_name("many_devices.py")
    subprocess.run(
        [sys.executable, program, out, ROOT / "configs/tiny.py"],
        check=True,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        },
        timeout=600,
    )
    return dict(np.load(out))


@pytest.mark.parametrize("mesh", MESHES[1:], ids=lambda mesh: f"{mesh[0]} devices, fsdp {mesh[1]}")
def test_losses_and_gradients_are_those_of_one_device(found, mesh):
    one, other = (
        {k.partition(":")[2]: v for k, v in found.items() if k.startswith(f"{m[0]}x{m[1]}:")}
        for m in (MESHES[0], mesh)
    )
    assert one.keys() == other.keys()
    assert "metric/source/feature_distance" in one
    for name in (n for n in one if n.startswith("metric/")):
        np.testing.assert_allclose(other[name], one[name], rtol=1e-5, err_msg=name)
    # Adam's first moment after one step is a tenth of the gradient.
    moments = [name for name in one if "mu" in name]
    largest = max(np.abs(one[name]).max() for name in moments)
    for name in moments:
        bound = 1e-5 * max(np.abs(one[name]).max(), 1e-2 * largest) + 1e-5 * largest
        np.testing.assert_allclose(other[name], one[name], rtol=0, atol=bound, err_msg=name)


def test_devices_that_share_a_copy_hold_a_part_of_it(found):
    rows = {mesh: tuple(found[f"{mesh[0]}x{mesh[1]}:held"]) for mesh in MESHES}
    assert {rows[mesh][0] * mesh[1] for mesh in MESHES} == {rows[MESHES[0]][0]}
