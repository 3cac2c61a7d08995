"""launch/slurm.sbatch with stand-ins for sbatch, srun, scancel and scontrol."""

import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import ROOT, program

WORDS = ("--config", "c.py:mic,mrm=true", "--workdir=runs/a b")
STOPPED = "stopped by SIGTERM after step 7, which is saved; the same command goes on from there."
RECORD = '#!/usr/bin/env bash\nprintf "%s\\t" "${0##*/}" "$@" >>"$CALLS"; echo >>"$CALLS"\n'
# Trains until scancel asks it to save, or until it is killed; or as $TRAINING says.
SRUN = """
for word; do case $word in --output=*) log=${word#--output=} ;; esac; done
echo "0: step 7/9" >"$log"
case $TRAINING in
wait)
    trap 'echo "0: $STOPPED" >>"$log"; exit 0' TERM
    echo $$ >"$CALLS.srun"
    while true; do sleep 0.01; done ;;
stopped) echo "0: $STOPPED" >>"$log" ;;
*) exit "$TRAINING" ;;
esac
"""


class Cluster:
    """The stand-in for Slurm: runs a job's script from a copy elsewhere, as Slurm does."""

    def __init__(self, folder: Path, checkout: Path):
        self.folder, self.checkout = folder, checkout
        self.file = folder / "calls"
        program(folder / "bin/srun", RECORD + SRUN)
        program(folder / "bin/scancel", RECORD + 'kill -TERM "$(cat "$CALLS.srun")"\n')
        program(folder / "bin/scontrol", RECORD)
        program(folder / "bin/sbatch", RECORD)
        self.script = folder / "spool" / "slurm_script"
        self.script.parent.mkdir()
        shutil.copy(checkout / "launch/slurm.sbatch", self.script)

    def start(self, training: str, *words: str, **environment: str) -> subprocess.Popen:
        """The job, running; `training` is what srun's tasks do."""
        return subprocess.Popen(
            ["bash", self.script, *words],
            cwd=self.folder,
            env={
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "CALLS": str(self.file),
                "TRAINING": training,
                "STOPPED": STOPPED,
                "SLURM_JOB_ID": "77",
                "SLURM_SUBMIT_DIR": str(self.checkout),
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, training: str, **environment: str) -> tuple[int, str]:
        """Exit code and standard error of a job."""
        process = self.start(training, *WORDS, **environment)
        _, err = process.communicate(timeout=30)
        return process.returncode, err

    def calls(self) -> list[list[str]]:
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [line.rstrip("\t").split("\t") for line in lines]


@pytest.fixture
def cluster(tmp_path, checkout):
    return Cluster(tmp_path, checkout)


def test_a_job_trains_with_the_very_words_and_ends(cluster):
    code, err = cluster.run("0")
    (call,) = cluster.calls()
    assert (code, err.splitlines()[-1]) == (0, "slurm_script: done.")
    assert call[:2] == ["srun", "--kill-on-bad-exit=1"]
    assert call[-len(WORDS) - 3 :] == ["python", "-m", "mrm_jax.main", *WORDS]


def test_ahead_of_the_time_limit_the_run_saves_and_goes_back_into_the_queue(cluster):
    process = cluster.start("wait", *WORDS)
    while not (cluster.folder / "calls.srun").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    asked, queued = cluster.calls()[1:]
    assert asked == ["scancel", "--signal=TERM", "77"]
    assert queued == ["scontrol", "requeue", "77"]
    assert "saved; back into the queue" in err


def test_a_preempted_job_whose_tasks_alone_were_told_goes_back_into_the_queue(cluster):
    assert cluster.run("stopped")[0] == 0
    assert cluster.calls()[1:] == [["scontrol", "requeue", "77"]]


def test_requeueing_is_bounded(cluster):
    code, err = cluster.run("stopped", SLURM_RESTART_COUNT="2", MRM_JAX_RESTARTS="2")
    assert code == 1
    assert "restarted 2 times already" in err
    assert [call[0] for call in cluster.calls()] == ["srun"]


def test_a_failed_training_ends_the_job_with_its_exit_code_and_names_the_log(cluster):
    code, err = cluster.run("3")
    assert code == 3
    assert f"exit code 3; see {cluster.checkout}/mrm_jax-77.0.log" in err
    assert [call[0] for call in cluster.calls()] == ["srun"]


def test_a_dry_run_prints_every_command_and_runs_none(cluster):
    process = cluster.start("0", "--dry_run", *WORDS)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    commands = [words for line in out.splitlines() if (words := shlex.split(line, comments=True))]
    assert [words[0] for words in commands] == ["sbatch", "srun", "scancel", "scontrol"]
    assert commands[0] == ["sbatch", "launch/slurm.sbatch", *WORDS]
    assert not cluster.calls()


def test_slurm_is_told_to_warn_the_script_and_to_requeue():
    lines = (ROOT / "launch/slurm.sbatch").read_text().splitlines()
    directives = [line.split()[1] for line in lines if line.startswith("#SBATCH ")]
    assert {"--signal=B:USR1@300", "--requeue", "--open-mode=append"} <= set(directives)
    first_command = next(i for i, line in enumerate(lines) if line and line[0] != "#")
    assert all(not line.startswith("#SBATCH") for line in lines[first_command:])  # not read there


def test_outside_of_a_job_one_line_says_to_submit_it(cluster):
    process = cluster.start("0", *WORDS, SLURM_JOB_ID="")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "submit it with sbatch" in err
