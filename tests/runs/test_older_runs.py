"""Runs outlive versions: folders as the code of before wrote them (`tests/runs_before`) and edited
copies of them resume, evaluate and predict, or say in one line why not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

import mrm_jax
from mrm_jax import options
from mrm_jax.checks import stored
from mrm_jax.config import Config, Train
from mrm_jax.errors import UsageError
from mrm_jax.main import run
from mrm_jax.runs import workdir
from mrm_jax.runs.checkpoint import load_run
from mrm_jax.train import hooks, loop, programs, step

KEPT = Path(__file__).parents[1] / "runs_before"
RUNS = ("quickstart", "mic_hrda")
DECLARED = options.declared(Config)


@pytest.fixture(scope="module", autouse=True)
def _compiled_in_seconds():
    """Each program runs a few times at most: most of the time would go into optimising it."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A folder of the three runs, which tests do not change."""
    folder = tmp_path_factory.mktemp("before")
    for name in (*RUNS, "converted"):
        shutil.unpack_archive(KEPT / f"{name}.zip", folder)
    return folder


@pytest.fixture
def edit(before, tmp_path):
    """Copies a run and edits its config in config.json and in its checkpoints' facts."""

    def edit(change, name="quickstart"):
        path = tmp_path / name
        shutil.copytree(before / name, path)
        for file in (*path.glob("config.json"), *path.glob("checkpoints/*/facts/metadata")):
            values = json.loads(file.read_text())
            change(values if file.name == "config.json" else values["config"])
            file.write_text(json.dumps(values))
        return path

    return edit


def as_asked(path, **fields):
    """The config that a command would give to go on with the run."""
    return options.edited(workdir.read_config(path).config, fields)


def walk(config):
    """The program of a config, whose steps only count; its networks and state are the real ones."""

    def train_step(state, frozen, batch):
        del frozen, batch
        zero, shares = jnp.zeros(()), jnp.zeros(len(config.data.classes.names))
        metrics = {"total/loss": zero, "teacher/class_share": shares, "finite": jnp.bool_(True)}
        return replace(state, step=state.step + 1), metrics | {"teacher/confident_share": zero}

    return step.build_step(config)._replace(train_step=train_step, inspect=lambda *_: {})


def go_on(path, monkeypatch):
    """Trains to the end from where the run in `path` stopped."""
    monkeypatch.setattr(loop, "build_step", walk)
    monkeypatch.setattr(hooks, "evaluate_on_hosts", lambda *_, **__: {})
    monkeypatch.setattr(hooks, "select", lambda *_, **__: {})
    monkeypatch.setattr(hooks, "save_views", lambda *_, **__: None)
    monkeypatch.setattr(hooks, "write_report", lambda folder: folder)
    programs.shared.cache_clear()
    config = as_asked(path)
    with workdir.opened_workdir(path, config) as folder:
        return loop.train(config, folder)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_before_goes_on_with_the_state_that_it_stopped_with(
    edit, before, monkeypatch, name
):
    path = edit(lambda values: None, name)
    assert go_on(path, monkeypatch) == 0
    old, new = load_run(before / name), load_run(path)
    assert (old.step, new.step) == (2, 4)
    np.testing.assert_equal(new.student, old.student)
    np.testing.assert_equal(new.teacher, old.teacher)
    assert json.loads((path / "config.json").read_text())["mrm_jax"] == mrm_jax.__version__
    assert new.facts["mrm_jax"] == mrm_jax.__version__


