"""A checkpoint as folders and files: its facts and arrays, and whether it can be used.

What `checkpoint.py` writes by Orbax's manager; here nothing is written but names. Files are
`DamagedError` only where they are shown to be damaged; what a disk, a bucket or the memory refuses
is another error, after which nothing may be renamed.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mrm_jax.errors import RunError
from mrm_jax.hosts import group
from mrm_jax.paths import is_remote, what_is_wrong
from mrm_jax.runs.damage import GONE, named_damage, of_files, one_line
from mrm_jax.runs.digest import differing, digests
from mrm_jax.runs.facts import problem
from mrm_jax.runs.quiet import quietly

FACTS = "facts"
_TIMES, _MARK = "_CHECKPOINT_METADATA", "commit_success.txt"
"""Files of Orbax: when a save began and ended; written last in a bucket, which has no rename."""
_DELETED = ".deleted_step_"
"""How the name of a folder begins that is being deleted."""
STATE_VERSION = 1
"""Of the tree of arrays that is saved. A change of it refuses what was written before, or brings it
up to date where it is read (`check_version`)."""


class DamagedError(RunError):
    """A checkpoint with a file that is not what was written; the line names it and what is left."""

    def __init__(self, folder: Path, what: str):
        fault = f"The checkpoint {folder} is damaged: {what.rstrip('.')}."
        super().__init__(fault, _left(folder), field=folder)


def _left(folder: Path) -> str:
    """What can be done without a checkpoint."""
    before = []
    with suppress(Exception):  # its folder may be as damaged
        before = [s for s in steps_in(folder.parent) if s < int(folder.name)]
    if not before:
        return "There is none before it. Restore this folder, or train again in a new one."
    there = folder.parent / str(before[-1])
    return (
        f"The newest one before it is step {before[-1]}: --which {before[-1]}, or {there} where a "
        "path is asked for; a run goes on from it when this folder is moved away."
    )


def steps_in(folder: Path) -> list[int]:
    """Complete checkpoints, oldest first: a save in progress has a longer name, and in a bucket,
    where nothing is renamed, no time of its end."""
    named = [entry for entry in folder.iterdir() if is_step(entry.name)]
    return sorted(
        int(entry.name)
        for entry in named
        if (_ended_in_bucket(entry) if is_remote(entry) else entry.is_dir())
    )


def is_step(name: str) -> bool:
    """Whether a checkpoint has this name; "007" and digits of other scripts are somebody's own."""
    return name.isdecimal() and name.isascii() and str(int(name)) == name


def _ended_in_bucket(checkpoint: Path) -> bool:
    try:
        text = (checkpoint / _TIMES).read_text()
    except FileNotFoundError:
        return (checkpoint / FACTS / "metadata").is_file()  # a converted network, copied there
    try:
        return json.loads(text)["commit_timestamp_nsecs"] is not None
    except (ValueError, LookupError, TypeError, RecursionError):
        return (checkpoint / _MARK).is_file()


def adopt(directory: Path) -> None:
    """Marks checkpoints that were copied into a bucket as Orbax marks its own there: it would
    remove them as saves that were cut short."""
    for step in steps_in(directory) if directory.is_dir() else ():
        folder = directory / str(step)
        if not (folder / _MARK).exists():
            for marked in [*(item for item in folder.iterdir() if item.is_dir()), folder]:
                (marked / _MARK).write_text("")


def made_ready(directory: Path) -> list[str]:
    """Lets Orbax open what is in `directory`; a line for each checkpoint that was set aside."""
    if is_remote(directory):
        adopt(directory)
        return []
    for left in directory.glob(f"{_DELETED}*"):  # by a kill
        shutil.rmtree(left, ignore_errors=True)
    return set_aside_without_facts(directory)


def delete(folder: Path) -> None:
    """Deletes a checkpoint. A kill meanwhile leaves nothing that is taken for one."""
    if not is_remote(folder):
        away = folder.with_name(f"{_DELETED}{folder.name}")
        shutil.rmtree(away, ignore_errors=True)
        with suppress(FileNotFoundError):
            folder.rename(away)
        shutil.rmtree(away, ignore_errors=True)
        return
    # Nothing is renamed in a bucket: first goes what says that it is whole, see `steps_in`.
    (folder / _TIMES).write_text(json.dumps({"commit_timestamp_nsecs": None}))
    for name in (f"{FACTS}/metadata", _MARK):
        (folder / name).unlink(missing_ok=True)
    there: Any = folder
    there.rmtree()


def set_aside(folder: Path) -> Path:
    """Renames a checkpoint that cannot be used, unless another host just did; returns its new
    name."""
    number = next(n for n in itertools.count(1) if not _damaged_name(folder, n).exists())
    try:
        return folder.rename(_damaged_name(folder, number))
    except FileNotFoundError:
        return _damaged_name(folder, max(1, number - 1))


def _damaged_name(folder: Path, number: int) -> Path:
    return folder.with_name(f"damaged_{number}_step_{folder.name}")


def set_aside_without_facts(directory: Path) -> list[str]:
    """Sets aside checkpoints whose facts are damaged; a line for each. Raises DamagedError, and
    nothing is done, where there is no other."""
    steps = steps_in(directory) if directory.is_dir() else []
    damaged: dict[int, DamagedError] = {}
    for step in steps:
        try:
            read_facts(directory / str(step))
            check_times(directory / str(step))
        except DamagedError as error:
            damaged[step] = error
    if damaged and len(damaged) == len(steps):
        raise damaged[steps[-1]]
    lines = []
    for step in damaged:
        folder = set_aside(directory / str(step))
        lines.append(f"the checkpoint of step {step} is damaged and now {folder}; it is not used.")
    return lines


