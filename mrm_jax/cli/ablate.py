"""`ablate`: trains arms x seeds of a config, and writes what came out as a table and a plot.

Every run is an ordinary workdir, <workdir>/<arm>/seed<n>: it resumes, reports and evaluates like
any other, and what is done already is not done again. Runs of one process share compiled programs;
several processes may work on one folder, for a run is held by the process that trains it.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mrm_jax import arms as armed
from mrm_jax.arms import Arm
from mrm_jax.command import load_config, load_module
from mrm_jax.config import Config, UsageError
from mrm_jax.train import workdir as folders

POLL_SECONDS = 2.0


class Job(NamedTuple):
    """One run: its arm, seed, config and folder, and the `--config` flags that give the config."""

    arm: Arm
    seed: int
    config: Config
    folder: Path
    words: tuple[str, ...]

    def done(self) -> bool:
        """Whether the run's last step is evaluated and saved."""
        return (self.folder / "checkpoints" / str(self.config.train.steps)).is_dir()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb besides `--config`."""
    parser.add_argument("--workdir", required=True, type=Path, help="folder of all runs")
    parser.add_argument(
        "--arms", action="append", default=[], metavar="SET,...", help="sets in the config's ARMS"
    )
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="'[NAME:] RECIPE [--config.a.b=c ...]'",
        help="one more arm; repeatable",
    )
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="FIELD=V,V,...",
        help="every --arm with every value of a config field; repeatable",
    )
    parser.add_argument("--against", help="the arm that those of --arm are compared with")
    parser.add_argument("--seeds", default="3", help="how many seeds (from 0), or a list: 0,1,5")
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes; each gets its share of the cores"
    )
    parser.add_argument(
        "--list", action="store_true", help="print one train command a run, and train nothing"
    )
    parser.add_argument("--share", help=argparse.SUPPRESS)  # k/n: the k-th of n processes


def run(arguments: argparse.Namespace, config: Config | None) -> int:
    """Trains what is missing and writes ablation.{json,md,svg,html} into the workdir; exit code 1
    where a run failed. Raises UsageError before anything is trained."""
    if config is None:
        raise UsageError("ablate needs a config: add --config FILE, say configs/benchmark.py.")
    if arguments.jobs < 1:
        raise UsageError(f"--jobs is {arguments.jobs}; at least one process has to train.")
    arms, seeds = _arms(arguments), _seeds(arguments.seeds)
    jobs = [_job(arguments, arm, seed) for arm in arms for seed in seeds]
    if arguments.list:
        for job in jobs:
            words = [*job.words, "--workdir", str(job.folder)]
            print("python -m mrm_jax.main train " + " ".join(map(shlex.quote, words)))
        return 0
    if arguments.share:
        return _work(_order(jobs, arguments.share))
    _remember(arguments.workdir, arms)
    code = _work(jobs) if arguments.jobs == 1 else _processes(arguments, jobs)
    from mrm_jax.report.ablation import write_ablation

    for path in write_ablation(arguments.workdir):
        print(f"written: {path}")
    return code


def _arms(arguments: argparse.Namespace) -> list[Arm]:
    module, text = load_module(arguments.config_words)
    table = getattr(module, "ARMS", {})
    listed = [arm for words in arguments.arms for arm in armed.named(table, words)]
    own = [armed.parse(words) for words in arguments.arm]
    if arguments.sweep and not own:
        own = [Arm(text or "default", text)]
    for words in arguments.sweep:
        own = armed.sweep(own, words)
    own = [
        arm._replace(against=arguments.against or "") if arm.name != arguments.against else arm
        for arm in own
    ]
    if not (listed or own):
        known = f" (sets of this config: {', '.join(table)})" if table else ""
        raise UsageError(f"ablate has no arms: add --arms SET{known}, --arm 'RECIPE' or --sweep.")
    found = list(dict.fromkeys([*listed, *own]))
    armed.check(found)
    return found


def _seeds(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdigit() for word in words) or words == ["0"]:
        raise UsageError(f"--seeds is '{text}'; give how many, or a list such as 0,1,5.")
    return list(range(int(text))) if len(words) == 1 else list(dict.fromkeys(map(int, words)))


def _job(arguments: argparse.Namespace, arm: Arm, seed: int) -> Job:
    """The run of an arm with a seed: fields after the file hold for all arms, the arm's for its
    own. Raises UsageError naming the arm."""
    file, *common = sorted(arguments.config_words, key=lambda w: not w.startswith("--config="))
    file = f"{file.partition(':')[0]}:{arm.recipe}" if arm.recipe != "default" else file
    given = {"workdir": str(arguments.workdir), "seed": seed}
    own = [flag.format(**given) for flag in arm.flags]
    words = (file, *common, *own, f"--config.seed={seed}")
    try:
        config = load_config(list(words))
    except UsageError as error:
        raise UsageError(f"arm '{arm.name}': {error}") from error
    assert config is not None
    return Job(arm, seed, config, arguments.workdir / arm.folder / f"seed{seed}", words)


def _remember(workdir: Path, arms: list[Arm]) -> None:
    """Adds the arms to the folder's arms.json. Raises UsageError where a name means another arm."""
    path = workdir / armed.FILE
    known = {arm.name: arm for arm in armed.read(workdir)}
    for arm in arms:
        old = known.get(arm.name, arm)
        if (old.recipe, old.flags) != (arm.recipe, arm.flags):
            raise UsageError(
                f"{path} knows another arm '{arm.name}' ({old.recipe} {' '.join(old.flags)}); "
                "give it another name or use a new --workdir."
            )
        known[arm.name] = arm
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        folders.write_json(path, [arm._asdict() for arm in known.values()])
    except OSError as error:
        raise UsageError(f"--workdir {workdir} cannot be written: {error.strerror}.") from error


