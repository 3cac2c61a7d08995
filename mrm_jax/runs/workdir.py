"""The folder that holds all of a run: who may use it, and its small files.

`config.json` (resolved config and the version that wrote it), `environment.json` (versions,
devices, command), `checkpoints/`, `metrics.jsonl`, what a tracker keeps (TensorBoard's events, or
`wandb/` and `wandb.json`), `views/` (panels), `fault/` (a step that went wrong), `report.html`.
Files are replaced by a rename, so that none is ever half written.
"""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mrm_jax
from mrm_jax import stop
from mrm_jax.checks.stored import WRITER, StoredConfig, open_config
from mrm_jax.config import Config
from mrm_jax.errors import UsageError
from mrm_jax.options import declared, value_of
from mrm_jax.paths import write_text
from mrm_jax.shell import pasteable, quoted

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
LOCK = ".lock"
"""File of a run's folder that the process which trains there holds."""
REPORT = "report.html"
UNDONE = "undone"
"""Fact of a checkpoint: what was due after its step and is still to be done, see `train.run`."""
_CHECKPOINTS = "checkpoints"
FROZEN = "frozen"
"""Folder of a run that keeps the encoder which the feature distance compares with."""
PROFILE = "profile"
"""Folder of a run with the profiler's traces, which no run reads."""
VIEWS = "views"
"""Folder of a run with the sheets of pictures."""
TRACKED = "wandb"
"""Folder of a run with what the package of Weights & Biases records, which no run reads."""
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


Identify = Callable[[Config], Mapping[str, str]]
"""What tells the data of two configs apart: "source", "target", "evaluation" -> a hash."""
DATA = "data"
"""Key of environment.json: what `identify` found where the run began."""
_PATHS = ("data.source.path", "data.target.path", "data.evaluation.path")


def _unknown(config: Config) -> Mapping[str, str]:
    del config
    return {}


