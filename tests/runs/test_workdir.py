import dataclasses
import json
import shlex
import subprocess
import sys

import pytest
from refusals import refused

import mrm_jax
from mrm_jax.config import Config, Train
from mrm_jax.runs import workdir

CONFIG = Config()


def _begun(path, config=CONFIG):
    with workdir.opened_workdir(path, config) as folder:
        workdir.begin(folder, config, {"devices": []})


def test_a_run_of_the_same_config_may_go_on(tmp_path):
    _begun(tmp_path / "a" / "run")
    _begun(tmp_path / "a" / "run")


@pytest.mark.parametrize("content", ["nothing", "lock"])
def test_a_folder_without_anything_in_it_may_be_used(tmp_path, content):
    if content == "lock":
        (tmp_path / ".lock").touch()  # a command that was killed before its first step
    _begun(tmp_path, Config(seed=1))


def _fails_after_making(path, *names):
    def start():
        with workdir.opened_workdir(path, CONFIG) as folder:
            for name in names:
                (folder / name).mkdir(parents=True)
            raise ValueError("no weights")

    with pytest.raises(ValueError, match="no weights"):
        start()


def test_a_start_that_fails_before_its_first_step_leaves_nothing(tmp_path):
    _fails_after_making(tmp_path / "new", "checkpoints", "frozen/checkpoints/0")
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    _fails_after_making(tmp_path / "empty", "checkpoints")
    assert list((tmp_path / "empty").iterdir()) == []
    _fails_after_making(tmp_path / "full", "checkpoints/3")
    assert (tmp_path / "full" / "checkpoints" / "3").is_dir()


def test_a_run_that_began_keeps_all_it_has_when_it_fails_later(tmp_path):
    _begun(tmp_path)
    _fails_after_making(tmp_path, "checkpoints", "frozen")
    assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "checkpoints", "frozen", ".lock"}


def test_another_run_is_refused_by_its_first_field_with_both_values(tmp_path):
    _begun(tmp_path)
    other = dataclasses.replace(CONFIG, train=Train(steps=7, batch=4))
    with refused("config.train.steps", 7) as caught:
        _begun(tmp_path, other)
    assert "was 40000 there" in str(caught.value)


def _with_source(path):
    data = CONFIG.data
    return dataclasses.replace(
        CONFIG,
        data=dataclasses.replace(data, source=dataclasses.replace(data.source, path=path)),
    )


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_goes_on_where_its_data_moved_and_nowhere_else(tmp_path, kept):
    """`kept`: environment.json says what they were; else they are looked at where they were."""
    held = {"old": "a", "new": "a", "other": "b"}

    def identify(config):
        name = config.data.source.path
        return {"source": held[name]} if name in held else {}

    with workdir.opened_workdir(tmp_path, _with_source("old"), identify) as folder:
        known = {workdir.DATA: identify(_with_source("old"))} if kept else {}
        workdir.begin(folder, _with_source("old"), known)
    workdir.check_workdir(tmp_path, _with_source("new"), identify)
    for path in ("other", "gone"):
        with refused("config.data.source.path", path, way_out="new folder"):
            workdir.check_workdir(tmp_path, _with_source(path), identify)
    elsewhere = dataclasses.replace(_with_source("new"), seed=1)
    with refused("config.seed", 1):
        workdir.check_workdir(tmp_path, elsewhere, identify)


def test_more_steps_on_a_finished_run_are_refused_with_the_way_to_train_on(tmp_path):
    _begun(tmp_path, Config(train=Train(steps=6)))
    more = Config(train=Train(steps=9))
    with refused("config.train.steps", 9, way_out="Use the same config"):
        workdir.check_workdir(tmp_path, more)
    (tmp_path / "checkpoints" / "6").mkdir(parents=True)
    way_out = f"new folder and --config.train.init_from={tmp_path}."
    with refused("--workdir", tmp_path, way_out=way_out):
        workdir.check_workdir(tmp_path, more)
    with refused("config.train.steps", 5, way_out="Use the same config"):
        workdir.check_workdir(tmp_path, Config(train=Train(steps=5)))


def test_runtime_fields_may_differ_and_are_stored_as_they_are_now(tmp_path):
    _begun(tmp_path)
    _begun(tmp_path, dataclasses.replace(CONFIG, train=Train(log_every=3, keep=9)))
    assert json.loads((tmp_path / "config.json").read_text())["train"]["log_every"] == 3


def test_the_hash_is_of_fields_that_change_results(tmp_path):
    runtime = dataclasses.replace(CONFIG, train=Train(log_every=3))
    assert workdir.config_hash(runtime) == workdir.config_hash(CONFIG)
    assert workdir.config_hash(Config(seed=1)) != workdir.config_hash(CONFIG)


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("do not touch")
    with refused("--workdir", tmp_path, way_out="empty folder"):
        _begun(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with refused("--workdir", tmp_path / "file", way_out="give a folder"):
        _begun(tmp_path / "file")


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with refused("--workdir", tmp_path / "file" / "run"):
        _begun(tmp_path / "file" / "run")


def test_a_config_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": ')
    with refused(tmp_path / "config.json", way_out="new folder"):
        _begun(tmp_path)


def test_two_runs_at_once_in_one_folder_are_refused(tmp_path):
    with (
        workdir.opened_workdir(tmp_path, CONFIG),
        refused("--workdir", tmp_path, kind=workdir.InUseError),
        workdir.opened_workdir(tmp_path, CONFIG),
    ):
        pass
    _begun(tmp_path)


def test_the_command_of_a_run_can_be_pasted(monkeypatch):
    words = ["--workdir", "x'; touch F; '", "--config=a b.py:tiny,c=(1,2)", "#", ""]
    monkeypatch.setattr(sys, "argv", ["/bin/mrm-jax", *words])
    assert shlex.split(workdir.command(), comments=True)[-5:] == words


def test_the_revision_is_that_of_our_checkout_or_none(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = ["git", *who, "-C", str(tmp_path), *words]
        return subprocess.run(done, check=True, capture_output=True, text=True).stdout.strip()

    file = tmp_path / "mrm_jax/__init__.py"
    file.parent.mkdir()
    file.write_text("")
    (tmp_path / "mine.txt").write_text("")
    monkeypatch.setattr(mrm_jax, "__file__", str(file))
    assert workdir._git_revision() is None
    git("init", "-q")
    git("add", "mine.txt")
    git("commit", "-qm", "theirs")
    assert workdir._git_revision() is None  # installed below somebody's repository
    git("add", "mrm_jax")
    git("commit", "-qm", "ours")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))  # as hooks of another one set it
    revision = workdir._git_revision()
    monkeypatch.delenv("GIT_DIR")
    assert revision == git("rev-parse", "HEAD")
    file.write_text("changed")
    assert workdir._git_revision() == f"{revision}-dirty"
    other = tmp_path / "venv/site-packages/mrm_jax/__init__.py"
    other.parent.mkdir(parents=True)
    other.write_text("")
    git("add", ".")
    git("commit", "-qm", "a copy")
    monkeypatch.setattr(mrm_jax, "__file__", str(other))
    assert workdir._git_revision() is None


def test_a_lock_that_is_a_link_empties_no_other_file(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(tmp_path / "precious")
    with workdir.held(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"
