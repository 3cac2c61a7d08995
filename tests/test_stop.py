"""A process is asked to stop while its main thread is in compiled code, which hears nothing."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import ctypes, sys, threading
from pathlib import Path
from mrm_jax import main, stop
from mrm_jax.runs import workdir

def verb(words):
    config = main.load_config(["--config=configs/tiny.py"])
    with stop.heard() as wish, workdir.opened_workdir(Path(words[0]), config):
        wish.doing = words[1]
        libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
        libc.pthread_mutex_lock(mutex)
        threading.Timer(0.2, print, ["ready"], {"flush": True}).start()
        libc.pthread_mutex_lock(mutex)  # for ever; no handler runs

stop.GRACE_SECONDS = 0.5
main.run = verb
main.entry()
"""


def _stopped(workdir, doing, *signals):
    """(exit code, stdout, stderr) of a process that is sent `signals` while it is stuck."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(workdir), doing],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    for number in signals:
        process.send_signal(number)
    out, error = process.communicate(timeout=60)
    return process.returncode, out, error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_heard_while_xla_compiles(tmp_path, number):
    workdir = tmp_path / "run"
    code, out, error = _stopped(workdir, "compiling the step", number)
    assert (code, error) == (1, "")
    assert out == (
        f"stopped by {number.name} while compiling the step; nothing is saved yet; "
        "the same command starts again.\n"
    )
    assert not workdir.exists()


def test_a_stop_with_a_step_on_disk_ends_with_0(tmp_path):
    (tmp_path / "checkpoints" / "30").mkdir(parents=True)
    (tmp_path / "checkpoints" / "40.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "config.json").write_text(_config())
    code, out, error = _stopped(tmp_path, "compiling the step", signal.SIGTERM)
    assert (code, error) == (0, "")
    assert "; step 30 is saved; the same command goes on from there." in out


def _config():
    import dataclasses
    import json

    from mrm_jax.main import load_config

    return json.dumps(dataclasses.asdict(load_config([f"--config={ROOT}/configs/tiny.py"])))


def test_the_second_ctrl_c_acts_at_once(tmp_path):
    sent = (signal.SIGINT, signal.SIGINT)
    code, out, error = _stopped(tmp_path / "run", "", *sent)
    assert code == 1
    assert out + error in (
        "mrm_jax: stopped for the second time; nothing more was saved.\n",
        "mrm_jax: stopped by SIGINT.\n",  # the system may make one of two
    )
