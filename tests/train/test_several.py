"""Two processes train as one run, and none of them outlives the other.

The runs are those of `several.py`: the toy's network, and everything around it the real one.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from mrm_jax.runs.saved import read_facts, read_tree, steps_in

ROOT = Path(__file__).parents[2]
AGAIN = "Give the same command on every host again"


class End(NamedTuple):
    """How a process ended, and what it printed last."""

    code: int
    out: str
    err: str

    @property
    def line(self):
        return self.err.strip().rpartition("\n")[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    program = Path(__file__).with_name("several.py")
    (folder / "tmp").mkdir()
    subprocess.run(
        [sys.executable, program, folder],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "TMPDIR": str(folder / "tmp")},
        timeout=300,
    )
    return folder


@pytest.fixture(scope="module")
def ended(folder):
    """What became of every scenario's processes, by its name."""
    chains = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return {name: [End(*end) for end in ends] for chain in chains for name, ends in chain.items()}


def codes(ends):
    return [end.code for end in ends]


def state(run, step=6):
    path = run / "checkpoints" / str(step)
    return {item: read_tree(path / item) for item in ("student", "training")}


def lines(run):
    """metrics.jsonl without what depends on the clock and on how often the run was started."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in found]
    return [line for line in found if set(line) != {"step"}]


def assert_same_bits(run, other):
    assert jax.tree.leaves(state(run))
    jax.tree.map(np.testing.assert_array_equal, state(run), state(other))
    assert lines(run) == lines(other)


def test_one_host_writes_the_report_and_both_write_the_checkpoint(folder, ended):
    assert codes(ended["whole"]) == [0, 0]
    run = folder / "whole"
    assert {"metrics.jsonl", "report.html", "views"} <= {path.name for path in run.iterdir()}
    assert [line["step"] for line in lines(run) if "total/loss" in line] == [1, 2, 3, 4, 5, 6]
    environment = json.loads((run / "environment.json").read_text())
    assert (environment["processes"], environment["mesh"]) == (2, {"data": 1, "fsdp": 2})
    written = list((run / "checkpoints" / "6" / "student").glob("ocdbt.process_*"))
    assert sorted(path.name[-1] for path in written) == ["0", "1"]
    first, second = ended["whole"]
    assert "step 6/6" in first.out
    assert "step" not in second.out
    assert codes(ended["finished already"]) == [0, 0]


def test_a_pair_killed_in_turn_and_in_a_save_ends_with_the_bits_of_one_that_was_not(folder, ended):
    for name, killed in (("first killed", 0), ("second killed", 1)):
        one, other = ended[name][killed], ended[name][1 - killed]
        assert one.code == -9
        assert other.code in (1, -6), name  # ours, or JAX's, which ends by an abort
        # The end of JAX's trace may come after our line where both end the process at once.
        assert AGAIN in (other.line if other.code == 1 else other.err), name
    assert -9 in codes(ended["both killed"])  # the other may have ended by itself before
    assert 0 not in codes(ended["both killed"])
    assert codes(ended["goes on"]) == [0, 0]
    assert "goes on from step" in ended["goes on"][0].out
    assert_same_bits(folder / "killed", folder / "whole")


def test_nothing_is_left_in_the_folder_of_temporary_files_however_hosts_end(folder, ended):
    assert {-9, 0, 1} <= {end.code for ends in ended.values() for end in ends}
    assert not list((folder / "tmp").glob("mrm_jax_*"))


def test_a_process_killed_at_any_step_and_in_a_save_ends_with_the_bits_of_one_that_was_not(
    folder, ended
):
    killed = [name for name in ended if name.startswith("killed alone")]
    assert [codes(ended[name]) for name in killed] == [[-9]] * 3
    assert codes(ended["goes on alone"]) == codes(ended["alone"]) == [0]
    assert_same_bits(folder / "killed_alone", folder / "alone")


def test_a_host_that_hangs_ends_both_within_the_patience_and_is_named(ended):
    assert codes(ended["wedged"]) == [1, 1]
    for end in ended["wedged"]:
        assert "Nothing has moved for 25 s; last comes host 1 (reading) at step 4" in end.line
        assert AGAIN in end.line


def test_a_host_that_freezes_ends_both(folder, ended):
    for name in ("first frozen", "second frozen"):
        for end in ended[name]:  # the frozen one when it is thawed
            assert end.code in (1, -6), name
            assert AGAIN in end.line
    assert steps_in(folder / "frozen" / "checkpoints")


def test_a_host_that_is_asked_to_stop_saves_with_the_other_at_once(folder, ended):
    first, second = ended["asked to stop"]
    assert codes((first, second)) == [0, 0]
    assert "stopped by another host after step" in first.out
    stopped = int(first.out.partition("stopped by another host after step ")[2].partition(",")[0])
    assert stopped <= 5  # asked when step 2 was read: two more may be on their way
    assert stopped in steps_in(folder / "told" / "checkpoints")
    assert first.err == second.err == ""


def test_a_host_that_is_asked_to_stop_in_an_evaluation_ends_it_on_both(folder, ended):
    first, second = ended["stopped scoring"]
    assert codes((first, second)) == [0, 0]
    assert re.search(r"stopped by another host after step \d, which is saved", first.out)
    assert "Evaluation at step" not in first.out
    assert "Evaluation at step 6" in ended["goes on"][0].out
    assert first.err == second.err == ""


def test_what_stops_one_host_is_told_by_both(folder, ended):
    first, second = ended["no pictures there"]
    assert codes((first, second)) == [1, 2]
    assert second.err.startswith("mrm_jax: config.data.evaluation.path is camera")
    assert first.line == f"mrm_jax: Host 1 has ended: {second.line.removeprefix('mrm_jax: ')}"
    first, second = ended["cut off picture"]
    assert codes((first, second)) == [1, 2]
    assert second.err == "mrm_jax: town/7.png is cut off.\n"
    assert first.err == "mrm_jax: Another host could not read its pictures; it says which.\n"


def test_the_run_of_two_goes_on_in_one(folder, ended):
    (end,) = ended["on one"]
    assert end.code == 0, end.err
    assert "goes on from step 5" in end.out
    told, whole = state(folder / "told"), state(folder / "whole")
    # The mean of a picture over one device or two: another order of the same sum.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), told, whole)
    assert read_facts(folder / "told" / "checkpoints" / "6")["state_version"]


def test_doctor_finds_the_tasks_of_slurm_sums_over_both_and_compares_their_data(ended):
    for end in ended["doctor"]:
        assert end.code == 0, end.err
        assert "mesh: data 1 x fsdp 2; a sum over all devices is right" in end.out
    orders = {end.out.partition("; order ")[2] for end in ended["doctor"]}
    (order,) = orders
    assert order.endswith(", equal on 2 hosts.\n")
