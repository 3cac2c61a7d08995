"""Runs of the toy by one and by two real processes of one device each, stopped in every way; run as
a program of its own.

    python several.py FOLDER

Writes FOLDER/<chain>.json: for every scenario what each process printed and its exit code. The
processes are forked after the imports, which cost more than the runs, and the chains of runs, each
in a workdir of its own, run side by side.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from toy_run import TINY, Toy

from mrm_jax import main, stop
from mrm_jax.errors import UsageError
from mrm_jax.hosts import group
from mrm_jax.runs.checkpoint import Checkpoints
from mrm_jax.train import hooks, loop
from mrm_jax.train.run import Run

OFTEN = ("--config.train.checkpoint_every=2", "--config.mesh.heartbeat=10")
SEED = 0
"""Of the steps at which the process that trains alone is killed."""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def at_step(number, act):
    """Calls `act()` once the metrics of step `number` are read."""

    def install(patch):
        real = loop._read

        def read(run: Run, done):
            if done.number == number:
                act()
            return real(run, done)

        patch.setattr(loop, "_read", read)

    return install


def while_saving(number, act):
    """Calls `act()` as soon as the save of step `number` has begun in the background."""

    def install(patch):
        real = Checkpoints.save

        def save(self, step, *rest):
            real(self, step, *rest)
            if step == number:
                act()

        patch.setattr(Checkpoints, "save", save)

    return install


def at_batch(number, act):
    """Calls `act()` instead of reading batch `number`, counted from 0."""

    def install(patch):
        real = loop.train_batches

        def batches(config, *, start_step, **rest):
            for index, batch in enumerate(real(config, start_step=start_step, **rest), start_step):
                if index == number:
                    act()
                yield batch

        patch.setattr(loop, "train_batches", batches)

    return install


def me(number):
    return lambda: os.kill(os.getpid(), number)


def while_evaluating(act):
    """Calls `act()` in the first evaluation, which then goes on to where all hosts agree."""

    def install(patch):
        real = hooks.evaluate_on_hosts

        def evaluate(*arguments, **more):
            act()
            group.together(stop.look)
            return real(*arguments, **more)

        patch.setattr(hooks, "evaluate_on_hosts", evaluate)

    return install


def fail():
    raise UsageError("town/7.png is cut off")


def without_pictures(patch):
    """The labelled pictures are not on this host."""

    def missing(config):
        raise UsageError("config.data.evaluation.path is camera: there is no such folder")

    patch.setattr(loop, "evaluation_set", missing)


def slurm_task(index):
    """What srun tells each of two tasks on this machine."""

    def install(patch):
        patch.setenv("SLURM_JOB_ID", str(os.getppid()))  # from which JAX takes the port
        patch.setenv("SLURM_STEP_NODELIST", "localhost")
        patch.setenv("SLURM_NTASKS", "2")
        for name in ("SLURM_PROCID", "SLURM_LOCALID"):
            patch.setenv(name, str(index))

    return install


def child(words, log, fault):
    """The command line in a process of its own; returns its id."""
    process = os.fork()
    if process:
        return process
    for name, stream in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT), stream)
    patch = pytest.MonkeyPatch()
    Toy(Path(log), patch)
    if fault:
        fault(patch)
    sys.argv = ["mrm_jax", *words]
    try:
        main.entry()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)


class Chain:
    """Runs in the workdir FOLDER/<name>, one after the other."""

    def __init__(self, folder, name):
        self.folder, self.name, self.ended = folder, name, {}

    def start(self, name, words, faults, *, verb="train", explicit=True):
        """One process a fault, told of each other by flags where `explicit`; waits for all."""
        began, count, port = time.time(), len(faults), free_port()
        where = [
            f"--config.mesh.coordinator=127.0.0.1:{port}",
            f"--config.mesh.process_count={count}",
            "--config.mesh.process_index={}",
        ]
        logs = [self.folder / f"{name}.{index}" for index in range(count)]
        processes = [
            child(
                [
                    verb,
                    f"--config={TINY}",
                    f"--workdir={self.folder / self.name}",
                    *OFTEN,
                    *(word.format(index) for word in where if explicit),
                    *words,
                ],
                log,
                fault,
            )
            for index, (log, fault) in enumerate(zip(logs, faults, strict=True))
        ]
        ends = {}
        while len(ends) < count:
            process, status = os.wait()
            ends[process] = os.waitstatus_to_exitcode(status)
            for other in set(processes) - set(ends):
                os.kill(other, signal.SIGCONT)  # a frozen one lasts for ever
        time.sleep(0.5)  # last words come after the end
        codes = [ends[process] for process in processes]
        self.ended[name] = [
            [code, Path(f"{log}.out").read_text(), Path(f"{log}.err").read_text()]
            for code, log in zip(codes, logs, strict=True)
        ]
        print(name, codes, f"{time.time() - began:.1f} s", file=sys.stderr)

    def pair(self, name, *words, faults=(None, None), **more):
        self.start(name, ["--config.mesh.fsdp=2", *words], faults, **more)

    def one(self, name, *words, fault=None):
        self.start(name, words, (fault,), explicit=False)


def whole(chain):
    tasks = (slurm_task(0), slurm_task(1))
    chain.pair("doctor", faults=tasks, verb="doctor", explicit=False)
    chain.pair("whole")
    chain.pair("finished already")


def killed(chain):
    """One process is killed; the other ends by itself; both start again. At last one is asked to
    stop in an evaluation."""
    chain.pair("first killed", faults=(at_step(3, me(signal.SIGKILL)), None))
    chain.pair("second killed", faults=(None, while_saving(4, me(signal.SIGKILL))))
    chain.pair("both killed", faults=(at_step(5, me(signal.SIGKILL)),) * 2)
    look = while_evaluating(lambda: None)
    chain.pair("stopped scoring", faults=(look, while_evaluating(me(signal.SIGTERM))))
    chain.pair("goes on")


def wedged(chain):
    sleeps = at_batch(4, lambda: time.sleep(999))
    chain.pair("wedged", "--config.mesh.patience=25", faults=(None, sleeps))


def frozen(chain):
    soon = "--config.mesh.heartbeat=5"
    chain.pair("first frozen", soon, faults=(at_step(3, me(signal.SIGSTOP)), None))
    chain.pair("second frozen", soon, faults=(None, at_step(4, me(signal.SIGSTOP))))


def told(chain):
    chain.pair("asked to stop", faults=(None, at_step(2, me(signal.SIGTERM))))
    chain.pair("no pictures there", faults=(None, without_pictures))
    chain.pair("cut off picture", faults=(None, at_batch(5, fail)))
    chain.one("on one")


def alone(chain):
    chain.one("alone")


def killed_alone(chain):
    steps = random.Random(SEED).choices(range(1, 6), k=3)
    for count, step in enumerate(sorted(steps)):
        how = while_saving if step % 2 == 0 and count else at_step
        chain.one(f"killed alone {count}", fault=how(step, me(signal.SIGKILL)))
    chain.one("goes on alone")


CHAINS = (frozen, killed, wedged, whole, told, alone, killed_alone)


def play(folder):
    processes = set()
    for chain in CHAINS:
        if process := os.fork():
            processes.add(process)
            continue
        played = Chain(folder, chain.__name__)
        chain(played)
        (folder / f"{chain.__name__}.json").write_text(json.dumps(played.ended))
        os._exit(0)
    for process in processes:
        assert os.waitpid(process, 0)[1] == 0


if __name__ == "__main__":
    play(Path(sys.argv[1]))
