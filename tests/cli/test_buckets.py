"""Verbs on paths in a bucket: what they write is what they write for the same on this machine."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from refusals import refused

from mrm_jax import main
from mrm_jax.convert.reader import read_weights, write_weights
from mrm_jax.errors import UsageError
from mrm_jax.paths import local, located

sys.path.insert(0, str(Path(__file__).parents[1] / "runs"))
import bucket

TINY = Path(__file__).parents[2] / "configs" / "tiny.py"


@pytest.fixture
def gs(monkeypatch):
    bucket.install_for_checkpoints(monkeypatch)
    return "gs://bucket"


def run(*words):
    return main.run([str(word) for word in words])


def test_evaluate_and_predict_read_from_a_bucket_and_write_there(gs, workdir, dataset, tmp_path):
    bucket.upload(workdir, f"{gs}/a run")
    bucket.upload(dataset, f"{gs}/set")
    command = ("evaluate", "--network", "student", "--workdir")
    assert run(*command, workdir, "--to", tmp_path, "--save_predictions", tmp_path / "ids") == 0
    there = ("--path", f"{gs}/set", "--save_predictions", f"{gs}/ids")
    assert run(*command, f"{gs}/a run", *there) == 0
    here, remote = tmp_path / "evaluation.json", located(f"{gs}/a run/evaluation.json")
    texts = [path.read_text().replace(f"{gs}/set", str(dataset)) for path in (here, remote)]
    scores = [json.loads(text) for text in texts]
    for found in scores:
        del found["checkpoint"], found["seconds"]
    assert scores[0] == scores[1]
    for path in (tmp_path / "ids").rglob("*.png"):
        name = path.relative_to(tmp_path).as_posix()
        assert located(f"{gs}/{name}").read_bytes() == path.read_bytes()

    run("predict", dataset / "images", "--checkpoint", workdir, "--to", tmp_path / "out")
    run("predict", f"{gs}/set/images", "--checkpoint", f"{gs}/a run", "--to", f"{gs}/out")
    assert len(bucket.names(f"{gs}/out")) == 3 * 4 + 2
    for name in bucket.names(f"{gs}/out"):
        content = located(f"{gs}/out/{name}").read_bytes()
        content = content.replace(f"{gs}/set".encode(), str(dataset).encode())
        assert content == (tmp_path / "out" / name).read_bytes()
    picture = f"{gs}/set/images/town/1.png"
    run("predict", picture, "--checkpoint", f"{gs}/a run", "--to", tmp_path / "one")
    assert (tmp_path / "one/1.png").read_bytes() == (tmp_path / "out/town/1.png").read_bytes()
    with pytest.raises(UsageError, match=f"predict: {gs}/none does not exist"):
        run("predict", f"{gs}/none", "--checkpoint", workdir, "--to", tmp_path / "two")
    with refused("--to", way_out="give another one"):
        run("predict", f"{gs}/out", "--checkpoint", workdir, "--to", f"{gs}/out")


def test_files_of_weights_in_a_bucket_are_read_as_here(gs, tmp_path):
    for suffix in (".npz", ".safetensors"):
        name = f"weights{suffix}"
        write_weights(tmp_path / name, {"a.weight": np.arange(6, dtype=np.float32)}, {})
        bucket.upload(tmp_path, gs)
        here, there = read_weights(tmp_path / name), read_weights(f"{gs}/{name}")
        assert str(there.path) == f"{gs}/{name}"
        assert there.sha256 == here.sha256
        np.testing.assert_array_equal(there.tensors["a.weight"], here.tensors["a.weight"])
    located(f"{gs}/torn.npz").write_bytes((tmp_path / "weights.npz").read_bytes()[:-30])
    with pytest.raises(UsageError, match=f"{gs}/torn.npz") as refused:
        run("convert", "--from", f"{gs}/torn.npz", "--dry_run")
    assert "mrm_jax_" not in str(refused.value)  # the copy that was looked at
    with pytest.raises(UsageError, match=f"{gs}/none.npz is not there"):
        run("convert", "--from", f"{gs}/none.npz", "--dry_run")


REFUSED = {
    "another address": (("train", "--workdir", "memory://b/r"), "neither a path on this machine"),
    "one slash": (("train", "--workdir", "gs:/b/r"), "begins with one of gs://"),
    "prepare": (("prepare", "gta", "--from", "raw", "--to", "gs://b/s"), "gcloud storage cp -r"),
    "prepare from": (("prepare", "gta", "--from", "gs://b/s", "--to", "set"), "on this machine"),
    "check": (("check", "gta", "--from", "gs://b/s"), "on this machine"),
    "convert": (("convert", "--from", "x.npz", "--to", "gs://b/s"), "on this machine"),
    "export": (
        ("export", "--checkpoint", "x", "--format", "torch", "--to", "gs://b/s"),
        "on this machine",
    ),
    "ablate": (("ablate", "--workdir", "gs://b/s", "--arm", "dacs"), "kept on this machine"),
    "report": (("report", "--workdir", "gs://b/none"), "gs://b/none: there is no such folder"),
    "evaluate": (("evaluate", "--workdir", "gs://b/none"), "gs://b/none is not a folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_place_that_a_verb_cannot_use_is_one_line(case, gs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, message = REFUSED[case]
    config = [f"--config={TINY}"] if words[0] in ("train", "ablate") else []
    with pytest.raises(UsageError, match=message) as refused:
        run(*words, *config)
    assert "\n" not in str(refused.value)
    assert not str(refused.value).endswith("..")
    assert not list(tmp_path.iterdir())  # such as a local folder gs:
    assert not bucket.Bucket.store


def test_a_missing_package_is_told_by_the_flag_that_needs_it(monkeypatch):
    import fsspec

    def missing(scheme):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    line = r"train: argument --workdir: s3://b/r lies .*missing \(Install s3fs.*install gcsfs\.$"
    with pytest.raises(UsageError, match=line):
        run("train", f"--config={TINY}", "--workdir", "s3://b/r")


def test_only_a_bucket_that_orbax_writes_to_holds_checkpoints(monkeypatch):
    import fsspec

    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda scheme: None)  # s3fs is there
    for words in (("train", f"--config={TINY}", "--workdir"), ("evaluate", "--checkpoint")):
        with pytest.raises(UsageError, match="s3://b/r: checkpoints lie in gs:// or on this mach"):
            run(*words, "s3://b/r")


def test_ablate_lists_commands_for_a_bucket(gs, capsys):
    words = ("ablate", f"--config={TINY}", "--workdir", f"{gs}/a", "--arm", "dacs", "--list")
    assert run(*words, "--seeds", "1") == 0
    assert f"--workdir {gs}/a/dacs/seed0" in capsys.readouterr().out


def test_what_a_buckets_package_raises_is_one_line(monkeypatch, capsys):
    class HttpError(Exception):
        __module__ = "gcsfs.retry"

    def run(words):
        raise HttpError("Permission denied,\n 403")

    monkeypatch.setattr(main, "run", run)
    monkeypatch.setattr(sys, "argv", ["mrm-jax"])
    with pytest.raises(SystemExit, match="1"):
        main.entry()
    told = capsys.readouterr().err
    assert (
        told
        == "mrm_jax: A bucket could not be read or written: HttpError: Permission denied, 403.\n"
    )


def test_local_paths_are_pathlibs():
    assert type(located("runs/one")) is type(Path("runs/one"))
    assert located("runs/one") == local("runs/one") == Path("runs/one")
    assert located("~/x") == Path.home() / "x"
    assert located("a:b/c") == Path("a:b/c")
