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
from mrm_jax.config import Classes, Config, Data, Domain, UsageError
from mrm_jax.train.checkpoint import FOLDER, Checkpoints, DamagedError, load_run
from mrm_jax.train.saved import BEST_BY
from mrm_jax.types import RunError, TrainState

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
        "import jax; from mrm_jax.train.checkpoint import load_run; assert len(jax.devices()) == 1;"
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
        with pytest.raises(DamagedError, match="does not open"):
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
