"""`doctor` names what would stop a run, and its way out."""

import json
from pathlib import Path

import jax
import pytest
from PIL import Image
from refusals import refused

from mrm_jax import main
from mrm_jax.cli import ablate
from mrm_jax.config import Config, Mesh
from mrm_jax.machine import compile_cache, doctor

TINY = f"--config={Path(__file__).parents[2] / 'configs' / 'tiny.py'}"


def checks(capsys, *words):
    code = main.run(["doctor", "--json", *words])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return code, {line["name"]: line for line in lines}


def test_a_machine_that_can_run_is_told_so_and_nothing_stays_behind(tmp_path, capsys):
    code, found = checks(capsys, TINY, "--workdir", str(tmp_path / "runs" / "one"))
    assert code == 0
    assert {line["status"] for line in found.values()} <= {"ok", "warning"}
    assert list(found) == [
        *("versions", "devices", "backend", "mesh", "compile cache", "extras"),
        *("disk", "workdir", "data"),
    ]
    assert f"{jax.device_count()} x cpu" in found["devices"]["found"]
    assert "8 source, 8 target, 3 scored; order" in found["data"]["found"]
    assert list(tmp_path.iterdir()) == []
    assert main.run(["doctor"]) == 0
    assert "ok      mesh: data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "name", "message"),
    [
        ("--config.mesh.platform=tpu", "backend", "config.mesh.platform asks for tpu"),
        ("--config.train.batch=3", "mesh", "config.train.batch is 3"),
        ("--config.data.target.path=nowhere", "data", "there is no folder nowhere"),
    ],
)
def test_what_would_stop_a_run_is_an_error_with_a_way_out(flag, name, message, capsys):
    code, found = checks(capsys, TINY, flag)
    assert code == 1
    assert found[name]["status"] == "error"
    assert message in found[name]["found"]
    assert found[name]["fix"]


def test_all_that_is_missing_is_told_at_once(capsys, tmp_path):
    """A config that lacks an option, a folder in a bucket of no kind, weights, and three sets."""
    words = [
        *("--config", "gta_to_cityscapes:daformer", f"--config.data.source.path={tmp_path}/gta"),
        f"--config.data.target.path={tmp_path}/cityscapes",
        f"--config.data.evaluation.path={tmp_path}/cityscapes/val",
        *("--config.method.feature_distance.source=checkpoint", "--workdir=s3x://a"),
        f"--config.model.encoder.weights={tmp_path}/mit_b5.npz",
    ]
    assert main.run(["doctor", "--json", *words]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    errors = [(line["name"], line["found"]) for line in lines if line["status"] == "error"]
    assert [name for name, _ in errors] == ["config", "workdir", "weights", *["data"] * 3]
    assert all(line["fix"] for line in lines if line["status"] == "error")
    told = " ".join(found for _, found in errors)
    for what in ("feature_distance.checkpoint", "s3x://a", "mit_b5.npz", "gta", "cityscapes/val"):
        assert what in told


def test_a_target_of_ones_own_is_what_training_takes_it_for(capsys, tmp_path):
    """The only thing that is missing is then the published source; `config` shows it, too."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    words = ["--config=gta_to_cityscapes:dacs", f"--config.data.target.path={tmp_path}"]
    assert main.run(["doctor", "--json", *words, f"--config.data.source.path={tmp_path}/no"]) == 1
    told = capsys.readouterr()
    found = [line for line in map(json.loads, told.out.splitlines()) if line["status"] == "error"]
    assert [(line["name"], "data.source" in line["found"]) for line in found] == [("data", True)]
    assert str(tmp_path) in told.err
    assert main.run(["config", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"data.target.images = ''", "data.evaluation.labels = None"} <= {*lines}


def test_no_line_ends_in_two_full_stops(capsys):
    assert main.run(["doctor", TINY, "--config.data.target.path=nowhere"]) == 1
    assert ".." not in capsys.readouterr().out


def test_a_workdir_that_cannot_be_written_is_an_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, found = checks(capsys, "--workdir", str(tmp_path / "file" / "run"))
    assert (code, found["workdir"]["status"]) == (1, "error")


@pytest.mark.parametrize(
    ("wanted", "used", "seen", "variable", "status"),
    [
        ("any", "cpu", [], "", "ok"),
        ("any", "cpu", ["/dev/nvidia0"], "", "error"),
        ("any", "cpu", ["/dev/nvidia0"], "cpu", "ok"),
        ("cpu", "cpu", ["/dev/nvidia0"], "", "ok"),
        ("any", "gpu", ["/dev/nvidia0"], "", "ok"),
        ("tpu", "cpu", [], "", "error"),
        ("cpu", "gpu", ["/dev/nvidia0"], "", "error"),
    ],
)
def test_the_cpu_beside_an_accelerator_is_an_error_unless_it_was_asked_for(
    wanted, used, seen, variable, status
):
    assert doctor.check_platform(wanted, used, seen, variable).status == status


def test_training_refuses_another_kind_of_device(tmp_path):
    with refused("config.mesh.platform", way_out="install jax[tpu] or jax[cuda12] and"):
        doctor.require_platform(Config(mesh=Mesh(platform="gpu")))


def test_programs_are_kept_beside_the_workdir_unless_the_user_says_where(tmp_path, monkeypatch):
    there = jax.config.jax_compilation_cache_dir
    assert compile_cache.keep_programs(tmp_path / "runs" / "one") == there
    monkeypatch.delenv(compile_cache.VARIABLE)
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        folder = compile_cache.keep_programs(tmp_path / "runs" / "one")
        assert folder == str(tmp_path / "runs" / ".jax_cache")
        assert jax.config.jax_compilation_cache_dir == folder
    finally:
        jax.config.update("jax_compilation_cache_dir", there)


def test_the_runs_of_a_comparison_share_one_folder_of_programs_unless_that_is_off(
    tmp_path, monkeypatch
):
    kept = []
    monkeypatch.setattr(ablate, "work", lambda jobs: 0)
    monkeypatch.setattr(ablate, "_tables", lambda *_: 0)
    monkeypatch.setattr(compile_cache, "keep_programs", kept.append)
    words = ["ablate", TINY, "--workdir", str(tmp_path / "all"), "--arm", "dacs"]
    assert main.run([*words, "--seeds", "2"]) == 0
    assert kept == [tmp_path / "all"]
    assert main.run([*words, "--seeds", "2", "--config.train.compile_cache=false"]) == 0
    assert len(kept) == 1
