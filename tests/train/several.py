"""Runs of the toy by one and by two real processes, each with one fake device, stopped in every way;
run as a program of its own.

    python several.py FOLDER

Writes FOLDER/ended.json: for every scenario what each process printed and its exit code. The
processes are forked after the imports, which cost more than the runs.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from toy_run import TINY, Toy

from mrm_jax import main
from mrm_jax.config import UsageError
from mrm_jax.train import loop
from mrm_jax.train.checkpoint import Checkpoints
from mrm_jax.train.run import Run

OFTEN = ("--config.train.checkpoint_every=2", "--config.mesh.heartbeat=4")


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


def fail():
    raise UsageError("town/7.png is cut off")


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
    sys.argv = ["mrm_jax", f"--config={TINY}", *words]
    try:
        main.entry()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)


class Scenarios:
    def __init__(self, folder):
        self.folder, self.ended = folder, {}

    def start(self, name, run, words, faults):
        """One process a fault, on the workdir `run`; waits for all."""
        began, count = time.time(), len(faults)
        where = [f"--config.mesh.coordinator=127.0.0.1:{free_port()}"] if count > 1 else []
        logs = [self.folder / f"{name}.{index}" for index in range(count)]
        processes = [
            child(
                [
                    f"--workdir={self.folder / run}",
                    *OFTEN,
                    *where,
                    f"--config.mesh.process_count={count}",
                    f"--config.mesh.process_index={index}",
                    *words,
                ],
                log,
                fault,
            )
            for index, (log, fault) in enumerate(zip(logs, faults, strict=True))
        ]
        codes = [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in processes]
        time.sleep(0.1)  # last words come after the end
        self.ended[name] = [
            [code, Path(f"{log}.out").read_text(), Path(f"{log}.err").read_text()]
            for code, log in zip(codes, logs, strict=True)
        ]
        print(name, codes, f"{time.time() - began:.1f} s", file=sys.stderr)

    def pair(self, name, run, *words, faults=(None, None)):
        self.start(name, run, ["--config.mesh.fsdp=2", *words], faults)

    def one(self, name, run, *words, fault=None):
        self.start(name, run, words, (fault,))


def play(folder):
    s = Scenarios(folder)
    s.pair("whole", "whole")
    # One process is killed; the other ends by itself; both start again.
    s.pair("first killed", "a", faults=(at_step(3, me(signal.SIGKILL)), None))
    s.pair("second killed", "a", faults=(None, while_saving(4, me(signal.SIGKILL))))
    s.pair("both killed", "a", faults=(at_step(5, me(signal.SIGKILL)),) * 2)
    s.pair("goes on", "a")
    s.pair(
        "wedged",
        "b",
        "--config.mesh.patience=4",
        faults=(None, at_batch(4, lambda: time.sleep(999))),
    )
    s.pair("frozen", "b", faults=(None, at_step(4, me(signal.SIGSTOP))))
    s.pair("asked to stop", "c", faults=(None, at_step(2, me(signal.SIGTERM))))
    s.pair("cut off picture", "c", faults=(None, at_batch(5, fail)))
    s.one("on one", "c")
    (folder / "ended.json").write_text(json.dumps(s.ended))


if __name__ == "__main__":
    play(Path(sys.argv[1]))