def check_version(facts: Mapping[str, Any], folder: Path) -> None:
    """Raises RunError for a checkpoint whose state has another version, with the way out."""
    found, writer = facts.get("state_version", 1), facts.get("mrm_jax")
    if found == STATE_VERSION:
        return
    way = "Install that version" if found > STATE_VERSION else "Go on with that version"
    raise RunError.at(
        folder,
        f" was written by mrm_jax {writer} with state version {found}; this one reads "
        f"version {STATE_VERSION}. {way}, or train again in a new folder.",
    )


def read_tree(folder: Path, facts: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """All arrays of one item as numpy; None if the folder does not exist.

    facts: those of its checkpoint, where its digests are to be compared. Raises DamagedError, which
    names the file or the array, or RunError where it cannot be read for another reason.
    """
    with readable(folder):
        if not folder.is_dir():
            return None
    try:
        with quietly():
            tree = _arrays(folder)
    except Exception as error:  # Orbax, tensorstore and the OS raise unrelated types here
        if not of_files(error):
            raise _unreadable(folder, error) from error
        what = f"{folder.name}{_bad_file(folder) or named_damage(folder, error)}"
        raise DamagedError(folder.parent, what) from error
    if facts is not None and "digests" in facts:
        check_digests(folder.parent, {folder.name: digests(tree)}, facts)
    return tree


def _arrays(folder: Path) -> dict[str, Any]:
    handler: Any = ocp.PyTreeCheckpointHandler()  # its annotations want another Path than it takes
    path = folder if is_remote(folder) else folder.resolve()
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    restore_args = jax.tree.map(lambda _: as_numpy, handler.metadata(path).tree)
    return handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=restore_args))


def check_digests(
    folder: Path, found: Mapping[str, Mapping[str, str]], facts: Mapping[str, Any]
) -> None:
    """Raises DamagedError, which names the array, unless the items `found` (by name, digests by
    path) are those of the facts."""
    for item, ours in found.items():
        path = differing(ours, digests_of(facts, item))
        if path is not None:
            raise DamagedError(folder, f"the array {path} of {item} is not what was saved")


def digests_of(facts: Mapping[str, Any], item: str) -> dict[str, str]:
    """The digests of an item's arrays by their path in it."""
    prefix = f"{item}/"
    known = facts["digests"].items()
    return {name.removeprefix(prefix): text for name, text in known if name.startswith(prefix)}


def say_unverified(folder: Path, facts: Mapping[str, Any]) -> None:
    """Says so where a checkpoint's arrays have no digests to compare them with."""
    if "digests" not in facts and group.is_main():
        print(
            f"warning: {folder} was written before digests were kept: its arrays are not verified.",
            file=sys.stderr,
        )


def unrestored(
    folder: Path, facts: Mapping[str, Any], items: Iterable[str], error: Exception
) -> RunError:
    """What a failed restore comes from: DamagedError only where the files, read again by
    themselves, are shown to be damaged."""
    try:
        for item in items:
            read_tree(folder / item, facts)
            if what := _bad_file(folder / item):
                return DamagedError(folder, f"{item}{what}")
    except RunError as found:
        return found
    return RunError(
        f"The checkpoint {folder} could not be restored, though its files are whole: "
        f"{one_line(error)} Nothing was changed",
        "give the same command again.",
    )


def read_facts(folder: Path) -> dict[str, Any]:
    """What is known of a checkpoint besides its arrays. Raises DamagedError where they are missing
    or not the facts of a checkpoint, RunError where they cannot be read for another reason."""
    path = folder / FACTS / "metadata"  # where Orbax's JSON handler writes
    try:
        facts = json.loads(path.read_text())
    except GONE as error:
        raise DamagedError(folder, f"{FACTS}/metadata is not there") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(folder, f"{FACTS}/metadata is not JSON: {one_line(error)}") from error
    except Exception as error:
        raise _unreadable(path, error) from error
    if what := problem(facts):
        raise DamagedError(folder, f"{FACTS}/metadata {what}")
    return facts


def check_times(folder: Path) -> None:
    """Raises DamagedError where Orbax's own notes on a checkpoint are none: its manager would not
    open. RunError where they cannot be read."""
    try:
        text = (folder / _TIMES).read_text()
        whole = isinstance(json.loads(text), dict)
    except FileNotFoundError:
        return  # it does without
    except (ValueError, RecursionError, IsADirectoryError):
        whole = False
    except Exception as error:
        raise _unreadable(folder / _TIMES, error) from error
    if not whole:
        raise DamagedError(folder, f"{_TIMES} is not the JSON that was written")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what a disk refuses into RunError."""
    try:
        yield
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> RunError:
    return RunError(
        f"{path} could not be read: {what_is_wrong(error)}. Nothing was changed",
        "give the same command again when it can.",
    )


def _bad_file(folder: Path) -> str | None:
    """What is wrong with the small files of an item, for people: Orbax's errors do not say which it
    was."""
    if not (folder / "manifest.ocdbt").is_file():
        return "/manifest.ocdbt is not there"
    arrays = folder / "array_metadatas"
    for path in (folder / "_METADATA", folder / "_sharding", *sorted(arrays.glob("*"))):
        name = path.relative_to(folder).as_posix()
        try:
            whole = isinstance(json.loads(path.read_text()), dict)
        except GONE:
            return f"/{name} is not there"
        except (ValueError, RecursionError):
            whole = False
        if not whole:
            return f"/{name} is not the JSON that was written"
    return None
