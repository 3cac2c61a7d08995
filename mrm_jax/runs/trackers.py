"""Weights & Biases as the tracker of a run (`config.train.tracker`), by its own package `wandb`.

A run there is a copy of the run's folder. At the start it is given every line of metrics.jsonl and
every sheet that it lacks; so it is whole after a kill, after hours without a network and where
another tracker began, and holds no step twice. What fails there is told in one line and costs
nothing else.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mrm_jax.config import Config
from mrm_jax.errors import UsageError
from mrm_jax.hosts import group
from mrm_jax.paths import is_remote
from mrm_jax.runs.workdir import TRACKED, sheets, write_json
from mrm_jax.runs.writer import METRICS, Ending, OpenTracker, Plain, TensorBoard
from mrm_jax.shell import quoted

ID = "wandb.json"
"""File of a run's folder with the id that the run has at Weights & Biases."""
PROJECT = "mrm-jax"
"""Where runs go there, unless WANDB_PROJECT or a settings file of wandb says otherwise."""
UPLOAD_SECONDS = 60.0
"""How long the end of a run waits for an upload; by itself wandb waits as long as it takes."""

Say = Callable[[str], None]


def check_tracker(config: Config) -> None:
    """Raises UsageError where the package of the config's tracker cannot be used here."""
    if config.train.tracker == "wandb":
        _package()


def _package() -> Any:
    try:
        found: Any = importlib.import_module("wandb")
        found.init  # noqa: B018 - a folder `wandb` in the current one is imported, too
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError | AttributeError)
        raise UsageError.of(
            "config.train.tracker",
            "wandb",
            f", whose package {'is not installed' if missing else f'cannot be used ({error})'}",
            "pip install 'wandb>=0.31', or leave it at tensorboard.",
        ) from error
    return found


def tracker_of(config: Config, home: Path, *, say: Say, warn: Say) -> OpenTracker:
    """What opens the config's tracker for a run; on host 0 alone where it is shared by all.

    home: the run's folder as the user named it. Lines go to `say`, those about failures to `warn`.
    """
    if config.train.tracker == "wandb" and group.is_main():
        return functools.partial(WandB, config=config, home=home, say=say, warn=warn)
    return TensorBoard


def names(home: Path) -> dict[str, str]:
    """`name` and `group` of the run in a folder there: runs of one arm, <arm>/seed<n>, are a
    group."""
    home = home if is_remote(home) else home.absolute()
    if not re.fullmatch(r"seed\d+", home.name):
        return {"name": home.name}
    arm = home.parent
    return {"name": f"{arm.name}/{home.name}", "group": f"{arm.parent.name}/{arm.name}".strip("/")}


def run_id(workdir: Path) -> str:
    """The id of the run there, which its folder keeps; a new one for a new folder."""
    try:
        known = json.loads((workdir / ID).read_text("utf-8"))["id"]
    except (OSError, ValueError, LookupError, TypeError):
        known = None
    if isinstance(known, str) and re.fullmatch(r"[0-9a-f]{16}", known):  # wandb names files by it
        return known
    made = secrets.token_hex(8)
    write_json(workdir / ID, {"id": made})
    return made


