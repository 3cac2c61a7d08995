"""The runs of a comparison: which are done, which may start, and processes that share them.

A run is held by the process that trains it (`workdir.opened_workdir`), so any number of processes
may work on one folder. Loads no jax before a run starts.
"""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mrm_jax import terminal
from mrm_jax.arms import Arm
from mrm_jax.children import lifeline
from mrm_jax.config import Config
from mrm_jax.data.identity import identities
from mrm_jax.errors import RunError, UsageError
from mrm_jax.runs import workdir as folders
from mrm_jax.stop import SHUT, Stopped, heard

POLL_SECONDS = 2.0


class Job(NamedTuple):
    """One run: its arm, seed, config and folder, and the `--config` flags that give the config.

    `needs`: runs of the same comparison that it reads, such as that of its frozen encoder.
    """

    arm: Arm
    seed: int
    config: Config
    folder: Path
    words: tuple[str, ...]
    needs: tuple[Path, ...] = ()

    def done(self) -> bool:
        """Whether the run's last step is saved and evaluated, and its report written."""
        return folders.complete(self.folder, self.config.train.steps)


def own_first(jobs: Sequence[Job], k: int, n: int) -> list[Job]:
    """The jobs, an arm's together, those that are the k-th of n processes' own first."""
    names = list(dict.fromkeys(job.arm.name for job in jobs))
    turn = {name: (i % n - k) % n for i, name in enumerate(names)}
    return sorted(jobs, key=lambda job: turn[job.arm.name])


def work(jobs: Sequence[Job]) -> int:
    """Trains the jobs that are neither done nor held by another process, each after those that it
    needs; exit code 1 where one failed. Returns at once where a run is asked to stop.

    A job that another needs is tried again for as long as another process holds it: that may be
    killed, or fail.
    """
    failed: dict[Path, str] = {}
    with heard() as stop:
        stop.code = 0  # what is done is saved, and the next command goes on
        try:
            _work(jobs, failed)
        except Stopped:
            print(stop.last_words()[0], flush=True)
        except KeyboardInterrupt:
            print("stopped for the second time.", flush=True)
    return _told(failed)


def _work(jobs: Sequence[Job], failed: dict[Path, str]) -> None:
    """Does the jobs, or adds them to `failed` with the reason. Raises Stopped."""
    by_folder = {job.folder: job for job in jobs}
    held: set[Path] = set()
    waiting = [job for job in jobs if not job.done()]
    while waiting:
        later = []
        for job in waiting:
            needs = [by_folder[path] for path in job.needs if path in by_folder]
            broken = [other.folder for other in needs if other.folder in failed]
            if broken:
                failed[job.folder] = f"it needs {broken[0]}, which failed."
            elif not all(other.done() for other in needs):
                later.append(job)
            elif not job.done():
                outcome = _train(job, again=job.folder in held)
                held.discard(job.folder)
                if outcome == "held":
                    held.add(job.folder)
                    if any(job.folder in other.needs for other in waiting):
                        later.append(job)
                elif outcome != "done":
                    failed[job.folder] = outcome
        if len(later) == len(waiting):
            if not held.intersection(job.folder for job in later):
                for job in later:
                    failed[job.folder] = "it needs a run that needs it in turn."
                return
            time.sleep(POLL_SECONDS)
        waiting = later


def _told(failed: dict[Path, str]) -> int:
    for folder, reason in failed.items():
        print(f"failed: {folder}: {reason}", file=sys.stderr, flush=True)
    return int(bool(failed))


def _train(job: Job, *, again: bool) -> str:
    """Trains a job: "done", "held" by another process, or why it failed. Raises Stopped before its
    end where it was asked to stop. again: what is said of one that is held is said already."""
    try:
        with folders.opened_workdir(job.folder, job.config, identities) as folder:
            print(f"=== {job.arm.name}, seed {job.seed} ({job.folder})", flush=True)
            from mrm_jax.train.loop import train

            train(job.config, folder)
    except folders.InUseError:
        if not again:
            print(f"{job.folder}: another process trains it.", flush=True)
        return "held"
    except Exception as error:  # one broken run must not cost the others
        if not isinstance(error, UsageError | RunError):
            traceback.print_exc()
        return " ".join(str(error).split()) or type(error).__name__
    if not job.done():
        raise Stopped
    return "done"


def share(command: Sequence[str], jobs: Sequence[Job], count: int, logs: Path) -> int:
    """Runs `command` --share k/n as n processes, each on its part of the cores, and shows how far
    the jobs are; exit code.

    Ctrl-C or SIGTERM is passed on once, and if this process is killed the others are asked to stop
    too: the runs under way are saved. Output goes to worker<k>.log in `logs`; what failed is
    repeated here.
    """
    workers, begun = [], {}
    with lifeline() as (pipe, named):
        for k, cores in enumerate(_cores(count)):
            path = logs / f"worker{k}.log"
            begun[path] = path.stat().st_size if path.exists() else 0
            environment = os.environ | named
            if len(cores) == 1:
                # A small network gains nothing from a second thread; two runs side by side do.
                flags = environment.get("XLA_FLAGS", "")
                environment["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
            with open(path, "ab") as log:
                process = subprocess.Popen(
                    [*command, "--share", f"{k}/{count}"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,  # a terminal's Ctrl-C comes through us, once
                    pass_fds=(pipe,),
                )
            if cores:
                os.sched_setaffinity(process.pid, cores)
            workers.append(process)
        _watch(workers, jobs)
    for path, size in begun.items():
        for line in path.read_bytes()[size:].decode("utf-8", "replace").splitlines():
            if line.startswith(("failed: ", "mrm_jax: ")):
                print(line, file=sys.stderr)
    return int(any(process.wait() for process in workers))


def _cores(count: int) -> Iterator[set[int]]:
    """Each process's share of the cores this one may use; empty where the system cannot say."""
    if not hasattr(os, "sched_getaffinity"):
        yield from [set()] * count
        return
    mine = sorted(os.sched_getaffinity(0))
    for k in range(count):
        yield set(mine[k::count]) or set(mine)


def _watch(workers: Sequence[subprocess.Popen], jobs: Sequence[Job]) -> None:
    """A bar on a terminal, a line a finished run elsewhere, until all processes have ended."""
    from rich.progress import Progress

    console = terminal.console()
    began, first = time.monotonic(), sum(job.done() for job in jobs)
    shown, told = first, False
    bar = Progress(console=console, disable=not console.is_terminal)
    with heard() as stop, stop.within(SHUT), bar:
        task = bar.add_task("runs", total=len(jobs), completed=first)
        while True:
            running = [process for process in workers if process.poll() is None]
            if stop.received and not told:
                told = True
                console.print("stopping; the runs under way are saved ...")
                for process in running:
                    process.send_signal(signal.SIGTERM)
            done = sum(job.done() for job in jobs)
            if done != shown:
                shown = done
                seconds = (time.monotonic() - began) / (done - first) * (len(jobs) - done)
                left = datetime.timedelta(seconds=round(seconds))
                bar.update(task, completed=done)
                if not console.is_terminal:
                    console.print(f"{done} of {len(jobs)} runs, {left} left")
            if not running:
                return
            time.sleep(POLL_SECONDS)
