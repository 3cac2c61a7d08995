"""Runs and pictures in buckets: against the same on this machine."""

import json
import signal
from dataclasses import replace

import bucket
import downloads
import numpy as np
import pytest
from refusals import refused
from test_prepare import _config, made
from toy_run import Toy

from mrm_jax.config import Domain
from mrm_jax.data import datasets, labels, pipeline, sources
from mrm_jax.data.class_statistics import class_statistics
from mrm_jax.data.prepared import manifest, reading
from mrm_jax.errors import RunError, UsageError
from mrm_jax.paths import located
from mrm_jax.runs import mirror, saved, workdir
from mrm_jax.runs.checkpoint import FOLDER, Checkpoints, load_run
from mrm_jax.train import loop, programs


@pytest.fixture
def gs(monkeypatch):
    bucket.install(monkeypatch)
    return "gs://bucket"


@pytest.fixture
def run_folder(monkeypatch):
    bucket.install_for_checkpoints(monkeypatch)
    return located("gs://bucket/runs/one")


def train(toy, remote, **overrides):
    """A run whose folder is `remote`, seen through a mirror."""
    config = toy.config(**overrides)
    programs.shared.cache_clear()
    with mirror.mirrored(remote) as mine, workdir.opened_workdir(mine.local, config) as folder:
        return loop.train(config, folder, mine)


def stopped_after(number, monkeypatch, start):
    """Runs `start`, which is asked to stop when step `number` is over."""
    real = loop._read

    def stop(run, done):
        if done.number == number:
            signal.raise_signal(signal.SIGTERM)
        return real(run, done)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_read", stop)
        assert start() == 0


def brought(toy, remote, tmp_path):
    """The small files of a run in the bucket, as a local folder `remote` that Toy reads."""
    for name in bucket.names(remote):
        if not name.startswith(FOLDER):
            path = tmp_path / "remote" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((remote / name).read_bytes())
    return tmp_path / "remote"


def kept(folder):
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return {n for n in names if not n.startswith((FOLDER, ".", "events"))}


def weight(folder, which="last"):
    return load_run(folder, which).student["params"]["scale"]


def test_a_run_in_a_bucket_resumes_there_and_holds_what_a_local_one_holds(
    tmp_path, monkeypatch, run_folder, capsys
):
    toy = Toy(tmp_path, monkeypatch)
    toy.train("whole")
    stopped_after(3, monkeypatch, lambda: train(toy, run_folder))
    assert (run_folder / "config.json").is_file()
    assert not (run_folder / "report.html").exists()
    capsys.readouterr()
    assert train(toy, run_folder) == 0
    shown = capsys.readouterr().out
    assert "report: gs://bucket/runs/one/report.html" in shown
    assert "mrm_jax_" not in shown  # the folder that is gone now
    here = brought(toy, run_folder, tmp_path)
    assert kept(here) == kept(tmp_path / "whole")
    assert toy.lines("remote") == toy.lines("whole")
    for which in ("last", "best", 4):
        assert weight(run_folder, which) == weight(tmp_path / "whole", which)
    assert weight("gs://bucket/runs/one/checkpoints/4") == weight(tmp_path / "whole", 4)
    with refused("config.seed", 5) as caught:
        train(toy, run_folder, seed=5)
    assert "gs://bucket/runs/one belongs" in str(caught.value)


def test_the_lines_before_a_checkpoint_are_in_the_bucket_before_it(
    tmp_path, monkeypatch, run_folder
):
    toy, real, seen = Toy(tmp_path, monkeypatch), Checkpoints.save, {}

    def save(checkpoints, step, state, facts):
        text = (run_folder / "metrics.jsonl").read_text()
        seen[step] = max(json.loads(line)["step"] for line in text.splitlines())
        real(checkpoints, step, state, facts)

    monkeypatch.setattr(Checkpoints, "save", save)
    assert train(toy, run_folder) == 0
    assert seen == {step: step for step in (2, 3, 4, 6)}


def test_a_save_that_was_cut_short_in_a_bucket_is_no_checkpoint(tmp_path, monkeypatch, run_folder):
    toy = Toy(tmp_path, monkeypatch)
    toy.train("whole")
    stopped_after(4, monkeypatch, lambda: train(toy, run_folder))
    step = load_run(run_folder).step
    newest = run_folder / FOLDER / str(step)
    times = json.loads((newest / "_CHECKPOINT_METADATA").read_text())
    assert times["commit_timestamp_nsecs"]
    # As Orbax leaves it when it is killed between the arrays and the end.
    (newest / "_CHECKPOINT_METADATA").write_text(
        json.dumps({**times, "commit_timestamp_nsecs": None})
    )
    (newest / "commit_success.txt").unlink()
    assert load_run(run_folder).step < step
    assert train(toy, run_folder) == 0
    brought(toy, run_folder, tmp_path)
    assert toy.lines("remote") == toy.lines("whole")
    assert weight(run_folder) == weight(tmp_path / "whole")


