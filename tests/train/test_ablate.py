"""`ablate` on runs whose network is one number: which runs are made, kept, made again and told."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import standin
import toy_run
from refusals import refused

from mrm_jax.arms import Arm
from mrm_jax.config import FeatureDistance
from mrm_jax.errors import RunError, UsageError
from mrm_jax.main import run
from mrm_jax.options import edited
from mrm_jax.runs import workdir as folders
from mrm_jax.runs.checkpoint import load_run
from mrm_jax.train import jobs, loop, programs
from mrm_jax.train.step import structure

OFF = FeatureDistance()
CONFIG = f"--config={toy_run.TINY}"
NEEDS = "--config.train.init_from={workdir}/source_only/seed{seed}"
ARMS = ("--arm", "source_only", "--arm", "dacs", "--against", "source_only")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    programs.shared.cache_clear()
    return toy_run.Toy(tmp_path, monkeypatch)


@pytest.fixture
def trained(monkeypatch):
    """(workdir, seed) of every run that is trained."""
    calls, train = [], loop.train

    def spy(config, workdir):
        calls.append((workdir.parent.name, config.seed))
        return train(config, workdir)

    monkeypatch.setattr(loop, "train", spy)
    return calls


def ablate_in(toy, *words):
    return run(["ablate", CONFIG, "--workdir", str(toy.path / "all"), *words])


def results(toy):
    return json.loads((toy.path / "all" / "ablation.json").read_text())


def test_every_arm_is_trained_with_every_seed_once_and_compared(toy, trained):
    toy.scores = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert ablate_in(toy, *ARMS, "--seeds", "2") == 0
    assert trained == [(arm, seed) for arm in ("source_only", "dacs") for seed in (0, 1)]
    source, dacs = results(toy)["arms"]
    assert [r["student"] for r in source["runs"]] == [0.7, 0.7]
    assert source["difference"] is None
    assert dacs["difference"] == {"mean": 0.0, "half": 0.0, "count": 2}
    assert "evaluation" in results(toy)["drawn_data"]
    for ending in ("md", "svg", "html"):
        text = (toy.path / "all" / f"ablation.{ending}").read_text()
        assert "dacs" in text
        assert "rawn data" in text
    trained.clear()
    assert ablate_in(toy, *ARMS, "--seeds", "3") == 0
    assert trained == [("source_only", 2), ("dacs", 2)]


def test_a_run_of_a_comparison_equals_the_same_run_alone(toy):
    assert ablate_in(toy, "--arm", "dacs", "--seeds", "0,1") == 0
    toy.train("alone", seed=1)
    shared = load_run(toy.path / "all" / "dacs" / "seed1").student["params"]["scale"]
    assert shared == toy.weight("last", "alone")
    assert shared != load_run(toy.path / "all" / "dacs" / "seed0").student["params"]["scale"]


def test_a_run_that_was_stopped_goes_on(toy, trained, monkeypatch):
    train = loop.train

    def stopped(config, workdir):
        if config.seed == 1 and not workdir.joinpath("checkpoints").exists():
            # As after SIGTERM: some steps are saved, the exit code is 0.
            short = replace(config, train=replace(config.train, steps=2))
            train(short, workdir)
            folders.begin(workdir, config, {})
            return 0
        return train(config, workdir)

    monkeypatch.setattr(loop, "train", stopped)
    assert ablate_in(toy, "--arm", "dacs", "--seeds", "0,1") == 0
    assert len(results(toy)["arms"][0]["runs"]) == 1
    assert "Left out: 1 begun" in (toy.path / "all" / "ablation.md").read_text()
    assert ablate_in(toy, "--arm", "dacs", "--seeds", "0,1") == 0
    assert trained == [("dacs", 0), ("dacs", 1), ("dacs", 1)]
    assert len(results(toy)["arms"][0]["runs"]) == 2


def test_one_failed_run_stops_no_other_and_the_exit_code_says_so(toy, monkeypatch, capsys):
    train = loop.train

    def fails(config, workdir):
        if config.seed == 0:
            raise RunError("it broke")
        return train(config, workdir)

    monkeypatch.setattr(loop, "train", fails)
    assert ablate_in(toy, "--arm", "dacs", "--seeds", "2") == 1
    assert "seed0: it broke" in capsys.readouterr().err
    assert [r["seed"] for r in results(toy)["arms"][0]["runs"]] == [1]


def test_a_run_that_another_process_holds_is_left_to_it(toy, trained, capsys):
    assert ablate_in(toy, "--arm", "dacs", "--seeds", "0,1", "--list") == 0
    first = toy.path / "all" / "dacs" / "seed0"
    with folders.opened_workdir(first, toy.config()):
        assert ablate_in(toy, "--arm", "dacs", "--seeds", "0,1") == 0
    assert trained == [("dacs", 1)]
    assert "another process trains it" in capsys.readouterr().out


def test_a_run_whose_holder_dies_is_trained_by_whoever_needs_it(toy, trained, monkeypatch, capsys):
    """The arm `long` reads the run of `source_only`, which a process holds that is then killed."""
    arms = ("--arm", "source_only", "--arm", "long: source_only " + NEEDS, "--seeds", "1")
    first = toy.path / "all" / "source_only" / "seed0"
    first.mkdir(parents=True)
    hold = "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, 2); "
    hold += "print(flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", hold, first / ".lock"], stdout=subprocess.PIPE)
    holder.stdout.readline()
    polls, train = [], loop.train

    def sleep(_):
        polls.append(1)
        assert len(polls) < 5
        if len(polls) == 2:
            holder.kill()
            holder.wait()

    def without_weights(config, workdir):  # the toy's fit no network
        return train(replace(config, train=replace(config.train, init_from=None)), workdir)

    monkeypatch.setattr(jobs, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(loop, "train", without_weights)
    try:
        assert ablate_in(toy, *arms) == 0
    finally:
        holder.kill()
        holder.communicate()
    assert trained == [("source_only", 0), ("long", 0)]
    assert capsys.readouterr().out.count("another process trains it") == 1


def test_runs_that_need_each_other_or_a_failed_one_are_told_in_a_line(toy, monkeypatch, capsys):
    def fails(config, workdir):
        raise RunError("it broke")

    monkeypatch.setattr(loop, "train", fails)
    waits = SimpleNamespace(sleep=lambda _: pytest.fail("it waits for nobody"))
    monkeypatch.setattr(jobs, "time", waits)
    own = "own: source_only " + NEEDS.replace("source_only", "own")
    after = "after: source_only " + NEEDS
    assert ablate_in(toy, "--arm", "source_only", "--arm", own, "--arm", after, "--seeds=1") == 1
    said = capsys.readouterr().err
    assert "source_only/seed0: it broke" in said
    assert f"after/seed0: it needs {toy.path}/all/source_only/seed0, which failed." in said
    assert "own/seed0: it needs a run that needs it in turn." in said


def test_a_run_that_waits_for_another_comes_after_it(toy, monkeypatch):
    """Its frozen encoder is that of a run which the same command makes."""
    distance = (
        "--config.method.feature_distance.source=checkpoint "
        "--config.method.feature_distance.checkpoint={workdir}/source_only/seed{seed} "
        "--config.data.rare_class.enabled=False"
    )
    waits = loop.train

    def needs(config, workdir):
        path = config.method.feature_distance.checkpoint
        if path and not os.path.isdir(path):
            raise UsageError(f"there is no {path}")
        # The toy has no encoder that could be compared with.
        return waits(replace(config, method=replace(config.method, feature_distance=OFF)), workdir)

    monkeypatch.setattr(loop, "train", needs)
    far = f"far: daformer {distance}"
    assert ablate_in(toy, "--arm", far, "--arm", "source_only", "--seeds", "1") == 0
    assert [len(arm["runs"]) for arm in results(toy)["arms"]] == [1, 1]


def test_the_job_list_is_the_commands_of_the_same_runs(toy, capsys):
    words = ("--arm", "small: dacs --config.data.crop='(32, 64)'", "--config.train.steps=4")
    assert ablate_in(toy, *words, "--seeds", "1", "--list") == 0
    folder = toy.path / "all" / "small" / "seed0"
    assert capsys.readouterr().out == (
        f"python -m mrm_jax.main train --config={toy_run.TINY}:dacs --config.train.steps=4 "
        f"'--config.data.crop=(32, 64)' --config.seed=0 --workdir {folder}\n"
    )
    assert not (toy.path / "all").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "ablate has no arms"),
        (("--arms", "methods"), "no set 'methods'"),
        (("--arm", "dasc"), "arm 'dasc': .*Did you mean 'dacs'"),
        (("--arm", "dacs", "--seeds", "none"), "--seeds is 'none'"),
        (("--arm", "dacs", "--seeds", "0"), "--seeds is '0'"),
        (("--arm", "dacs", "--jobs", "0"), "--jobs is 0"),
        (("--arm", "a+b: dacs", "--arm", "a b: mic"), "'a\\+b' and 'a b' would share a folder"),
        (("--arm", "..: dacs"), "needs letters or digits"),
        (("--arm", "dacs --config.x='a"), "cannot be read: No closing quotation"),
        (("--sweep", "method.mrm.ration=1"), "Did you mean"),
        (("--arm", "dacs", "--against", "dasc"), "no such arm.*Did you mean 'dacs'"),
        (("--arm", "dacs", "--seeds", "00"), "--seeds is '00'"),
        (("--arm", "dacs --config.method.mrm.ratio=2"), "must lie in 0..1"),
    ],
)
def test_mistakes_are_answered_before_anything_is_trained(toy, trained, words, message):
    with pytest.raises(UsageError, match=message):
        ablate_in(toy, *words)
    assert not trained
    assert not (toy.path / "all").exists()


def test_the_arm_that_others_are_compared_with_is_not_swept(toy, capsys):
    words = ("--arm", "dacs", "--arm", "mrm: dacs,mrm=true", "--against", "dacs")
    sweep = ("--sweep", "method.mrm.grid=(2, 4),(4, 8)", "--seeds", "1", "--list")
    assert ablate_in(toy, *words, *sweep) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 3
    assert "grid" not in listed[0]
    assert "'--config.method.mrm.grid=(2, 4)'" in listed[1]
    assert "'--config.method.mrm.grid=(4, 8)'" in listed[2]


def test_a_finished_run_of_another_config_is_not_taken_for_this_one(toy, trained):
    assert ablate_in(toy, "--arm", "dacs", "--seeds", "1") == 0
    with refused("config.optimizer.learning_rate", 0.5):
        ablate_in(toy, "--arm", "dacs", "--seeds", "2", "--config.optimizer.learning_rate=0.5")
    assert len(trained) == 1


def test_tables_are_written_of_what_is_finished(toy, trained):
    assert ablate_in(toy, "--arm", "dacs", "--seeds", "1") == 0
    (toy.path / "all" / "ablation.md").unlink()
    assert run(["ablate", "--workdir", str(toy.path / "all"), "--tables"]) == 0
    assert "| dacs | 1 |" in (toy.path / "all" / "ablation.md").read_text()
    assert len(trained) == 1
    with pytest.raises(UsageError, match="holds no comparison"):
        run(["ablate", "--workdir", str(toy.path), "--tables"])


def test_a_name_means_one_arm_in_a_folder(toy):
    assert ablate_in(toy, "--arm", "x: dacs", "--seeds", "1") == 0
    with pytest.raises(UsageError, match="knows another arm 'x'"):
        ablate_in(toy, "--arm", "x: source_only", "--seeds", "1")


def test_processes_begin_with_arms_of_their_own():
    runs = [jobs.Job(Arm(name), 0, None, None, ()) for name in "abcd"]
    for k, n, order in ((0, 2, "acbd"), (1, 2, "bdac"), (2, 3, "cadb")):
        assert "".join(job.arm.name for job in jobs.own_first(runs, k, n)) == order


def test_runs_of_one_structure_compute_their_own_numbers():
    """A sweep in one process: the program is built of the structure, the numbers come with it."""
    config = standin.config()
    fields = {"mrm.ratio": 0.7, "mrm.weight": 0.3, "mrm.schedule": "fall", "ema_decay": 0.5}
    for field, value in fields.items():
        config = edited(config, {f"method.{field}": value})
    config = edited(config, {"optimizer.learning_rate": 0.03, "train.steps": 7})
    outcomes = []
    for built in (config, structure(config)):
        program = standin.program(built)
        state = jax.jit(program.init)(np.array([0, 7], np.uint32))
        step, frozen = jax.jit(program.train_step), program.frozen(config)
        for seed in range(2):
            state, metrics = step(state, frozen, standin.batch(seed))
        outcomes.append((state, metrics))
    jax.tree.map(np.testing.assert_array_equal, *outcomes)


@pytest.mark.e2e
def test_processes_share_the_runs_and_a_stop_saves_them(tmp_path):
    """Two processes, the second time stopped by SIGTERM: both runs go on from what they saved."""
    command = [sys.executable, "-m", "mrm_jax.main", "ablate", CONFIG, "--arm", "source_only"]
    command += [f"--workdir={tmp_path}", "--seeds=2", "--jobs=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "ablation.json").read_text())
    assert [run["seed"] for run in found["arms"][0]["runs"]] == [0, 1]
    assert "2 of 2 runs" in done.stdout
    assert {path.name for path in tmp_path.glob("*.log")} == {"worker0.log", "worker1.log"}

    longer = [*command, "--arm", "long: source_only --config.train.steps=100000"]
    process = subprocess.Popen(longer, stdout=subprocess.DEVNULL)
    lines = [tmp_path / "long" / f"seed{seed}" / "metrics.jsonl" for seed in (0, 1)]
    deadline = time.monotonic() + 300
    while not all(path.exists() and path.stat().st_size for path in lines):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 0
    for path in lines:
        kept = [int(p.name) for p in (path.parent / "checkpoints").iterdir() if p.name.isdigit()]
        assert kept
        assert json.loads(path.read_text().splitlines()[-1])["step"] <= max(kept)
    assert "Left out: 2 begun" in (tmp_path / "ablation.md").read_text()
