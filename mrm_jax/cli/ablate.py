"""`ablate`: trains arms x seeds of a config, and writes what came out as tables and a plot.

Every run is an ordinary workdir, <workdir>/<arm>/seed<n>: it resumes, reports and evaluates like
any other, and what is done already is not done again. Runs of one process share compiled programs.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from mrm_jax import arms as armed
from mrm_jax.arms import Arm
from mrm_jax.cli.resolve import load_config
from mrm_jax.command import load_module
from mrm_jax.config import Config
from mrm_jax.errors import UsageError
from mrm_jax.options import nearest
from mrm_jax.paths import below, is_remote, located
from mrm_jax.runs import workdir as folders
from mrm_jax.runs.trackers import check_tracker
from mrm_jax.shell import pasteable
from mrm_jax.train.jobs import Job, own_first, share, work


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb besides `--config`."""
    parser.add_argument("--workdir", required=True, type=located, help="folder of all runs")
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
        help="every --arm but that of --against with every value of a config field; repeatable",
    )
    parser.add_argument("--against", help="the arm that those of --arm are compared with")
    parser.add_argument("--seeds", default="3", help="how many seeds (from 0), or a list: 0,1,5")
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes; each gets its share of the cores"
    )
    parser.add_argument(
        "--list", action="store_true", help="print one train command a run, and train nothing"
    )
    parser.add_argument(
        "--tables", action="store_true", help="write the tables of finished runs, train nothing"
    )
    parser.add_argument(
        "--with",
        dest="earlier",
        type=located,
        metavar="ABLATION.JSON",
        help="tables: also runs of an earlier comparison whose folders are gone; its own folder's "
        "ablation.json alone makes the tables anew",
    )
    parser.add_argument("--share", help=argparse.SUPPRESS)  # k/n: the k-th of n processes


def run(arguments: argparse.Namespace, config: Config | None) -> int:
    """Trains what is missing and writes ablation.{json,md,svg,html} into the workdir; exit code 1
    where a run failed. Raises UsageError before anything is trained."""
    workdir = arguments.workdir
    if is_remote(workdir) and not arguments.list:
        raise UsageError.at(
            "--workdir",
            ": a comparison is kept on this machine. --list prints commands that train its "
            "runs in the bucket; for the tables, copy them here and give their folder.",
            value=workdir,
        )
    if arguments.tables:
        return _tables(workdir, arguments.earlier)
    if config is None:
        raise UsageError(
            "ablate needs a config:", "add --config FILE, say --config benchmark.", field="--config"
        )
    if arguments.jobs < 1:
        raise UsageError.of("--jobs", arguments.jobs, "; at least one process has to train.")
    arms, seeds = _arms(arguments), _seeds(arguments.seeds)
    jobs = [_job(arguments, arm, seed) for arm in arms for seed in seeds]
    if arguments.list:
        for job in jobs:
            words = [*job.words, "--workdir", str(job.folder)]
            print(pasteable(["python", "-m", "mrm_jax.main", "train", *words]))
        return 0
    for job in jobs:
        check_tracker(job.config)
    if arguments.share:
        return _work(config, workdir, own_first(jobs, *map(int, arguments.share.split("/"))))
    _remember(workdir, arms, jobs)
    code = (
        _work(config, workdir, jobs)
        if arguments.jobs == 1
        else share(_again(arguments), jobs, arguments.jobs, workdir)
    )
    return max(code, _tables(workdir, arguments.earlier))


def _work(config: Config, workdir: Path, jobs: list[Job]) -> int:
    from mrm_jax.machine.ready import make_ready  # only now: imports jax

    make_ready(config, workdir)
    return work(jobs)


def _tables(workdir: Path, earlier: Path | None) -> int:
    if not armed.read_arms(workdir) and earlier is None:
        raise UsageError.at(
            "--workdir", f" holds no comparison: there is no {armed.FILE}.", value=workdir
        )
    from mrm_jax.report.ablation import write_ablation

    for path in write_ablation(workdir, earlier):
        print(f"written: {path}")
    return 0