def test_a_deletion_that_is_killed_in_a_bucket_leaves_no_checkpoint(
    tmp_path, monkeypatch, run_folder
):
    toy = Toy(tmp_path, monkeypatch)
    stopped_after(2, monkeypatch, lambda: toy.train("begun"))
    bucket.upload(tmp_path / "begun", run_folder)
    newest = run_folder / FOLDER / str(saved.steps_in(run_folder / FOLDER)[-1])

    def killed(folder):
        (folder / "_CHECKPOINT_METADATA").unlink()  # of all files the one that goes first
        raise KeyboardInterrupt

    monkeypatch.setattr(type(newest), "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        saved.delete(newest)
    assert int(newest.name) not in saved.steps_in(run_folder / FOLDER)


def test_a_run_that_was_copied_into_a_bucket_goes_on_there(tmp_path, monkeypatch, run_folder):
    toy = Toy(tmp_path, monkeypatch)
    toy.train("whole")
    stopped_after(3, monkeypatch, lambda: toy.train("begun"))
    bucket.upload(tmp_path / "begun", run_folder)
    step = load_run(run_folder).step
    assert step == load_run(tmp_path / "begun").step
    assert train(toy, run_folder, train__keep=9) == 0
    assert load_run(run_folder, step).step == step  # Orbax had taken it for a save cut short
    brought(toy, run_folder, tmp_path)
    assert toy.lines("remote") == toy.lines("whole")
    assert weight(run_folder) == weight(tmp_path / "whole")


def test_checkpoints_in_a_bucket_without_a_config_are_other_things(
    tmp_path, monkeypatch, run_folder
):
    toy = Toy(tmp_path, monkeypatch)
    (run_folder / FOLDER / "4").mkdir(parents=True)
    (run_folder / FOLDER / "4" / "mine").write_text("")
    with refused("--workdir", way_out="give a new or an empty folder") as caught:
        train(toy, run_folder)
    assert "gs://bucket/runs/one" in str(caught.value)
    assert (run_folder / FOLDER / "4" / "mine").exists()


def test_a_bucket_that_does_not_answer_for_a_while_costs_no_steps(
    tmp_path, monkeypatch, run_folder, capsys
):
    toy = Toy(tmp_path, monkeypatch)
    toy.train("whole")
    real, pushes = mirror.Mirror.push, []

    def push(mine, own=""):
        pushes.append(mine)
        if 1 < len(pushes) < 4:
            raise RunError("gs://bucket cannot be written: 503.")
        real(mine, own)

    monkeypatch.setattr(mirror.Mirror, "push", push)
    assert train(toy, run_folder) == 0
    assert "503" in capsys.readouterr().out
    here = brought(toy, run_folder, tmp_path)
    assert kept(here) == kept(tmp_path / "whole")
    assert toy.lines("remote") == toy.lines("whole")


def test_what_cannot_be_brought_to_a_bucket_at_the_end_stays_here(tmp_path, monkeypatch, gs):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def refuse(*_, **__):
        raise OSError("quota exceeded")

    def fill():
        with mirror.mirrored(located(f"{gs}/run")) as mine:
            (mine.local / "metrics.jsonl").write_text("a\n")
            monkeypatch.setattr(bucket.Bucket, "_open", refuse)

    with pytest.raises(RunError, match=r"run/metrics.jsonl cannot be written: quota.* lacks is in"):
        fill()
    assert [p.read_text() for p in tmp_path.rglob("metrics.jsonl")] == ["a\n"]
    with (
        pytest.raises(UsageError, match=r"gs://bucket/other cannot be written: quota exceeded\."),
        mirror.mirrored(located(f"{gs}/other")),
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
        assert mine.local.name == "one"  # the name that its report has
        assert [p.name for p in (mine.local / "checkpoints").rglob("*")] == ["2"]
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


def test_labels_in_a_bucket_are_counted_once_and_again_when_they_change(gs, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    downloads.gta(tmp_path / "gta", count=2)
    bucket.upload(tmp_path / "gta", f"{gs}/gta")
    said = []

    def counts(path):
        domain = replace(datasets.GTA, path=str(path))
        pictures = sources.open_labelled(domain, labels.CITYSCAPES, field="f")
        found = class_statistics(pictures, domain, 19, field="f", say=said.append)
        return found.counts.tolist()

    first = counts(f"{gs}/gta")
    assert first == counts(tmp_path / "gta") == counts(f"{gs}/gta")
    assert sum("counting" in line for line in said) == 2  # here and there, once each
    one, two = sorted(name for name in bucket.names(f"{gs}/gta") if "labels" in name)
    located(f"{gs}/gta/{one}").write_bytes(located(f"{gs}/gta/{two}").read_bytes())
    assert counts(f"{gs}/gta") == [first[1], first[1]]


def test_what_is_not_in_the_bucket_is_one_line(gs):
    with pytest.raises(UsageError, match="there is no folder gs://bucket/nothing"):
        sources.open_pictures(Domain(path=f"{gs}/nothing"), field="config.data.target")
    with refused("gs://bucket/none", way_out="give a workdir"):
        load_run(f"{gs}/none")


def test_a_bucket_without_its_package_names_it(monkeypatch):
    import fsspec

    def missing(scheme):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(UsageError, match=r"for gs:// install gcsfs"):
        located("gs://bucket/run")


@pytest.mark.parametrize("name", ["../home/x", "a/../../../x", "/tmp/x", "checkpoints/../../x/y"])
def test_a_name_listed_in_a_bucket_that_leads_elsewhere_is_refused(tmp_path, monkeypatch, gs, name):
    monkeypatch.setattr(mirror, "names_below", lambda folder: ["config.json", name])
    (located(gs) / "run/config.json").write_text("{}")
    (tmp_path / "run").mkdir()
    one = mirror.Mirror(located(f"{gs}/run"), tmp_path / "run")
    with pytest.raises(UsageError, match="is not the folder of a run.*is refused"):
        one.pull()
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "config.json"]


def test_a_shard_in_a_bucket_is_copied_into_the_cache_alone(tmp_path, monkeypatch, gs):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for file, digest in (("../x", "0" * 64), ("x", "../../../../../../x"), ("x", "/tmp/x/..")):
        with pytest.raises(UsageError, match="is refused"):
            reading._at_hand(located(gs), manifest.Shard(file, 1, digest), "data.source")
    assert not any(tmp_path.iterdir())
