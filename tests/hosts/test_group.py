"""How a process finds out that it is one of several, and what several agree on. That they end
together is shown by real processes in test_several.py.
"""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from refusals import refused

from mrm_jax.config import Config, Mesh
from mrm_jax.errors import RunError, UsageError
from mrm_jax.hosts import group, watch
from mrm_jax.runs import workdir

SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


def found(environment=None, **mesh):
    return group.found(Config(mesh=Mesh(**mesh)), environment or {})


@pytest.fixture
def no_chips(monkeypatch):
    monkeypatch.setattr(group.glob, "glob", lambda pattern: [])


@pytest.fixture
def chips(monkeypatch):
    there = {"/dev/accel*": ["/dev/accel0"]}
    monkeypatch.setattr(group.glob, "glob", lambda pattern: there.get(pattern, []))
    monkeypatch.setattr(group.importlib.util, "find_spec", lambda name: object())


@pytest.mark.usefixtures("no_chips")
def test_a_machine_of_its_own_trains_alone():
    assert found() is None
    assert found(hosts="explicit", coordinator="a:1", process_count=1, process_index=0) is None


@pytest.mark.usefixtures("no_chips")
def test_a_step_of_slurm_with_several_tasks_is_found_and_the_batch_script_around_it_is_not():
    assert found(SLURM) == {}
    assert found(SLURM, hosts="off") is None
    assert found(SLURM | {"SLURM_NTASKS": "1"}) is None
    script = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}
    assert found(script) is None


@pytest.mark.usefixtures("chips")
def test_a_cloud_tpu_is_found_unless_jax_is_told_to_run_elsewhere():
    assert found() == {}
    assert found({"JAX_PLATFORMS": "tpu,cpu"}) == {}
    assert found({"JAX_PLATFORMS": "cpu"}) is None
    assert found(hosts="off") is None


def test_explicit_hosts_go_before_what_the_surroundings_say():
    wanted = found(SLURM, coordinator="10.0.0.2:8476", process_count=4, process_index=3)
    assert wanted == {
        "coordinator_address": "10.0.0.2:8476",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }


@pytest.mark.parametrize(
    ("mesh", "environment", "message"),
    [
        ({"hosts": "explicit"}, {}, "need all of coordinator=HOST:PORT .* None, None and None"),
        ({"coordinator": "a:1", "process_count": 2}, {}, "they are a:1, 2 and None"),
        (
            {"coordinator": "a", "process_count": 2, "process_index": 0},
            {},
            "config.mesh.coordinator is 'a'; write HOST:PORT",
        ),
        (
            {"coordinator": "a:1", "process_count": 2, "process_index": 2},
            {},
            r"config.mesh.process_index is 2; it must lie in 0\.\.1",
        ),
        ({}, SLURM | {"SLURM_NTASKS": "two"}, "SLURM_NTASKS is 'two'"),
    ],
)
def test_what_names_hosts_in_part_or_wrongly_is_refused(mesh, environment, message):
    with pytest.raises(UsageError, match=message):
        found(environment, **mesh)


def test_hosts_meet_where_jax_will_join_them():
    given = found(coordinator="10.0.0.2:8476", process_count=4, process_index=3)
    assert group._meeting(given or {}, SLURM) == ("10.0.0.2:8476", 4, 3)
    assert group._meeting({}, {}) is None  # a Cloud TPU, which JAX asks