def _arms(arguments: argparse.Namespace) -> list[Arm]:
    module, text = load_module(arguments.config_words)
    table = getattr(module, "ARMS", {})
    listed = [arm for words in arguments.arms for arm in armed.named_arms(table, words)]
    own = [armed.parse_arm(words) for words in arguments.arm]
    if text and (listed or own):
        raise UsageError(
            f"The recipe '{text}' after --config is not used:",
            "name it by --arm.",
            field="--config",
            value=text,
        )
    if arguments.sweep and listed:
        raise UsageError(
            "--sweep goes with --arm; sets of --arms are taken as they are.", field="--sweep"
        )
    if arguments.sweep and not own:
        own = [Arm(text or armed.DEFAULT, text)]
    own = [
        arm if arm.name == arguments.against else arm._replace(against=arguments.against or "")
        for arm in own
    ]
    for words in arguments.sweep:
        own = armed.sweep(own, words, but=arguments.against)
    found = list(dict.fromkeys([*listed, *own]))
    if not found:
        known = f" (sets of this config: {', '.join(table)})" if table else ""
        raise UsageError(
            "ablate has no arms:",
            f"add --arms SET{known}, --arm 'RECIPE' or --sweep.",
            field="--arm",
        )
    armed.check_arms(found)
    names = [arm.name for arm in (*found, *armed.read_arms(arguments.workdir))]
    if arguments.against and (arguments.against not in names or not own):
        hint = nearest(arguments.against, names) if own else " Add --arm."
        raise UsageError(
            f"--against '{arguments.against}': there is no such arm.{hint}",
            field="--against",
            value=arguments.against,
        )
    return found


def _seeds(text: str) -> list[int]:
    words = text.split(",")
    numbers = [int(word) for word in words if word.isdigit()]
    found = list(range(numbers[0])) if len(words) == len(numbers) == 1 else numbers
    if not found or len(numbers) < len(words):
        raise UsageError.of("--seeds", text, "", "give how many, or a list such as 0,1,5.")
    return list(dict.fromkeys(found))


def _job(arguments: argparse.Namespace, arm: Arm, seed: int) -> Job:
    """The run of an arm with a seed: fields after the file hold for all arms, the arm's for its
    own. Raises UsageError naming the arm."""
    file, *common = sorted(
        arguments.config_words, key=lambda word: not word.startswith("--config=")
    )
    file = (
        file.partition(":")[0]
        if arm.recipe == armed.DEFAULT
        else f"{file.partition(':')[0]}:{arm.recipe}"
    )
    places = {"{workdir}": str(arguments.workdir), "{seed}": str(seed)}
    own = list(arm.flags)
    for name, value in places.items():
        own = [flag.replace(name, value) for flag in own]
    words = (file, *common, *own, f"--config.seed={seed}")
    try:
        config = load_config(list(words))
    except UsageError as error:
        raise UsageError.told(error.parts(), f"arm '{arm.name}': ") from error
    assert config is not None
    run = rf"{re.escape(str(arguments.workdir))}/[^/\s]+/seed\d+"
    needs = tuple(Path(path) for flag in own for path in re.findall(run, flag))
    folder = below(arguments.workdir, arm.folder) / f"seed{seed}"
    return Job(arm, seed, config, folder, words, needs)


def _remember(workdir: Path, arms: list[Arm], jobs: list[Job]) -> None:
    """Adds the arms to the folder's arms.json. Raises UsageError where a name or a run's folder
    means another one."""
    from mrm_jax.data.identity import identities

    try:
        with folders.held(workdir):
            known = {arm.name: arm for arm in armed.read_arms(workdir)}
            for arm in arms:
                old = known.get(arm.name, arm)
                if (old.recipe, old.flags) != (arm.recipe, arm.flags):
                    raise UsageError(
                        f"{workdir / armed.FILE} knows another arm '{arm.name}' ({old.recipe} "
                        f"{pasteable(old.flags)})",
                        "give it another name or use a new --workdir.",
                        field=workdir / armed.FILE,
                        value=arm.name,
                    )
                known[arm.name] = arm
            armed.check_arms(known.values())
            for job in jobs:  # a finished run of another config would be taken for this one
                folders.check_workdir(job.folder, job.config, identities)
            folders.write_json(workdir / armed.FILE, [arm._asdict() for arm in known.values()])
    except OSError as error:
        raise UsageError.at(
            "--workdir", f" cannot be written: {error.strerror}.", value=workdir
        ) from error


def _again(arguments: argparse.Namespace) -> list[str]:
    """This command, for another process."""
    words = [
        *arguments.config_words,
        f"--workdir={arguments.workdir}",
        f"--seeds={arguments.seeds}",
    ]
    for name in ("arms", "arm", "sweep"):
        words += [f"--{name}={value}" for value in getattr(arguments, name)]
    if arguments.against:
        words.append(f"--against={arguments.against}")
    return [sys.executable, "-m", "mrm_jax.main", "ablate", *words]
