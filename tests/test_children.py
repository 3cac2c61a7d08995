"""No child process outlives the one that started it. Real processes: a parent is killed or gets
Ctrl-C with its whole group, and its output is read to the end, which comes when none holds it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAD = """
import multiprocessing, os, signal, subprocess, sys, time
from mrm_jax import children

# A shell has its background jobs ignore it, and so do all that they start: these tests, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

def work(ready):
    children.serve()
    ready.set()
    time.sleep(99)

def command():
    children.follow()
    print("follows", flush=True)
    time.sleep(99)

def main():
"""
TAIL = """
    try:
        print("ready", flush=True)
        time.sleep(99)
    except KeyboardInterrupt:
        print("interrupted")

if __name__ == "__main__":
    command() if len(sys.argv) > 1 else main()
"""
WORKER = """
    with children.starting():
        spawn = multiprocessing.get_context("spawn")
        ready = spawn.Event()
        spawn.Process(target=work, args=(ready,), daemon=True).start()
    ready.wait()
"""
COMMAND = """
    with children.lifeline() as (pipe, named):
        words = [sys.executable, __file__, "command"]
        reading = subprocess.Popen(
            words, env=os.environ | named, pass_fds=(pipe,), stdout=subprocess.PIPE
        )
        reading.stdout.readline()
        print("ready", flush=True)
        time.sleep(99)
"""
FOLDER = """
    with children.passing_folder() as (folder, _):
        (folder / "part").mkdir()
        print(folder, flush=True)
        time.sleep(99)
"""
PIPELINE = """
    from mrm_jax.command import load_config
    from mrm_jax.data.pipeline import train_batches

    words = [f"--config={os.environ['TINY']}", "--config.data.workers=1"]
    batches = train_batches(load_config([*words, "--config.train.steps=99999"]))
    next(batches)
"""
ROOT = Path(__file__).parents[1]


def started(folder, body):
    """A process that runs `body`, in a group of its own, and the first line that it printed."""
    program = folder / "program.py"
    program.write_text(HEAD + body + TAIL)
    process = subprocess.Popen(
        [sys.executable, program],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TINY": str(ROOT / "configs/tiny.py")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize("body", [WORKER, COMMAND, PIPELINE], ids=["worker", "command", "loaders"])
def test_children_of_a_process_that_is_killed_end_without_a_word(tmp_path, body):
    process, _ = started(tmp_path, body)
    process.kill()
    _, err = process.communicate(timeout=30)
    assert err == ""


def test_ctrl_c_with_loader_processes_is_heard_by_the_run_alone(tmp_path):
    process, _ = started(tmp_path, PIPELINE)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (0, "interrupted\n", "")


def test_a_passing_folder_goes_with_the_process_that_is_killed(tmp_path):
    process, folder = started(tmp_path, FOLDER)
    assert Path(folder, "part").is_dir()
    process.kill()
    assert process.communicate(timeout=30) == ("", "")
    for _ in range(300):  # nothing of the shell that removes it can be waited for
        if not Path(folder).exists():
            break
        time.sleep(0.01)
    assert not Path(folder).exists()