@pytest.mark.usefixtures("no_chips")
def test_tasks_of_slurm_meet_at_the_address_that_jax_makes_of_their_job(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert group._meeting({}, SLURM) == ("node1:61457", 2, 1)


def test_one_host_agrees_with_itself():
    assert (group.host_index(), group.host_count(), group.is_main()) == (0, 1, True)
    assert group.together(lambda: 7) == [7]
    assert group.from_main(lambda: 7) == 7
    group.same("x", {"a": 1})
    group.raise_loss(RuntimeError("Gloo: connection reset by peer"))
    group.beat(3, "reading")


class Store:
    """The key-value store of two hosts, in which the other has said `other`."""

    def __init__(self, other):
        self.other, self.said = other, {}

    def key_value_set(self, name, value, **_):
        self.said[name] = value

    def blocking_key_value_get(self, name, _):
        return self.said.get(name, self.other)

    def key_value_delete(self, name):
        del self.said[name]


@pytest.fixture
def with_other(monkeypatch):
    """This process as host 0 of two; called with what the other says, as `together` writes it."""

    def install(other):
        running = watch.HostWatch.__new__(watch.HostWatch)
        running.index, running.count, running.client = 0, 2, Store(other)
        monkeypatch.setattr(watch.HostWatch, "running", running)
        monkeypatch.setattr(group, "_rounds", iter(range(9)))
        return running.client

    return install


def test_values_of_all_hosts_are_known_to_all_and_old_ones_forgotten(with_other):
    store = with_other('["theirs", null, false]')
    assert group.together(lambda: "ours") == ["ours", "theirs"]
    assert group.from_main(lambda: "ours") == "ours"
    assert list(store.said) == ["mrm_jax_round/1/0"]


def test_an_error_that_speaks_of_a_lost_peer_is_not_taken_for_a_full_disk(with_other):
    with_other("[0, null, false]")
    group.raise_loss(OSError("no space left on device"))
    with pytest.raises(RuntimeError, match="Gloo"):
        group.raise_loss(RuntimeError("Gloo all-reduce failed: connection reset by peer"))


def test_an_error_of_one_host_is_raised_on_all(with_other):
    told = UsageError.at("town/7.png", " is not there", "fetch it.").parts()
    with_other(json.dumps([None, told, False]))
    with refused("town/7.png", way_out="fetch it.", kind=RunError) as caught:
        group.together(lambda: "ours")
    assert str(caught.value) == "Host 1: town/7.png is not there; fetch it."
    store = with_other('["theirs", null, false]')
    with pytest.raises(UsageError, match="ours is broken"):
        group.together(lambda: (_ for _ in ()).throw(UsageError("ours is broken", field="x")))
    said = {"line": "ours is broken.", "field": "x", "value": None, "way_out": ""}
    assert json.loads(store.said["mrm_jax_round/0/0"]) == [None, said, False]


def test_a_field_in_which_hosts_differ_is_named(with_other):
    with_other('[{"seed": 1, "train.steps": 8}, null, false]')
    group.same("config.", {"seed": 1, "train.steps": 8})
    with refused("config.train.steps", way_out="it must be the same"):
        group.same("config.", {"seed": 1, "train.steps": 6})
    with_other("[4, null, false]")
    with pytest.raises(UsageError, match="the newest checkpoint is 6 on host 0 and 4 on host 1"):
        group.same("the newest checkpoint", 6)


def test_a_workdir_that_another_host_does_not_see_is_refused_on_all(tmp_path, monkeypatch):
    path = tmp_path / "run"
    with workdir.opened_workdir(path, Config()):
        group.check_shared(path / workdir.LOCK)
        assert (path / workdir.LOCK).read_text()  # what the others compare
        monkeypatch.setattr(group, "from_main", lambda make: "written by another")
        with pytest.raises(UsageError, match="is not the folder that host 0 sees"):
            group.check_shared(path / workdir.LOCK)
        with pytest.raises(UsageError, match="is not the folder that host 0 sees"):
            group.check_shared(tmp_path / "elsewhere" / workdir.LOCK)


@pytest.fixture
def looks(monkeypatch):
    """A watch of host 0 of two with a clock: (method, second, what it sees) -> what it says."""
    clock = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    config = Config(mesh=Mesh(heartbeat=60, patience=1800))
    looking = watch.HostWatch(config, watch.LastWords.__new__(watch.LastWords))
    looking.index, looking.count = 0, 2

    def look(method, second, seen):
        clock[0] = second
        return getattr(looking, method)(seen)

    return look


def beats(first, second):
    return {"mrm_jax/0": first, "mrm_jax/1": second}


def test_a_host_that_is_silent_for_the_heartbeat_is_named(looks):
    assert looks("_silent", 0, {}) is None
    assert looks("_silent", 59, beats("[1]", "[1]")) is None
    assert looks("_silent", 118, beats("[2]", "[1]")) is None
    line = looks("_silent", 120, beats("[3]", "[1]"))
    assert line == f"Host 1 has been silent for 60 s. {watch.AGAIN}"


def test_hosts_of_which_none_gets_on_for_the_patience_end_and_the_last_is_named(looks):
    ahead, behind = '[8, 5, 2, "computing"]', '[8, 5, 1, "reading"]'
    assert looks("_stuck", 0, {}) is None
    assert looks("_stuck", 100, beats(ahead, behind)) is None
    # Ticks alone are no progress; one host that gets on is enough.
    assert looks("_stuck", 1800, beats('[9, 5, 2, "computing"]', behind)) is None
    assert looks("_stuck", 1850, beats(ahead, '[9, 5, 1, "evaluating 3/9"]')) is None
    line = looks("_stuck", 3700, beats(ahead, '[9, 5, 1, "evaluating 3/9"]'))
    assert line == (
        f"Nothing has moved for 1800 s; last comes host 1 (evaluating 3/9) at step 5. {watch.AGAIN}"
    )


def test_the_end_of_another_host_is_passed_on_and_an_end_without_cause_is_not(looks):
    assert looks("_ended", 0, {"mrm_jax_end/0": "mine.", "mrm_jax_end/1": ""}) is None
    assert looks("_ended", 0, {"mrm_jax_end/1": "theirs."}) == "Host 1 has ended: theirs."


def test_the_last_words_appear_when_a_process_is_killed_and_not_when_they_are_taken_back():
    program = (
        "import os, sys\n"
        "from mrm_jax.hosts.watch import LastWords\n"
        "words = LastWords()\n"
        "words.set('first')\n"
        "words.set(sys.argv[1]) if sys.argv[1] else words.close()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    for said, expected in (("it was killed", "mrm_jax: it was killed\n"), ("", "")):
        done = subprocess.run(
            [sys.executable, "-c", program, said], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (-9, expected)


def test_hosts_that_cannot_be_joined_are_one_line(monkeypatch):
    import jax

    def unavailable(**_):
        raise ValueError("coordinator_address should be\ndefined.")

    monkeypatch.setattr(jax.distributed, "initialize", unavailable)
    monkeypatch.setattr(group, "meet", lambda *place, seconds: None)
    config = Config(mesh=Mesh(coordinator="a:1", process_count=2, process_index=0))
    with (
        refused("config.mesh", way_out="Set config.mesh.coordinator, process_count", kind=RunError),
        group.joined(replace(config, seed=1)),
    ):
        pass
