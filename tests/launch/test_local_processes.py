"""launch/local_processes.sh with a stand-in for python."""

import os
import shlex
import signal
import subprocess
import time

import pytest

from .conftest import program

WORDS = ("--config", "c.py", "--workdir", "runs/a b")
# Says what it was started with, then does what the file `plan-INDEX` says, or waits. Told to stop
# it ends with 0, as a run that has saved; stubborn, it does not hear. "7 and loaders" leaves one.
PYTHON = r"""#!/usr/bin/env bash
index=${*: -1}
index=${index#*=}
echo "${JAX_PLATFORMS:-} ${CUDA_VISIBLE_DEVICES:-} $*"
plan=$(cat "plan-$index" 2>/dev/null || echo wait)
if [ "$plan" = stubborn ]; then trap '' TERM; else trap 'exit 0' TERM; fi
echo "$$" >"pid-$index.part" && mv "pid-$index.part" "pid-$index"
case $plan in
*loaders)
    sleep 99 &
    echo $! >"pid-l"
    exit "${plan%% *}"
    ;;
bereft)
    cat <&"$MRM_JAX_LIFELINE"
    echo "$MRM_JAX_LIFELINE" >"bereft-$index"
    ;;
[0-9]*) exit "$plan" ;;
*) while true; do sleep 0.02; done ;;
esac
"""


class Processes:
    def __init__(self, folder, checkout):
        self.folder, self.script = folder, checkout / "launch/local_processes.sh"
        program(folder / "bin/python", PYTHON)

    def start(self, *options: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", self.script, "--processes=3", "--logs=logs", *options, "--", *WORDS],
            cwd=self.folder,
            env={"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "HOME": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a terminal's own group
        )

    def run(self, *plans: str, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
        for i, plan in enumerate(plans):
            (self.folder / f"plan-{i}").write_text(plan)
        process = self.start(*options)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def alive(self) -> list[str]:
        found = []
        for file in sorted(self.folder.glob("pid-?")):
            try:
                os.kill(int(file.read_text()), 0)
            except ProcessLookupError:
                continue
            found.append(file.name)
        return found


@pytest.fixture
def processes(tmp_path, checkout):
    return Processes(tmp_path, checkout)


def test_every_process_gets_the_words_and_its_place(processes):
    code, out, _ = processes.run("0", "0", "0")
    assert code == 0
    logs = [(processes.folder / f"logs/process-{i}.log").read_text() for i in range(3)]
    mesh = [
        f"--config.mesh.{name}"
        for name in ("coordinator=localhost:12321", "process_count=3", "process_index=")
    ]
    for i, log in enumerate(logs):
        assert log == f"cpu  -m mrm_jax.main {' '.join(WORDS)} {' '.join(mesh)}{i}\n"
    assert out == logs[0]


def test_with_gpus_every_process_sees_its_own(processes):
    processes.run("0", "0", "0", options=("--gpus",))
    logs = [(processes.folder / f"logs/process-{i}.log").read_text() for i in range(3)]
    assert [log.split()[0] for log in logs] == ["0", "1", "2"]


def test_when_one_fails_the_others_are_ended_and_its_exit_code_is_the_scripts(processes):
    code, _, err = processes.run("stubborn", "wait", "7", options=("--grace=0",))
    assert code == 7
    assert processes.alive() == []
    assert "process 2 ended with exit code 7" in err
    assert "process_index=2" in err  # the end of its log


def test_what_a_process_that_failed_had_started_ends_with_it(processes):
    code, _, _ = processes.run("wait", "wait", "7 and loaders")
    assert code == 7
    assert processes.alive() in ([], ["pid-l"])  # where nobody has taken note of its end yet
    loader = (processes.folder / "pid-l").read_text().strip()
    state = subprocess.run(["ps", "-o", "stat=", "-p", loader], capture_output=True, text=True)
    assert state.stdout[:1] in ("", "Z")


def test_when_the_script_is_killed_the_processes_hear_of_it(processes):
    for i in range(3):
        (processes.folder / f"plan-{i}").write_text("bereft")
    process = processes.start()
    while len(processes.alive()) < 3:
        time.sleep(0.01)
    assert not list(processes.folder.glob("bereft-*"))
    process.kill()
    process.communicate(timeout=30)  # all have let go of the output
    while len(list(processes.folder.glob("bereft-*"))) < 3:
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_so_that_the_run_saves(processes, number):
    process = processes.start()
    while len(processes.alive()) < 3:
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert processes.alive() == []


def test_ctrl_c_which_reaches_what_the_script_waits_for_lets_the_run_save_too(processes):
    process = processes.start()
    while len(processes.alive()) < 3:
        time.sleep(0.01)
    time.sleep(0.3)  # now it waits
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "to save and end" in err
    assert processes.alive() == []


def test_the_second_signal_ends_all_at_once(processes):
    for i in range(3):
        (processes.folder / f"plan-{i}").write_text("stubborn")
    process = processes.start()
    while len(processes.alive()) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.stderr
    while "once more" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGKILL
    assert processes.alive() == []


def test_a_dry_run_prints_every_command_and_runs_none(processes):
    code, out, err = processes.run(options=("--dry_run",))
    assert (code, err) == (0, "")
    commands = [shlex.split(line) for line in out.splitlines()]
    assert [words[-1] for words in commands] == [
        f"--config.mesh.process_index={i}" for i in (0, 1, 2)
    ]
    assert all(list(WORDS) == words[6:10] for words in commands)
    assert sorted(path.name for path in processes.folder.iterdir()) == ["bin"]


def test_the_flags_of_the_mesh_are_options_of_the_config(processes):
    from mrm_jax.config import Config
    from mrm_jax.options import declared

    _, out, _ = processes.run(options=("--dry_run",))
    given = {word.partition("=")[0] for word in out.split() if word.startswith("--config.mesh")}
    assert given <= {f"--config.{name}" for name, one in declared(Config).items() if one.runtime}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--processes=0", "--", "x"), "say how many"),
        (("--processes=2",), "nothing to run"),
        (("--gpu", "--", "x"), "'--gpu' is not an option"),
        (("--processes=2", "--logs", "--grace=3", "--", "x"), "--grace=3 is an option"),
        (("--processes=2", "--logs", "a\nb", "--", "x"), "no control characters"),
        (("--processes=2", "--grace=a[$(touch F)]", "--", "x"), "--grace is 'a[$(touch F)]'"),
        (("--processes=2", "--port=1e3", "--", "x"), "--port is '1e3'; it has to be"),
    ],
)
def test_a_wrong_command_is_answered_in_one_line(processes, words, why):
    done = subprocess.run(
        ["bash", processes.script, *words], capture_output=True, text=True, cwd=processes.folder
    )
    assert done.returncode == 2
    assert [why in line for line in done.stderr.splitlines()] == [True]
    assert not (processes.folder / "F").exists()
