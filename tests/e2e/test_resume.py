"""Stopped in every way, the real command ends with the bits of a run that was never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mrm_jax.runs.checkpoint import load_run
from mrm_jax.runs.saved import read_tree

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.e2e


def _command(workdir, *words):
    config = ROOT / "configs" / "tiny.py"
    start = [sys.executable, "-m", "mrm_jax.main", f"--config={config}", f"--workdir={workdir}"]
    return [*start, "--config.train.steps=8", "--config.train.checkpoint_every=3", *words]


def _train(workdir, *words):
    return subprocess.run(
        _command(workdir, *words), cwd=ROOT, capture_output=True, text=True, check=False
    )


def _stop(workdir, number, after):
    """Sends signal `number` once metrics.jsonl holds step `after`; returns the finished process."""
    path = workdir / "metrics.jsonl"
    process = subprocess.Popen(
        _command(workdir), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None:
        if path.exists() and f'{{"step": {after},' in path.read_text():
            process.send_signal(number)
            break
        time.sleep(0.005)
    out, error = process.communicate()
    return process.returncode, out, error


def _said(stderr):
    """Lines of stderr without the banner that XLA prints where a compilation takes minutes."""
    xla = ("*****", "[Compiling module")
    return [
        line
        for line in stderr.splitlines()
        if line and "slow_operation_alarm" not in line and not line.startswith(xla)
    ]


def _lines(workdir):
    """metrics.jsonl without what depends on the clock and on how often the run was started."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]
    return [line for line in lines if set(line) != {"step"}]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of a run that nothing stopped."""
    path = tmp_path_factory.mktemp("whole") / "run"
    done = _train(path)
    assert done.returncode == 0, done.stderr
    assert "compiled the step in" in done.stdout
    assert (path / "report.html").is_file()
    return path


def test_every_evaluation_scores_without_labels_too(whole):
    lines = [line for line in _lines(whole) if "eval/student/mIoU" in line]
    assert [line["step"] for line in lines] == [3, 6, 8]
    names = ("infomax", "entropy", "diversity", "agreement", "masked_agreement")
    for line in lines:
        assert all(0 <= line[f"select/{name}"] <= 1 for name in names)
    best = max(lines, key=lambda line: line["select/infomax"])
    assert load_run(whole, "picked").step == best["step"]
    assert "Which checkpoint" in (whole / "report.html").read_text()


def test_sigterm_then_kill_9_then_resume_equals_an_uninterrupted_run_bit_for_bit(whole, tmp_path):
    workdir = tmp_path / "run"
    code, out, error = _stop(workdir, signal.SIGTERM, after=2)
    assert (code, _said(error)) == (0, [])
    assert "stopped by SIGTERM" in out
    stopped = load_run(workdir).step
    assert 2 <= stopped < 8
    code, _, _ = _stop(workdir, signal.SIGKILL, after=max(5, stopped + 1))
    assert code == -signal.SIGKILL
    done = _train(workdir, "--config.train.log_every=1", "--config.data.cache=false")  # runtime
    assert done.returncode == 0, done.stderr
    assert "goes on from step" in done.stdout
    ours, theirs = load_run(workdir), load_run(whole)
    assert (ours.step, theirs.step) == (8, 8)
    for item in ("student", "teacher", "rebuilder", "training"):
        mine, other = (read_tree(path / "checkpoints" / "8" / item) for path in (workdir, whole))
        assert jax.tree.leaves(mine)
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)
    assert _lines(workdir) == _lines(whole)


def test_a_loss_that_is_not_finite_ends_the_run_with_one_line_and_the_batch(whole, tmp_path):
    # The rate is a traced number: this run shares the program of the others.
    done = _train(tmp_path / "run", "--config.optimizer.learning_rate=1e30")
    assert done.returncode == 1, done.stderr
    (line,) = _said(done.stderr)
    assert "is not finite" in line
    (fault,) = (tmp_path / "run" / "fault").iterdir()
    assert str(fault) in line
    params = load_run(tmp_path / "run").student["params"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_a_workdir_of_another_config_is_refused_by_name_before_jax_starts(whole):
    environment = os.environ | {"JAX_PLATFORMS": "no such platform"}
    done = subprocess.run(
        _command(whole, "--config.seed=5"),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "config.seed is 5 here and was 0 there" in done.stderr