class InUseError(UsageError):
    """Another process holds the folder."""


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` by `value` as indented JSON in one move."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def config_hash(config: Config) -> str:
    """First 16 hex digits of the SHA-256 over all fields that change results."""
    return hashlib.sha256(json.dumps(fixed(config), sort_keys=True).encode()).hexdigest()[:16]


def fixed(config: Config) -> dict[str, Any]:
    """JSON values of the options that change results, by dotted path."""
    known = declared(Config).items()
    found = {path: value_of(config, path) for path, option in known if not option.runtime}
    return json.loads(json.dumps(found))


def sheet(path: Path, what: str, step: int) -> Path:
    """Where the pictures of an "evaluation" or of "training" at a step of the run in `path` are."""
    return path / VIEWS / f"{what}_{step:07d}.png"


def sheets(path: Path) -> list[tuple[int, str, Path]]:
    """(step, name for trackers, file) of every sheet that is there."""
    named = ((file, file.stem.rpartition("_")) for file in sorted((path / VIEWS).glob("*_*.png")))
    return [
        (int(step), f"{VIEWS}/{what}", file)
        for file, (what, _, step) in named
        if step.isdecimal() and not file.is_symlink()  # which would show a file from elsewhere
    ]


@contextmanager
def opened_workdir(path: Path, config: Config, identify: Identify = _unknown) -> Iterator[Path]:
    """The folder of a run under `config`, new or of the same run, held for this process alone.

    Fields marked runtime may differ from the ones it was started with, and paths of data where
    `identify` finds the same there, as for `check_workdir`. Raises UsageError for
    another run's folder (naming the first field that differs), a folder of other things, or one
    that a running process holds. A start that fails before `begin` leaves nothing behind.
    """
    check_workdir(path, config, identify)
    new, held = not path.exists(), False
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Not "w": a link of that name, in a folder from elsewhere, would empty another file.
        lock = open(path / LOCK, "a")  # noqa: SIM115 - held open for as long as the run
    except OSError as error:
        raise UsageError.at(
            "--workdir", f" cannot be written: {error.strerror}.", value=path
        ) from error

    def leave() -> None:
        if held and not (path / CONFIG).exists():
            _take_back(path, new=new)

    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError as error:
            way_out = "wait for it or choose another folder."
            raise InUseError.at("--workdir", " is in use by another run", way_out, path) from error
        except OSError:
            pass  # a file system without locks: the run goes on unprotected
        try:
            if held and not (path / CONFIG).exists():
                # Left by a start that was killed: it may be another encoder than today's.
                shutil.rmtree(path / FROZEN, ignore_errors=True)
            if stop.Stop.running is not None:
                stop.Stop.running.saved = newest(path)
            with stop.before_end(leave):
                yield path
        finally:
            leave()


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Makes the folder `path` and holds it against other processes for a moment."""
    path.mkdir(parents=True, exist_ok=True)
    with open(path / LOCK, "a") as lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _take_back(path: Path, *, new: bool) -> None:
    """Removes what a start makes before it begins; the folder was empty (`check_workdir`)."""
    shutil.rmtree(path / FROZEN, ignore_errors=True)
    with suppress(OSError):  # other things came there meanwhile: they stay
        if (path / _CHECKPOINTS).exists():
            (path / _CHECKPOINTS).rmdir()
        (path / LOCK).unlink()
        if new:
            path.rmdir()


def newest(path: Path) -> int | None:
    """The newest checkpoint's step; without jax, and without a look into it."""
    folder = path / _CHECKPOINTS
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=None)


def complete(path: Path, steps: int) -> bool:
    """Whether the last of `steps` is saved and evaluated, and the report written."""
    facts = path / _CHECKPOINTS / str(steps) / "facts" / "metadata"
    try:
        return not json.loads(facts.read_text()).get(UNDONE) and (path / REPORT).is_file()
    except (OSError, ValueError, AttributeError):
        return False


def begin(path: Path, config: Config, facts: Mapping[str, Any]) -> None:
    """Makes the folder this run's: called when the first step is ready, so that a command which
    fails before can be corrected and given again. `facts` go to environment.json.
    """
    write_json(path / CONFIG, {WRITER: mrm_jax.__version__, **dataclasses.asdict(config)})
    write_json(path / ENVIRONMENT, environment(**facts))


def check_workdir(path: Path, config: Config, identify: Identify = _unknown) -> None:
    """Raises UsageError unless `path` is new, empty or the folder of a run under `config`.

    identify: what the data of a config are; where they are those that the run began with, their
    paths may differ.
    """
    if path.exists() and not path.is_dir():
        raise UsageError.at("--workdir", " is a file", "give a folder.", value=path)
    entries = {entry.name for entry in path.iterdir()} if path.exists() else set()
    if not entries - {LOCK, _CHECKPOINTS, FROZEN}:
        # A start that failed or is under way leaves no more than an empty folder there.
        started = path / _CHECKPOINTS
        if not started.exists() or not any(started.iterdir()):
            return
    if CONFIG not in entries:
        raise UsageError.at(
            "--workdir",
            f" holds other things and no {CONFIG}",
            "give a new or an empty folder.",
            value=path,
        )
    stored = read_config(path)
    if stored.remark:
        raise UsageError(stored.remark, field=path / CONFIG)
    here, there = fixed(config), fixed(stored.config)
    different = [name for name, value in here.items() if value != there[name]]
    if different == ["train.steps"]:
        _check_finished(path, here["train.steps"], there["train.steps"])
    why = ""
    if different and set(different) <= set(_PATHS):
        if _moved(path, stored.config, config, identify):
            return
        why = ", and the two do not hold the same data, or one of them is not there to compare"
    different.sort(key=_PATHS.__contains__)
    for name in different[:1]:
        raise UsageError(
            f"--workdir {path} belongs to another run: config.{name} is {here[name]!r} here and "
            f"was {there[name]!r} there{why}.",
            "Use the same config to go on, or a new folder.",
            field=f"config.{name}",
            value=here[name],
        )


def _check_finished(path: Path, here: int, there: int) -> None:
    """Raises UsageError where a finished run is asked for more steps: its schedules have ended."""
    if here > there and (newest(path) or 0) >= there:
        raise UsageError.at(
            "--workdir",
            f" holds a finished run: its {there} steps are done, the learning rate has come down "
            f"over them, and config.train.steps is {here} here.",
            "To train on from its weights, give a new folder and "
            f"{quoted(f'--config.train.init_from={path}')}.",
            value=path,
        )


def _moved(path: Path, then: Config, now: Config, identify: Identify) -> bool:
    """Whether the data of both configs are the same; those of before by what environment.json keeps
    of them, or where they were, if they are there still."""
    try:
        known = json.loads((path / ENVIRONMENT).read_text())[DATA]
    except (OSError, ValueError, LookupError, TypeError):
        known = None
    before = known if isinstance(known, dict) and known else identify(then)
    return bool(before) and before == identify(now)


def read_config(path: Path) -> StoredConfig:
    """The config of the run in `path`. Raises UsageError where config.json cannot be read."""
    try:
        values = json.loads((path / CONFIG).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError.at(
            path / CONFIG, f" cannot be read ({error})", "use a new folder."
        ) from error
    return open_config(values, str(path / CONFIG))


def environment(**facts: Any) -> dict[str, Any]:
    """Versions, platform, command and git revision of this process, and `facts` about its
    devices.
    """
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "mrm_jax": mrm_jax.__version__,
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "command": command(),
        "commit": _git_revision(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **facts,
    }


def command() -> str:
    """The command that started this process, as one would type it again."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    start = ["python", "-m", spec.name] if spec is not None else [Path(sys.argv[0]).name]
    return pasteable([*start, *sys.argv[1:]])


def _git_revision() -> str | None:
    """Commit of the code that runs, with a mark when files differ from it; None where this file is
    not of a checkout of ours, such as a package installed somewhere below another repository."""
    here = Path(mrm_jax.__file__).resolve()
    if _git(here.parent, "ls-files", "--full-name", "--", here.name) != f"mrm_jax/{here.name}":
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *words: str) -> str | None:
    """What git says in a folder; None where it says nothing."""
    # A hook of another repository sets GIT_DIR and more; and nothing is to be locked by looking.
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        found = subprocess.run(
            ["git", *words],
            cwd=folder,
            env=clean | {"GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 and found.stdout.strip() else None
