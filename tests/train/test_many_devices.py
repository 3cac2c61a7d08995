"""The same global batch gives the same step however many devices and processes share it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from many_devices import MESHES, PAIR, VIT

ROOT = Path(__file__).parents[2]
ONE, *OTHERS = (PAIR if mesh is None else f"{mesh[0]}x{mesh[1]}" for mesh in (*MESHES, None))


def start(folder, devices, *words):
    program = Path(__file__).with_name("many_devices.py")
    return subprocess.Popen(
        [sys.executable, program, folder, ROOT / "configs/tiny.py", *words],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        },
    )


def finish(*processes):
    try:
        assert [process.wait(timeout=600) for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    finish(*(start(folder, 2, address, str(index)) for index in range(2)))
    finish(start(folder, 8))
    return dict(np.load(folder / "found.1.npz")) | dict(np.load(folder / "found.2.npz"))


def part(found, mesh, *kinds):
    """Arrays of one mesh whose names begin with one of `kinds`."""
    prefix = f"{mesh}:"
    names = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    chosen = {name: value for name, value in names.items() if name.startswith(kinds)}
    assert chosen
    return chosen


@pytest.mark.parametrize("mesh", OTHERS)
def test_pictures_and_draws_are_those_of_one_device(found, mesh):
    one, other = (part(found, m, "batch/", "draws/") for m in (ONE, mesh))
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)


def test_splitting_parameters_moves_parameters_and_nothing_else(found):
    whole, split = found["2x1:sent"], found["8x4:sent"]
    assert not whole[1:].any()
    assert not split[1:].any()
    # A tenth more for small sums that XLA gathers before it adds them up.
    assert 0 < split[0] - whole[0] <= 1.1 * found["8x4:learnt"]


@pytest.mark.parametrize(("alone", "mesh"), [*((ONE, mesh) for mesh in OTHERS), VIT])
def test_losses_and_gradients_are_those_of_one_device(found, alone, mesh):
    one, other = (part(found, m, "metric", "moments") for m in (alone, mesh))
    assert one.keys() == other.keys()
    # What depends on how samples are drawn: rare classes, or hidden tokens.
    loss = "source/feature_distance" if alone == ONE else "masked/ce"
    assert one[f"metric['{loss}']"] > 0
    for name in (n for n in one if n.startswith("metric")):
        np.testing.assert_allclose(other[name], one[name], rtol=1e-5, err_msg=name)
    # Adam's first moment after one step is a tenth of the gradient.
    moments = [name for name in one if "mu" in name]
    largest = max(np.abs(one[name]).max() for name in moments)
    for name in moments:
        bound = 1e-5 * max(np.abs(one[name]).max(), 1e-2 * largest) + 1e-5 * largest
        np.testing.assert_allclose(other[name], one[name], rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("mesh", [ONE, *OTHERS[:-1]])
def test_a_run_of_two_processes_goes_on_on_other_devices_with_the_losses_it_would_have_had(
    found, mesh
):
    pair, other = (part(found, m, "resumed/metric") for m in (PAIR, mesh))
    assert pair.keys() == other.keys()
    first = part(found, PAIR, "metric")
    assert pair["resumed/metric['total/loss']"] != first["metric['total/loss']"]
    for name, value in pair.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-5, err_msg=name)


def test_devices_that_share_a_copy_hold_a_part_of_it(found):
    rows = {mesh: tuple(found[f"{mesh[0]}x{mesh[1]}:held"]) for mesh in MESHES}
    assert {rows[mesh][0] * mesh[1] for mesh in MESHES} == {rows[MESHES[0]][0]}
