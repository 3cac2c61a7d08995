import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mrm_jax import sharding
from mrm_jax.config import Classes, Config, Data, Domain
from mrm_jax.errors import RunError, UsageError
from mrm_jax.runs import saved
from mrm_jax.runs.checkpoint import (
    FOLDER,
    Checkpoints,
    DamagedError,
    load_rebuilder,
    load_run,
    save_network,
)
from mrm_jax.runs.facts import BEST_BY
from mrm_jax.types import TrainState

DRAWN = Domain(kind="drawn")
CLASSES = Classes(names=("a", "b"), colours=((0, 0, 0), (1, 1, 1)))
CONFIG = Config(data=Data(classes=CLASSES, source=DRAWN, target=DRAWN, evaluation=DRAWN))


def _state(size=7, *, typed=False, teacher=True):
    params = {
        "segmentor": {"w": jnp.arange(size, dtype=jnp.float32), "h": jnp.ones(3, jnp.bfloat16)},
        "rebuilder": {"token": jnp.full(2, 5.0)},
    }
    key = jax.random.key(3)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats={"mean": jnp.zeros(2)},
        teacher_params={"w": jnp.zeros(size), "h": jnp.ones(3, jnp.bfloat16)} if teacher else {},
        teacher_batch_stats={"mean": jnp.ones(2)} if teacher else {},
        opt_state=optax.adam(0.1).init(params),
        root_key=key if typed else jax.random.key_data(key),
    )


def _facts(score=None, pick=None):
    given = {BEST_BY: score, "select/infomax": pick}
    scores = {name: value for name, value in given.items() if value is not None}
    return {"config": asdict(CONFIG), "scores": scores}


def _like(state):
    mesh = sharding.mesh(1)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh)), state
    )


def _plain(state):
    if jnp.issubdtype(state.root_key.dtype, jax.dtypes.prng_key):
        state = state.replace(root_key=jax.random.key_data(state.root_key))
    return jax.device_get(state)


def _assert_equal(found, wanted):
    found, wanted = _plain(found), _plain(wanted)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@jax.jit
def _copy(state):
    return jax.tree.map(jnp.copy, state)


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("teacher", [True, False])
def test_the_whole_state_comes_back_bit_for_bit(tmp_path, typed, teacher):
    state = _state(typed=typed, teacher=teacher)
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(4, state, _facts())
    checkpoints.close()
    again = Checkpoints(tmp_path, keep=2)
    assert again.latest() == 4
    restored, facts = again.restore(4, _like(state))
    again.close()
    _assert_equal(restored, state)
    assert facts["config"] == json.loads(json.dumps(asdict(CONFIG)))


def test_a_save_under_way_is_not_touched_by_donated_steps(tmp_path):
    # Large enough (16 MB a leaf) for the write to be under way while the steps run.
    state = _state(size=4_000_000)
    step = jax.jit(
        lambda s: jax.tree.map(lambda x: x * 2 + 1 if x.dtype == jnp.float32 else x, s),
        donate_argnums=0,
    )
    state = step(state)
    wanted = _plain(_copy(state))
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state, _facts())
    for _ in range(10):
        state = step(state)
    jax.block_until_ready(state)
    checkpoints.wait()
    restored, _ = checkpoints.restore(1, _like(_state(size=4_000_000)))
    checkpoints.close()
    _assert_equal(restored, wanted)


def test_the_last_ones_and_the_best_one_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, score in enumerate([0.1, 0.6, None, 0.3, 0.2, None], 1):
        assert checkpoints.is_best(_facts(score)) == (step in (1, 2))
        checkpoints.save(step, _state(), _facts(score))
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "5", "6"]
    again = Checkpoints(tmp_path, keep=2)
    assert (again.latest(), again.top("best"), again.top("picked")) == (6, 2, None)
    assert not again.is_best(_facts(0.5))
    assert again.is_best(_facts(0.7))
    again.close()


