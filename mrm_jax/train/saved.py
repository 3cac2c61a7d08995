"""A checkpoint as folders and files: its facts, scores and arrays, and whether it can be used.

What `checkpoint.py` writes by Orbax's manager; here nothing is written but names.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mrm_jax.config import UsageError
from mrm_jax.paths import is_remote
from mrm_jax.types import RunError

FACTS = "facts"
_TIMES, _MARK = "_CHECKPOINT_METADATA", "commit_success.txt"
"""Files of Orbax: when a save began and ended; written last in a bucket, which has no rename."""
BEST_BY = "eval/student/mIoU"
"""The score that decides which checkpoint is the best one; `evaluation.pick_by` names the one
without labels that decides which is picked.
"""

STATE_VERSION = 1
"""Of the tree of arrays that is saved. A change of it refuses what was written before, or brings it
up to date where it is read (`check_version`)."""


def steps_in(folder: Path) -> list[int]:
    """Complete checkpoints, oldest first: a save in progress has a longer name, and in a bucket,
    where nothing is renamed, no time of its end."""
    named = [entry for entry in folder.iterdir() if entry.name.isdigit()]
    return sorted(
        int(entry.name) for entry in named if not is_remote(entry) or _ended_in_bucket(entry)
    )


def _ended_in_bucket(checkpoint: Path) -> bool:
    try:
        text = (checkpoint / _TIMES).read_text()
    except FileNotFoundError:
        return (checkpoint / FACTS / "metadata").is_file()  # a converted network, copied there
    return json.loads(text)["commit_timestamp_nsecs"] is not None


def adopt(directory: Path) -> None:
    """Marks checkpoints that were copied into a bucket as Orbax marks its own there: it would
    remove them as saves that were cut short."""
    for step in steps_in(directory) if directory.is_dir() else ():
        folder = directory / str(step)
        if not (folder / _MARK).exists():
            for marked in [*(item for item in folder.iterdir() if item.is_dir()), folder]:
                (marked / _MARK).write_text("")


def set_aside(folder: Path) -> Path:
    """Renames a checkpoint that cannot be used; returns its new name."""
    number = next(n for n in itertools.count(1) if not _damaged_name(folder, n).exists())
    return folder.rename(_damaged_name(folder, number))


def _damaged_name(folder: Path, number: int) -> Path:
    return folder.with_name(f"damaged_{number}_step_{folder.name}")


def set_aside_without_facts(directory: Path) -> list[str]:
    """Sets aside checkpoints whose facts cannot be read; a line for each."""
    lines = []
    for step in steps_in(directory) if directory.is_dir() else ():
        try:
            read_facts(directory / str(step))
        except UsageError:
            folder = set_aside(directory / str(step))
            lines.append(
                f"the checkpoint of step {step} is damaged and now {folder}; it is not used."
            )
    return lines


def check_version(facts: Mapping[str, Any], folder: Path) -> None:
    """Raises RunError for a checkpoint whose state has another version, with the way out."""
    found, writer = facts.get("state_version", 1), facts.get("mrm_jax")
    if found == STATE_VERSION:
        return
    way = "Install that version" if found > STATE_VERSION else "Go on with that version"
    raise RunError(
        f"{folder} was written by mrm_jax {writer} with state version {found}; this one reads "
        f"version {STATE_VERSION}. {way}, or train again in a new folder."
    )


def read_tree(folder: Path) -> dict[str, Any] | None:
    """All arrays of one item as numpy; None if the folder does not exist."""
    if not folder.is_dir():
        return None
    handler: Any = ocp.PyTreeCheckpointHandler()  # its annotations want another Path than it takes
    path = folder if is_remote(folder) else folder.resolve()
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    restore_args = jax.tree.map(lambda _: as_numpy, handler.metadata(path).tree)
    return handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=restore_args))


def read_facts(folder: Path) -> dict[str, Any]:
    """What is known of a checkpoint besides its arrays; UsageError where it cannot be read."""
    path = folder / FACTS / "metadata"  # where Orbax's JSON handler writes
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder} is not a checkpoint of a run: {path} {one_line(error)}"
        ) from error


def scores_of(facts: Mapping[str, Any]) -> dict[str, float]:
    """What decides: "best" by labels and "picked" without, those that there are."""
    pick_by = facts["config"].get("evaluation", {}).get("pick_by")
    given = facts.get("scores", {})
    found = {"best": given.get(BEST_BY), "picked": given.get(f"select/{pick_by}")}
    return {which: s for which, s in found.items() if s is not None and not np.isnan(s)}


def top_of(scores: Mapping[int, Mapping[str, float]], which: str) -> int | None:
    """The step with the highest score, the earliest of equals; None without any."""
    scored = {step: given[which] for step, given in sorted(scores.items()) if which in given}
    return max(scored, key=lambda step: scored[step]) if scored else None


def one_line(error: Exception) -> str:
    """What an error says, on one line that ends in a full stop."""
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return (text if len(text) < 300 else text[:297] + "...").rstrip(".") + "."