class WandB:
    """The run in `workdir` at Weights & Biases, from `step` on."""

    def __init__(
        self, workdir: Path, step: int, *, config: Config, home: Path, say: Say, warn: Say
    ) -> None:
        self._warn, self._wandb = warn, _package()
        self._run: Any = None
        self._place: Path | None = None
        self._lacks, self._again = 0, -1
        try:
            self._run = self._begun(workdir, config, home, say)
            # Of a run that it has already it takes no steps before the next one.
            self._lacks = self._run.starting_step
        except Exception as error:
            self._give_up(error)
        self._place = _place(self._run, workdir, home)
        self._catch_up(workdir, step)
        self._again = step

    def _begun(self, workdir: Path, config: Config, home: Path, say: Say) -> Any:
        if (workdir / TRACKED).is_symlink():  # what is recorded stays in the folder
            (workdir / TRACKED).unlink()
        how = {
            **names(home),
            "dir": os.environ.get("WANDB_DIR") or str(workdir),
            "id": run_id(workdir),
            "resume": "allow",
            "reinit": "create_new",  # none is the process's only one
            "config": asdict(config),
        }
        try:
            run = self._init(how)
        except Exception as error:
            self._wandb.teardown()  # the id is taken until then
            run = self._init(how | {"mode": "offline"})
            self._warn(
                f"Weights & Biases takes nothing now ({_reason(error)}). The run is recorded here; "
                f"send it by: {_sync(_place(run, workdir, home))}. WANDB_MODE=offline records "
                "without asking."
            )
            return run
        if run.offline:
            say(f"Weights & Biases: offline; send it by: {_sync(_place(run, workdir, home))}")
        elif not run.disabled:
            say(f"Weights & Biases: {run.url}")
        return run

    def _init(self, how: Mapping[str, Any]) -> Any:
        wandb = self._wandb
        # Silent, it asks nobody for a key.
        own = wandb.setup(wandb.Settings(silent=True)).settings
        settings = wandb.Settings(
            silent=True,
            console="off",  # what is printed is a bar on a terminal
            finish_timeout=UPLOAD_SECONDS,
            finish_timeout_raises=True,
        )
        return wandb.init(**how, project=own.project or PROJECT, settings=settings)

    def _catch_up(self, workdir: Path, step: int) -> None:
        """Gives it what lies in the folder up to `step` and it lacks, in order of the steps."""
        text = (workdir / METRICS).read_text("utf-8") if (workdir / METRICS).is_file() else ""
        past: list[tuple[int, Callable[[], None]]] = []
        for line in text.splitlines():
            values = json.loads(line)
            past.append((at := values.pop("step"), functools.partial(self.write, at, values)))
        for at, what, path in sheets(workdir):
            if at <= step:
                past.append((at, functools.partial(self.picture, at, what, path)))
        for _, give in sorted(past, key=lambda one: one[0]):
            give()

    def write(self, step: int, values: Mapping[str, Plain]) -> None:
        """Numbers and sentences of a step."""
        self._log(step, {name: value for name, value in values.items() if value is not None})

    def picture(self, step: int, name: str, path: Path) -> None:
        """A picture of a step."""
        self._log(step, {name: path})

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if self._run is None:
            return
        # What a stop put off to a restart belongs to a step that it has already: to its next one.
        at = max(step, self._lacks) if step == self._again else step
        if at < self._lacks:
            return
        try:
            image = self._wandb.Image
            given = {
                name: image(str(value)) if isinstance(value, Path) else value
                for name, value in values.items()
            }
            self._run.log(given, step=at)
        except Exception as error:
            self._give_up(error)

    def flush(self) -> None:
        """Nothing: it sends what it has by itself."""

    def close(self, ending: Ending) -> None:
        """Ends the run there; a stopped one counts as preempted until it goes on."""
        if self._run is None:
            return
        try:
            if ending == "stopped":
                self._run.mark_preempting()
            self._run.finish(exit_code=int(ending != "finished"))
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        place = f"; send what it was given by: {_sync(self._place)}" if self._run else ""
        self._run = None
        self._warn(
            f"Weights & Biases: {_reason(error)}. metrics.jsonl and views/ are whole all the same"
            f"{place}."
        )


def _place(run: Any, workdir: Path, home: Path) -> Path | None:
    """The folder that `wandb sync` takes, as the user would name it."""
    if run is None or run.disabled:
        return None
    place = Path(run.dir).parent
    return home / place.relative_to(workdir) if place.is_relative_to(workdir) else place


def _sync(place: Path | None) -> str:
    return f"wandb sync {quoted(str(place))}"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text[:200]} ..." if len(text) > 200 else text.rstrip(".")