def test_the_one_picked_without_labels_is_kept_too_and_opened_by_name(tmp_path):
    checkpoints = Checkpoints(tmp_path / FOLDER, keep=1)
    given = [(0.1, 0.5), (0.6, 0.2), (0.3, 0.9), (0.2, 0.9), (None, None)]
    for step, (score, pick) in enumerate(given, 1):
        assert checkpoints.is_best(_facts(score, pick)) == (step <= 3)
        checkpoints.save(step, _state(), _facts(score, pick))
    checkpoints.close()
    assert sorted(p.name for p in (tmp_path / FOLDER).iterdir()) == ["2", "3", "5"]
    assert [load_run(tmp_path, w).step for w in ("best", "picked", "last")] == [2, 3, 5]
    again = Checkpoints(tmp_path / FOLDER, keep=1)
    assert again.top("picked") == 3
    assert not again.is_best(_facts(0.5, 0.8))
    assert again.is_best(_facts(0.5, 0.95))
    again.close()


def _saved(tmp_path, *scores):
    checkpoints = Checkpoints(tmp_path / FOLDER, keep=len(scores))
    for step, score in enumerate(scores, 1):
        state = _state()
        checkpoints.save(
            step, state.replace(batch_stats={"mean": jnp.full(2, step)}), _facts(score)
        )
    checkpoints.close()


@pytest.mark.parametrize(
    ("below", "which", "step"),
    [
        ("", "last", 3),
        ("", "best", 2),
        (FOLDER, 1, 1),
        (FOLDER, "3", 3),
        (f"{FOLDER}/1", "best", 1),
    ],
)
def test_a_checkpoint_opens_from_a_workdir_its_folder_or_a_step(tmp_path, below, which, step):
    _saved(tmp_path, 0.1, 0.5, 0.4)
    run = load_run(tmp_path / below, which)
    assert run.step == step
    assert run.config == CONFIG
    np.testing.assert_array_equal(run.student["batch_stats"]["mean"], [step, step])
    np.testing.assert_array_equal(run.student["params"]["w"], np.arange(7))
    assert run.teacher is not None
    np.testing.assert_array_equal(run.teacher["params"]["w"], np.zeros(7))
    leaves = jax.tree.leaves((run.student, run.teacher))
    assert all(isinstance(leaf, np.ndarray) for leaf in leaves)


def test_a_checkpoint_without_rebuilder_optimiser_and_teacher_opens(tmp_path):
    _saved(tmp_path, 0.1)
    for name in ("rebuilder", "training", "teacher"):
        shutil.rmtree(tmp_path / FOLDER / "1" / name)
    run = load_run(tmp_path)
    assert run.teacher is None
    assert set(run.student["params"]) == {"w", "h"}


def test_a_checkpoint_of_two_devices_opens_on_one(tmp_path):
    mesh = sharding.mesh(2)
    state = jax.device_put(_state(), sharding.replicated(mesh))
    checkpoints = Checkpoints(tmp_path / FOLDER, keep=1)
    checkpoints.save(1, state, _facts())
    restored, _ = checkpoints.restore(1, _like(state))
    checkpoints.close()
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(restored))
    _assert_equal(restored, state)
    code = (
        "import jax; from mrm_jax.runs.checkpoint import load_run; assert len(jax.devices()) == 1;"
        f"print(load_run({str(tmp_path)!r}).student['params']['w'].sum())"
    )
    environment = os.environ | {"XLA_FLAGS": ""}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert float(found.stdout) == 21