@pytest.mark.parametrize("name", [*RUNS, "converted"])
def test_a_run_of_before_evaluates_and_predicts(edit, tmp_path, name):
    # By one picture at a time, as it predicts: one program for both.
    path = edit(lambda values: values["evaluation"].update(batch=1), name)
    words = ["--checkpoint", str(path), "--network", "student"]
    assert run(["evaluate", *words, "--to", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["protocol"]["pictures"] == 2
    metrics = path / "metrics.jsonl"
    if metrics.exists():
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        then = next(x["eval/student/mIoU"] for x in lines if "eval/student/mIoU" in x)
        assert found["mIoU"] == pytest.approx(then, abs=1e-3)
    picture = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    words = ["--checkpoint", str(path), "--to", str(tmp_path / "to")]
    assert run(["predict", str(tmp_path / "a.png"), *words]) == 0
    assert list((tmp_path / "to").iterdir())


def test_an_option_that_came_later_has_the_value_that_the_run_computed_with(edit, monkeypatch):
    path = edit(lambda values: values["method"].pop("threshold"))
    newer = replace(DECLARED["method.threshold"], since=options.Since("0.2.0", 0.5))
    monkeypatch.setattr(stored, "declared", lambda _: {**DECLARED, "method.threshold": newer})
    assert load_run(path).config.method.threshold == 0.5
    assert as_asked(path).method.threshold == 0.5
    with refused("config.method.threshold", 0.9):
        workdir.check_workdir(path, as_asked(path, **{"method.threshold": 0.9}))
    workdir.check_workdir(path, as_asked(path))


def test_without_a_word_on_it_an_option_that_is_missing_has_its_default(edit):
    def change(values):
        del values["method"]["mim"], values["mesh"], values["optimizer"]["eps"]

    path = edit(change)
    config = load_run(path).config
    assert (config.method.mim, config.optimizer.eps) == (Config().method.mim, 1e-8)
    workdir.check_workdir(path, config)


def test_options_that_were_renamed_or_removed_go_through_the_table(edit, monkeypatch, capsys):
    def change(values):
        values["method"]["confidence"] = values["method"].pop("threshold")
        values["train"]["turbo"] = False

    path = edit(change)
    monkeypatch.setitem(stored.RENAMED, "method.confidence", "method.threshold")
    monkeypatch.setitem(stored.REMOVED, "train.turbo", False)
    found = workdir.read_config(path)
    assert (found.config.method.threshold, found.remark) == (0.968, "")
    workdir.check_workdir(path, found.config)
    monkeypatch.setitem(stored.REMOVED, "train.turbo", True)
    assert load_run(path).step == 2
    assert "config.train.turbo=False, which this version" in capsys.readouterr().err
    with pytest.raises(UsageError, match="computes only as with True"):
        workdir.check_workdir(path, found.config)


def test_the_one_mlp_ratio_of_runs_before_holds_in_every_stage(before, edit):
    ratios = [workdir.read_config(before / name).config.model.encoder.mlp_ratios for name in RUNS]
    assert ratios == [(4, 4), (2, 2)]

    def damage(values):
        values["model"]["encoder"]["dims"] = 7

    with refused("config.model.encoder.dims", 7):
        workdir.read_config(edit(damage))


def test_the_table_names_options_that_there_are():
    assert set(stored.RENAMED.values()) <= set(DECLARED)
    assert not (set(stored.RENAMED) | set(stored.REMOVED)) & set(DECLARED)


def test_a_run_with_an_option_that_nobody_knows_opens_with_a_line_and_does_not_go_on(edit, capsys):
    def change(values):
        values["mrm_jax"] = "9.1.0"
        values["method"]["telepathy"] = {"weight": 0.5}

    path = edit(change)
    config = load_run(path).config
    unverified, line = capsys.readouterr().err.splitlines()
    assert "arrays are not verified" in unverified
    assert "written by mrm_jax 0.1.0" in line or "written by mrm_jax 9.1.0" in line
    assert "config.method.telepathy.weight=0.5" in line
    with pytest.raises(
        UsageError, match=r"mrm_jax 9\.1\.0 with config\.method\.telepathy"
    ) as found:
        workdir.check_workdir(path, config)
    assert "\n" not in str(found.value)
    assert (config.method.kind, config.train) == ("dacs", as_asked(path).train)


def test_ranges_are_asked_about_when_a_run_starts_and_not_when_it_is_opened(edit):
    path = edit(lambda values: values["method"].update(threshold=1.5))
    config = load_run(path).config
    assert config.method.threshold == 1.5
    with refused("config.method.threshold", 1.5):
        options.check_ranges(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1], "holds no config: '[1]'"),
        (None, "holds no config"),
        ({"train": 3}, "config.train is no group of options"),
        ({"seed": {"a": 1}}, "config.seed.a is a group, and config.seed is one option"),
        ({"seed": "0"}, "config.seed is '0'; it must be a whole number"),
        ({"data": {"crop": [1, 2, 3]}}, "config.data.crop is [1, 2, 3]; it must have 2 entries"),
        ({"method": {"kind": "telepathy"}}, "config.method.kind is 'telepathy'; it must be one of"),
    ],
)
def test_a_config_of_another_shape_is_refused_in_a_line_that_names_the_file(
    tmp_path, values, message
):
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UsageError) as found:
        workdir.check_workdir(tmp_path, Config(train=Train(steps=1)))
    assert str(tmp_path / "config.json") in str(found.value)
    assert message in str(found.value)
    assert "\n" not in str(found.value)