def _order(jobs: list[Job], share: str) -> list[Job]:
    """The jobs, an arm's together, those that are the k-th of n processes' own first."""
    k, n = map(int, share.split("/"))
    names = list(dict.fromkeys(job.arm.name for job in jobs))
    turn = {name: (i % n - k) % n for i, name in enumerate(names)}
    return sorted(jobs, key=lambda job: turn[job.arm.name])


def _work(jobs: list[Job]) -> int:
    """Trains the jobs that are neither done nor held by another process; exit code.

    One that cannot start yet (its frozen encoder is another run's) is tried again after the others.
    """
    failed: dict[Path, str] = {}
    waiting = [job for job in jobs if not job.done()]
    while waiting:
        later = []
        for job in waiting:
            if job.done():
                continue
            print(f"=== {job.arm.name}, seed {job.seed} ({job.folder})", flush=True)
            try:
                stopped = _train(job)
            except UsageError as error:
                later.append(job)
                failed[job.folder] = str(error)
            except Exception as error:
                if type(error).__name__ != "RunError":
                    raise
                failed[job.folder] = str(error)
            else:
                failed.pop(job.folder, None)
                if stopped:
                    return 0
        if len(later) == len(waiting):
            break
        waiting = later
    for folder, reason in failed.items():
        print(f"failed: {folder}: {reason}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def _train(job: Job) -> bool:
    """Trains a job unless another process does; whether it was asked to stop before the end."""
    try:
        with folders.opened(job.folder, job.config) as folder:
            from mrm_jax.train.loop import train

            train(job.config, folder)
    except folders.InUseError:
        print("another process trains it.", flush=True)
        return False
    except KeyboardInterrupt:
        return True
    return not job.done()


def _processes(arguments: argparse.Namespace, jobs: list[Job]) -> int:
    """Lets processes work through the jobs, each on its share of the cores; exit code."""
    count = arguments.jobs
    workers = []
    try:
        for k, cores in enumerate(_cores(count)):
            environment = dict(os.environ)
            if len(cores) == 1:
                # A small network gains nothing from a second thread; two runs side by side do.
                flags = environment.get("XLA_FLAGS", "")
                environment["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
            command = [sys.executable, "-m", "mrm_jax.main", *_again(sys.argv[1:]), "--share"]
            with open(arguments.workdir / f"worker{k}.log", "ab") as log:
                process = subprocess.Popen(
                    [*command, f"{k}/{count}"], stdout=log, stderr=log, env=environment
                )
            if cores and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(process.pid, cores)
            workers.append(process)
        _watch(workers, jobs)
    finally:
        for process in workers:
            if process.poll() is None:
                process.terminate()
        codes = [process.wait() for process in workers]
    if any(codes):
        print(f"a run failed; see {arguments.workdir}/worker*.log", file=sys.stderr)
    return int(any(codes))


def _again(words: list[str]) -> list[str]:
    """This command's words without `--jobs`."""
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith("--jobs"):
            kept.append(word)
        skip = word == "--jobs"
    return kept


def _cores(count: int) -> Iterator[set[int]]:
    """Each process's share of the cores this one may use; empty sets where that cannot be said."""
    if not hasattr(os, "sched_getaffinity"):
        yield from [set()] * count
        return
    mine = sorted(os.sched_getaffinity(0))
    for k in range(count):
        yield set(mine[k::count]) or set(mine)


def _watch(workers: list[subprocess.Popen], jobs: list[Job]) -> None:
    """A bar on a terminal, a line a finished run elsewhere, until all processes have ended."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(highlight=False)
    began, first = time.monotonic(), sum(job.done() for job in jobs)
    shown = first
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("runs", total=len(jobs), completed=first)
        while True:
            running = any(process.poll() is None for process in workers)
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