@pytest.mark.parametrize(
    ("below", "which", "says"),
    [
        ("", "7", "use last, best, picked or one of 1"),
        ("", "best", "No checkpoint .* labels; use picked, last or a step"),
        ("", "picked", "No checkpoint .* has scores without labels; use last or a step"),
        ("nothing", "last", "is not a folder"),
        ("mit.pth", "last", r"is a file of weights.*convert --from .*mit\.pth --to DIR"),
        (f"{FOLDER}/1/student", "last", "holds no complete checkpoint"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_one_line_that_helps(tmp_path, below, which, says):
    _saved(tmp_path, None)
    (tmp_path / "mit.pth").touch()
    with pytest.raises(UsageError, match=says):
        load_run(tmp_path / below, which)


# A limit on the size of files makes the writes inside Orbax fail as on a full disk. Random numbers,
# so that compression does not bring the file below the limit.
_FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_checkpoint import *
from test_checkpoint import _state, _facts
state = _state(size=1_000_000)
noise = jnp.asarray(np.random.default_rng(0).standard_normal(1_000_000), jnp.float32)
params = {{**state.params, "segmentor": {{**state.params["segmentor"], "w": noise}}}}
checkpoints = Checkpoints(Path({directory!r}), keep=2)
checkpoints.save(1, state, _facts(0.1))
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    checkpoints.save(2, state.replace(params=params), _facts(0.9))  # may fail at once or later
    checkpoints.wait()
except RunError as error:
    sys.exit("refused: " + str(error))
"""


def test_a_full_disk_is_one_line_and_leaves_the_last_good_checkpoint(tmp_path):
    # In a process of its own, as a user's command is: Orbax closes its event loop at the first
    # write that fails, and TensorStore's others, done a moment later, then raise "Event loop is
    # closed" where nobody can catch it, now and then during the next test.
    code = _FULL.format(tests=os.path.dirname(__file__), directory=str(tmp_path))
    failed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1, failed.stderr
    said = [line for line in failed.stderr.splitlines() if line.startswith("refused: ")]
    assert len(said) == 1, failed.stderr
    assert re.search(r"step 2 could not be saved.*last good one is step 1\..*Free some", said[0])
    state = _state(size=1_000_000)
    again = Checkpoints(tmp_path, keep=2)
    assert (again.latest(), again.top("best")) == (1, 1)
    restored, _ = again.restore(1, _like(state))
    again.save(2, state, _facts(0.9))  # with space again, the same step can be saved
    again.close()
    _assert_equal(restored, state)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_no_space_when_a_save_begins_is_one_line_too(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(RunError, match=r"step 3 could not be saved.*No space left.*none before it"):
        checkpoints.save(3, _state(), _facts())
    assert checkpoints.latest() is None


_KILLED = """
import os, signal, sys, threading
import orbax.checkpoint as ocp
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_checkpoint import *
from test_checkpoint import _state, _facts
directory = Path({directory!r})
checkpoints = Checkpoints(directory, keep=2)
checkpoints.save(1, _state(size=2_000_000), _facts())
checkpoints.wait()
checkpoints.save(2, _state(size=2_000_000), _facts())
while not any(p.is_dir() and not p.name.isdigit() for p in directory.iterdir()):
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_save_cut_short_by_kill_9_is_never_taken_for_a_checkpoint(tmp_path):
    code = _KILLED.format(tests=os.path.dirname(__file__), directory=str(tmp_path))
    killed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    unfinished = [p.name for p in tmp_path.iterdir() if not p.name.isdigit()]
    assert unfinished  # else nothing was cut short
    again = Checkpoints(tmp_path, keep=2)
    assert again.latest() == 1
    again.restore(1, _like(_state(size=2_000_000)))
    again.close()
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


def _two(folder):
    """A run with checkpoints of steps 1 and 2 below `folder`, and its state."""
    state = _state()
    checkpoints = Checkpoints(folder, keep=3)
    for step in (1, 2):
        checkpoints.save(step, state.replace(step=jnp.int32(step)), _facts())
    checkpoints.close()
    return state


def _spoil(folder, how):
    if how == "an item is missing":
        shutil.rmtree(folder / "student")
    elif how == "facts are missing":
        shutil.rmtree(folder / "facts")
    elif how == "facts are torn":
        path = folder / "facts" / "metadata"
        path.write_text(path.read_text()[:20])
    else:
        files = [p for p in (folder / "training").rglob("*") if p.is_file() and p.stat().st_size]
        for path in files:
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2] if how == "cut" else b"\0" * len(content))


@pytest.mark.parametrize(
    "how", ["an item is missing", "facts are missing", "facts are torn", "cut", "garbage"]
)
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_it_is_used(tmp_path, how):
    state = _two(tmp_path / FOLDER)
    _spoil(tmp_path / FOLDER / "2", how)
    checkpoints = Checkpoints(tmp_path / FOLDER, keep=3)
    if checkpoints.damaged:
        (line,) = checkpoints.damaged
    else:
        with pytest.raises(DamagedError, match="is damaged: "):
            checkpoints.restore(2, _like(state))
        line = checkpoints.aside(2)
        assert "step 1 is used" in line
        checkpoints = Checkpoints(tmp_path / FOLDER, keep=3)
    assert "the checkpoint of step 2 is damaged and now" in line
    assert (tmp_path / FOLDER / "damaged_1_step_2").is_dir()
    assert checkpoints.latest() == 1
    assert int(checkpoints.restore(1, _like(state))[0].step) == 1
    checkpoints.save(2, state.replace(step=jnp.int32(2)), _facts())
    checkpoints.close()
    assert load_run(tmp_path).step == 2


def test_the_only_checkpoint_is_not_set_aside(tmp_path):
    state = _two(tmp_path / FOLDER)
    shutil.rmtree(tmp_path / FOLDER / "1")
    _spoil(tmp_path / FOLDER / "2", "cut")
    checkpoints = Checkpoints(tmp_path / FOLDER, keep=3)
    with pytest.raises(DamagedError, match="Restore this folder, or train again in a new one"):
        checkpoints.restore(2, _like(state))
    assert checkpoints.aside(2) is None
    assert (tmp_path / FOLDER / "2").is_dir()


@pytest.mark.parametrize(("version", "way"), [(0, "Go on with"), (99, "Install")])
def test_a_state_of_another_version_is_refused_with_the_reason(tmp_path, version, way):
    state = _state()
    checkpoints = Checkpoints(tmp_path / FOLDER, keep=3)
    facts = {**_facts(), "state_version": version, "mrm_jax": "7.0"}
    checkpoints.save(1, state, facts)
    checkpoints.wait()
    message = f"written by mrm_jax 7.0 with state version {version}; .*{way} that version"
    with pytest.raises(RunError, match=message) as caught:
        checkpoints.restore(1, _like(state))
    assert not isinstance(caught.value, DamagedError)
    with pytest.raises(RunError, match=message):
        load_run(tmp_path)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A folder with checkpoints of steps 1 and 2 of random numbers, which Orbax keeps in files of
    their own and does not compress, and their state."""
    folder, rng = tmp_path_factory.mktemp("noisy"), np.random.default_rng(0)
    noise = jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype) if x.size > 9 else x,
        _state(size=2000),
    )
    checkpoints = Checkpoints(folder / FOLDER, keep=3)
    for step in (1, 2):
        checkpoints.save(step, noise, _facts())
    checkpoints.close()
    return folder, noise


def _copied(noisy, tmp_path):
    folder, state = noisy
    shutil.copytree(folder, tmp_path / "run")
    return tmp_path / "run", state


def _flip(item):
    """Changes one bit in the middle of an item's largest file."""
    path = max((p for p in item.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("item", ["student", "teacher", "rebuilder", "training"])
def test_a_bit_that_flipped_in_an_array_is_noticed_by_all_who_read_it(noisy, tmp_path, item):
    run, state = _copied(noisy, tmp_path)
    if item == "rebuilder":  # too small for a file of its own
        path = run / FOLDER / "2" / "facts" / "metadata"
        facts = json.loads(path.read_text())
        facts["digests"]["rebuilder/token"] = facts["digests"]["rebuilder/token"][:-1] + "x"
        path.write_text(json.dumps(facts))
    else:
        _flip(run / FOLDER / "2" / item)
    read = {"rebuilder": load_rebuilder}.get(item, load_run)
    says = rf"{FOLDER}/2 is damaged: the array \S+ of {item} is not what.*--which 1, or \S+/1 "
    if item == "training":
        assert load_run(run).step == 2  # not read
    else:
        with pytest.raises(DamagedError, match=says):
            read(run)
    assert read(run, 1)
    checkpoints = Checkpoints(run / FOLDER, keep=3)
    with pytest.raises(DamagedError, match=says):
        checkpoints.restore(2, _like(state))
    _assert_equal(checkpoints.restore(1, _like(state))[0], state)
    checkpoints.close()


def test_a_bit_that_flipped_in_a_converted_folder_is_noticed(tmp_path):
    rng = np.random.default_rng(0)
    tree = {"params": {"w": rng.standard_normal((40, 50), np.float32).T}, "batch_stats": {}}
    save_network(tmp_path / "net", tree, {**_facts(), "weights": {}})
    np.testing.assert_array_equal(
        load_run(tmp_path / "net").student["params"]["w"], tree["params"]["w"]
    )
    _flip(tmp_path / "net" / FOLDER / "0" / "student")
    with pytest.raises(DamagedError, match="the array params/w of student is not what was saved"):
        load_run(tmp_path / "net")


def _file(how, folder):
    """Damages one file of a checkpoint; the name that its line has to hold."""
    item = folder / "student"
    data = max((item / "ocdbt.process_0" / "d").iterdir(), key=lambda p: p.stat().st_size)
    facts = folder / "facts" / "metadata"
    if how == "cut data":
        data.write_bytes(data.read_bytes()[:100])
        return "params.w/0"  # TensorStore tells the array, not its file
    if how == "no data":
        data.unlink()
        return "params.w/0"  # TensorStore tells the array, not its file
    if how in ("_METADATA", "manifest.ocdbt"):
        (item / how).unlink()
        return f"student/{how}"
    if how == "_sharding":
        (item / how).write_text("")
        return "student/_sharding"
    facts.write_text(how)
    return "facts/metadata"


@pytest.mark.parametrize(
    "how",
    [
        *("cut data", "no data", "_METADATA", "manifest.ocdbt", "_sharding"),
        *("{}", "[1]", "null", "[" * 100_000, '{"config": []}', '{"config": {}}'),
        *('{"config": {}, "scores": [1]}', '{"config": {}, "digests": {"a": 1}}'),
        *('{"config": {}, "sentinel": {"steps": 1}}', '{"config": {"evaluation": 1}}'),
        *('{"config": {}, "state_version": "1"}', '{"config": {}, "weights": {"missing": 1}}'),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it_and_the_checkpoint_before(
    noisy, tmp_path, how, capfd
):
    run, state = _copied(noisy, tmp_path)
    name = _file(how, run / FOLDER / "2")
    with pytest.raises(DamagedError, match=r"--which 1, or \S+/1 ") as caught:
        load_run(run, 2)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
    # A resume knows names and shapes from its own state, and what it gets is verified.
    if how not in ("_METADATA", "_sharding", '{"config": {}}'):
        try:
            checkpoints = Checkpoints(run / FOLDER, keep=3)
            line = (*checkpoints.damaged, None)[0] or checkpoints.restore(2, _like(state))
        except DamagedError as error:
            line = str(error)
        assert "2 is damaged" in str(line)
        assert capfd.readouterr().err == ""


def test_a_single_checkpoint_with_damaged_facts_is_not_set_aside(noisy, tmp_path):
    run, _ = _copied(noisy, tmp_path)
    shutil.rmtree(run / FOLDER / "1")
    _file("[]", run / FOLDER / "2")
    with pytest.raises(DamagedError, match=r"facts/metadata is a list.*none before it"):
        Checkpoints(run / FOLDER, keep=3)
    assert [p.name for p in (run / FOLDER).iterdir()] == ["2"]


def _refusals():
    exhausted = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
    return [exhausted, PermissionError(13, "Permission denied"), MemoryError(), RuntimeError("odd")]


@pytest.mark.parametrize("error", _refusals(), ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["restoring", "reading", "opening"])
def test_what_the_machine_refuses_is_one_line_and_no_damage(
    noisy, tmp_path, monkeypatch, where, error
):
    run, state = _copied(noisy, tmp_path)

    def refuse(*_, **__):
        raise error

    def read():
        checkpoints = Checkpoints(run / FOLDER, keep=3)
        if where == "restoring":
            monkeypatch.setattr(checkpoints._manager, "restore", refuse)
        return checkpoints.restore(2, _like(state)) if where == "restoring" else load_run(run)

    if where == "opening":
        monkeypatch.setattr(saved, "json", None)  # not asked: the file is not read
        monkeypatch.setattr("pathlib.Path.read_text", refuse)
    elif where == "reading":
        monkeypatch.setattr(saved, "_arrays", refuse)
    with pytest.raises(RunError, match=r"could not be re.* Nothing was changed") as caught:
        read()
    assert not isinstance(caught.value, DamagedError)
    assert sorted(p.name for p in (run / FOLDER).iterdir()) == ["1", "2"]


def test_the_state_of_other_code_and_one_without_its_teacher_are_no_damage(noisy, tmp_path):
    run, state = _copied(noisy, tmp_path)
    checkpoints = Checkpoints(run / FOLDER, keep=3)
    params = {**state.params, "segmentor": {**state.params["segmentor"], "new": jnp.ones(3)}}
    with pytest.raises(RunError, match=r"of another state.*student/params/new is not there") as one:
        checkpoints.restore(2, _like(state.replace(params=params)))
    shutil.rmtree(run / FOLDER / "2" / "teacher")
    with pytest.raises(RunError, match="its folder 'teacher' is not there. Put it back") as two:
        checkpoints.restore(2, _like(state))
    assert not isinstance(one.value, DamagedError)
    assert not isinstance(two.value, DamagedError)
    checkpoints.close()
    assert load_run(run).teacher is None


def test_a_checkpoint_of_before_digests_opens_and_says_that_it_is_unverified(
    noisy, tmp_path, capsys
):
    run, state = _copied(noisy, tmp_path)
    load_run(run)
    assert capsys.readouterr().err == ""
    path = run / FOLDER / "2" / "facts" / "metadata"
    facts = json.loads(path.read_text())
    del facts["digests"]
    path.write_text(json.dumps(facts))
    assert load_run(run).step == 2
    assert capsys.readouterr().err.count("arrays are not verified") == 1
    checkpoints = Checkpoints(run / FOLDER, keep=3)
    _assert_equal(checkpoints.restore(2, _like(state))[0], state)
    checkpoints.close()
    assert capsys.readouterr().err.count("arrays are not verified") == 1


def test_an_old_checkpoint_whose_deletion_is_killed_is_none_and_goes_later(
    noisy, tmp_path, monkeypatch
):
    run, state = _copied(noisy, tmp_path)

    class Killed(BaseException):
        pass

    def killed(folder, **_):
        if folder.exists():
            (folder / "student" / "_METADATA").unlink()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(saved.shutil, "rmtree", killed)
        checkpoints = Checkpoints(run / FOLDER, keep=1)
        with pytest.raises(Killed):
            checkpoints.close()
    assert saved.steps_in(run / FOLDER) == [2]
    again = Checkpoints(run / FOLDER, keep=1)
    again.save(3, state, _facts())
    again.close()
    assert sorted(p.name for p in (run / FOLDER).iterdir()) == ["3"]
