"""Runs and pictures in buckets: against the same on this machine. Checkpoints of a run go to a
bucket by Orbax and TensorStore, whose own clients speak to it; here they go to a local folder."""

import signal
import sys
from dataclasses import replace
from pathlib import Path

import bucket
import numpy as np
import pytest
from toy_run import Toy

from mrm_jax.config import Domain, UsageError
from mrm_jax.data import datasets, pipeline, sources
from mrm_jax.paths import located
from mrm_jax.train import loop, mirror, programs, workdir
from mrm_jax.train.checkpoint import FOLDER, load_run

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import downloads
from test_prepare import _config, made


@pytest.fixture
def gs(monkeypatch):
    bucket.install(monkeypatch)
    return "gs://bucket"


def train(toy, remote, **overrides):
    """A run whose folder is `remote`, seen through a mirror."""
    config = toy.config(**overrides)
    programs.shared.cache_clear()
    with mirror.mirrored(remote) as mine, workdir.opened(mine.local, config) as folder:
        return loop.train(config, folder, mine)


def test_a_run_in_another_place_resumes_there_and_holds_what_a_local_one_holds(
    tmp_path, monkeypatch
):
    toy = Toy(tmp_path, monkeypatch)
    toy.train("whole")
    remote, real = tmp_path / "remote", loop._read

    def stop(run, done):
        if done.number == 3:
            signal.raise_signal(signal.SIGTERM)
        return real(run, done)

    remote.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(loop, "_read", stop)
        assert train(toy, remote) == 0
    assert (remote / "config.json").is_file()
    assert not (remote / "report.html").exists()
    assert train(toy, remote) == 0
    assert toy.lines("remote") == toy.lines("whole")
    assert toy.weight("last", "remote") == toy.weight("last", "whole")

    def kept(folder):
        names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        return {n for n in names if not n.startswith((FOLDER, ".", "events"))}

    assert kept(remote) == kept(tmp_path / "whole")
    other = toy.config(seed=5)
    with (
        pytest.raises(UsageError, match=r"belongs to another run: config\.seed"),
        mirror.mirrored(remote) as mine,
        workdir.opened(mine.local, other),
    ):
        pass


def test_small_files_go_to_a_bucket_and_come_back(gs, tmp_path):
    remote = located(f"{gs}/runs/one")
    with mirror.mirrored(remote) as mine:
        (mine.local / "metrics.jsonl").write_text("a\n")
        (mine.local / "views").mkdir()
        (mine.local / "views/1.png").write_bytes(b"png")
        (mine.local / ".lock").write_text("")
        mine.push()
        with open(mine.local / "metrics.jsonl", "a") as file:
            file.write("b\n")
    (remote / "checkpoints/2/student").mkdir(parents=True)
    (remote / "checkpoints/2/student/big").write_bytes(b"x")
    with mirror.mirrored(remote) as mine:
        found = {p.relative_to(mine.local).as_posix() for p in mine.local.rglob("*") if p.is_file()}
        assert found == {"metrics.jsonl", "views/1.png"}
        assert (mine.local / "metrics.jsonl").read_text() == "a\nb\n"


def test_pictures_and_prepared_sets_in_a_bucket_are_those_of_the_folder(gs, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    downloads.gta(tmp_path / "gta", count=4)
    downloads.acdc(tmp_path / "acdc")
    made("gta", tmp_path / "gta", tmp_path / "set", resize="native", shards=2)
    for name in ("gta", "acdc", "set"):
        bucket.upload(tmp_path / name, f"{gs}/data {name}")
    source = replace(datasets.GTA, resize=None)
    target = replace(datasets.ACDC, resize=None)
    batches = []
    for gta, acdc in (
        (tmp_path / "gta", tmp_path / "acdc"),
        (f"{gs}/data gta", f"{gs}/data acdc"),
        (f"{gs}/data set", f"{gs}/data acdc"),
    ):
        config = _config(replace(source, path=str(gta)), replace(target, path=str(acdc)))
        batches.append(list(pipeline.train_batches(config)))
    for other in batches[1:]:
        for one, two in zip(batches[0], other, strict=True):
            np.testing.assert_array_equal(one.source.image, two.source.image)
            np.testing.assert_array_equal(one.source.label, two.source.label)
            np.testing.assert_array_equal(one.target.image, two.target.image)
    assert len(list((tmp_path / "cache/mrm_jax/records").iterdir())) == 2


def test_what_is_not_in_the_bucket_is_one_line(gs):
    with pytest.raises(UsageError, match="there is no folder gs://bucket/nothing"):
        sources.open_pictures(Domain(path=f"{gs}/nothing"), field="config.data.target")
    with pytest.raises(UsageError, match="gs://bucket/none is not a folder"):
        load_run(f"{gs}/none")


def test_a_bucket_without_its_package_names_the_extra(monkeypatch):
    import fsspec

    def missing(scheme):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(UsageError, match=r"for gs:// install mrm-jax\[gcs\]"):
        located("gs://bucket/run")


def test_preparing_into_a_bucket_is_refused_with_the_way_out(gs, tmp_path):
    from mrm_jax import main

    downloads.gta(tmp_path / "raw", count=1)
    words = ["prepare", "gta", "--from", str(tmp_path / "raw"), "--to", f"{gs}/set"]
    with pytest.raises(UsageError, match="prepare into a local folder"):
        main.run(words)
