"""Checkpoints: the only place that knows Orbax.

A checkpoint is a folder `checkpoints/<steps done>/` with one folder an item: `student`, `teacher`,
`rebuilder`, `auxiliary` (heads for training alone, if any), `training` (step, optimiser, root key)
and `facts` (config, versions, scores). It appears under its name by one rename when all of it is
written, so that a save cut short is never taken for a checkpoint. With `student` and `facts` alone
a checkpoint still evaluates and predicts. The facts hold a digest of every array (`digest.py`),
with which the arrays are compared whenever they are read.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp

import mrm_jax
from mrm_jax.checks.stored import open_config
from mrm_jax.config import Config
from mrm_jax.convert.reader import FORMATS
from mrm_jax.errors import RunError, UsageError
from mrm_jax.hosts import group
from mrm_jax.paths import check_checkpoints, is_remote, located, write_text
from mrm_jax.runs import saved
from mrm_jax.runs.damage import one_line
from mrm_jax.runs.digest import digests
from mrm_jax.runs.facts import scores_of, top_of
from mrm_jax.runs.items import abstract_leaf, check_items, join, split
from mrm_jax.runs.quiet import quietly
from mrm_jax.runs.saved import (
    FACTS,
    DamagedError,
    check_version,
    made_ready,
    read_facts,
    read_tree,
    steps_in,
)
from mrm_jax.shell import quoted
from mrm_jax.types import TrainState

FOLDER = "checkpoints"
_UNSCORED = {
    "best": "No checkpoint in {folder} was scored against labels; use picked, last or a step.",
    "picked": "No checkpoint in {folder} has scores without labels; use last or a step.",
}
_TREES = ("student", "teacher", "rebuilder", "auxiliary", "training")


@dataclass(frozen=True)
class LoadedRun:
    """A checkpoint opened without its mesh: numpy arrays, nothing on a device.

    `student` and `teacher` are {"params", "batch_stats"} of the segmentor, ready for `model.apply`;
    `teacher` is None where the method has none or its folder was deleted. `step`: steps done.
    """

    config: Config
    step: int
    student: dict[str, Any]
    teacher: dict[str, Any] | None
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, open for writing: the last `keep`, best and picked."""

    def __init__(self, directory: Path, *, keep: int):
        # Orbax logs the traceback of a failed save by itself; ours is one line, raised below.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.directory = directory if is_remote(directory) else directory.resolve()
        self._keep = keep
        self._scores: dict[int, dict[str, float]] = {}
        self.damaged = group.from_main(lambda: made_ready(self.directory))
        handlers: dict[str, ocp.CheckpointHandler] = {
            name: ocp.StandardCheckpointHandler() for name in _TREES
        }
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(cleanup_tmp_directories=True),
            item_handlers={**handlers, FACTS: ocp.JsonCheckpointHandler()},
        )
        self._newest: int | None = self._manager.latest_step()
        group.same(f"the newest checkpoint in {self.directory}", self._newest)
        for step in self._manager.all_steps():
            self._scores[step] = scores_of(read_facts(self.directory / str(step)))

    def latest(self) -> int | None:
        """The newest complete checkpoint, in steps done."""
        return self._newest

    def top(self, which: Literal["best", "picked"]) -> int | None:
        """The checkpoint with the highest score, by labels or without; None before the first."""
        return top_of(self._scores, which)

    def is_best(self, facts: Mapping[str, Any]) -> bool:
        """Whether a score in `facts`, by labels or without, beats every checkpoint kept."""
        for which, score in scores_of(facts).items():
            top = top_of(self._scores, which)
            if top is None or score > self._scores[top][which]:
                return True
        return False

    def save(self, step: int, state: TrainState, facts: Mapping[str, Any]) -> None:
        """Saves `state` in the background; it may be donated as soon as this returns.

        `facts` is JSON; its "scores" are those of this step's evaluation, if any. Raises RunError
        if this save, or the one before it, cannot be written.
        """
        if step == self._newest:
            return
        self.wait()
        self._prune()
        trees = split(state)
        items: dict[str, Any] = {n: ocp.args.StandardSave(tree) for n, tree in trees.items()}
        try:
            items[FACTS] = ocp.args.JsonSave({**facts, "digests": digests(trees)})
            self._manager.save(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax, tensorstore and the OS raise unrelated types here
            group.raise_loss(error)
            raise self._failure(step, error) from error
        self._newest, self._scores[step] = step, scores_of(facts)

    def score(self, step: int, scores: Mapping[str, float], **more: Any) -> None:
        """Adds the scores of an evaluation that came after the checkpoint of `step` was saved, and
        `more` facts that it changed."""
        self.wait()
        folder = self.directory / str(step)
        facts = {**read_facts(folder), "scores": dict(scores), **more}
        if group.is_main():
            write_text(folder / FACTS / "metadata", json.dumps(facts))
        self._scores[step] = scores_of(facts)

    def wait(self) -> None:
        """Returns once the save in the background is complete. Raises RunError if it failed."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:  # as in save
            group.raise_loss(error)
            raise self._failure(self._newest, error) from error

    def close(self) -> None:
        """Completes the save in the background and deletes what is not kept."""
        self.wait()
        self._prune()
        self._manager.close()

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state saved at `step`, with the shardings of `like`, and its facts.

        `like` holds arrays or `ShapeDtypeStruct`s with shardings. Raises DamagedError where files
        are not what was written, RunError where another version or other code wrote it, where it
        lacks an item, and where it could not be read for another reason.
        """
        self.wait()
        folder = self.directory / str(step)
        facts = read_facts(folder)
        check_version(facts, folder)
        wanted = {name: jax.tree.map(abstract_leaf, tree) for name, tree in split(like).items()}
        check_items(folder, facts, wanted)
        saved.say_unverified(folder, facts)
        args = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        try:
            with quietly():
                found = self._manager.restore(step, args=ocp.args.Composite(**args))
            items = {name: found[name] for name in wanted}
            state = join(items, like)
            if "digests" in facts:
                saved.check_digests(folder, {n: digests(tree) for n, tree in items.items()}, facts)
        except Exception as error:  # as in save
            group.raise_loss(error)
            raise saved.unrestored(folder, facts, wanted, error) from error
        return state, facts

    def aside(self, step: int) -> str | None:
        """Renames a damaged checkpoint, so that the one before it is the newest; says so in one
        line. None, and nothing is done, where there is none before it, or in a bucket."""
        before = [s for s in steps_in(self.directory) if s < step]
        if not before or is_remote(self.directory):
            return None
        if group.host_count() == 1:  # the others may still be reading it
            self._manager.close()
        folder = saved.set_aside(self.directory / str(step))
        return (
            f"the checkpoint of step {step} is damaged and now {folder}; step {before[-1]} is used."
        )

    def _prune(self) -> None:
        # Ours, not Orbax's max_to_keep: nothing goes before the newer one is complete, and the
        # best and the picked one stay.
        old = sorted(self._scores)[: -self._keep]
        gone = sorted({*old} - {self.top("best"), self.top("picked")})
        group.from_main(
            lambda: [saved.delete(self.directory / str(step)) for step in gone] and None
        )
        for step in gone:
            del self._scores[step]

    def _failure(self, step: int | None, error: Exception) -> RunError:
        self._scores.pop(-1 if step is None else step, None)
        good = [s for s in steps_in(self.directory) if s != step]
        rest = f"The last good one is step {good[-1]}." if good else "There is none before it."
        return RunError(
            f"The checkpoint of step {step} could not be saved in {self.directory}: "
            f"{one_line(error)} {rest} Free some space, then give the same command again."
        )


def load_run(path: str | Path, which: str | int = "last") -> LoadedRun:
    """Opens a checkpoint of a run on any machine: numpy arrays, whatever mesh it was saved from.

    `path` is a workdir, its `checkpoints` folder or one checkpoint in it (then `which` is not
    used); `which` is "last", "best" (by labels), "picked" (without) or a step. Raises UsageError if
    there is none, DamagedError where a file is not what was written, RunError where it cannot be
    read for another reason.
    """
    with saved.readable(located(path)):
        folder = _find(located(path), which)
    facts = read_facts(folder)
    check_version(facts, folder)
    try:
        stored = open_config(facts["config"], str(folder), facts.get("mrm_jax"))
    except UsageError as error:
        raise DamagedError(folder, f"{FACTS}/metadata: {one_line(error)}") from error
    student = read_tree(folder / "student", facts)
    if student is None:
        raise DamagedError(folder, "student is not there")
    saved.say_unverified(folder, facts)
    if stored.remark:
        print(f"mrm_jax: {stored.remark}", file=sys.stderr)
    return LoadedRun(
        config=stored.config,
        step=int(folder.name),
        student=student,
        teacher=read_tree(folder / "teacher", facts),
        facts=facts,
    )


def load_rebuilder(path: str | Path, which: str | int = "last") -> dict[str, Any]:
    """{"params"} of a checkpoint's Rebuilder, as `load_run` opens networks. Raises UsageError where
    it has none."""
    with saved.readable(located(path)):
        folder = _find(located(path), which)
    params = read_tree(folder / "rebuilder", read_facts(folder))
    if params is None:
        raise UsageError.at(folder, " holds no Rebuilder.")
    return {"params": params}


def save_network(path: Path, student: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes `student` (variables, numpy) as a checkpoint of no steps that `load_run(path)` opens,
    and `facts["weights"]` for people as weights.json.

    `path` must not exist yet; it appears by one rename when all is written. Raises UsageError where
    it does, RunError where it cannot be written.
    """
    if path.exists():
        raise UsageError.at(path, " exists already", "give a new folder.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    step = temporary.resolve() / FOLDER / "0"
    try:
        step.mkdir(parents=True)
        # By this process alone, however many there are.
        here = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}, barrier_sync_key_prefix="network"
        )
        saver: Any = ocp.StandardCheckpointer(multiprocessing_options=alone)
        with saver:
            saver.save(step / "student", dict(student))
        (step / FACTS).mkdir()
        digested = {"digests": digests({"student": dict(student)})}
        given = {"mrm_jax": mrm_jax.__version__, **facts, **digested}
        (step / FACTS / "metadata").write_text(json.dumps(given))
        (temporary / "weights.json").write_text(json.dumps(facts["weights"], indent=2) + "\n")
        temporary.rename(path)
    except Exception as error:  # as in save
        raise RunError(f"{path} could not be written: {one_line(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _find(path: Path, which: str | int) -> Path:
    check_checkpoints(path)
    if path.is_file() and path.suffix in FORMATS:
        raise UsageError.at(
            path,
            " is a file of weights",
            f"make a folder of it by convert --from {quoted(path)} --to DIR.",
        )
    if not path.is_dir():
        raise UsageError.at(path, " is not a folder", "give a workdir or a checkpoint in it.")
    if saved.is_step(path.name) and any((path / name).is_dir() for name in ("student", FACTS)):
        return path
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    steps = steps_in(folder)
    if not steps:
        raise UsageError.at(path, " holds no complete checkpoint.")
    if which == "last":
        return folder / str(steps[-1])
    if which in ("best", "picked"):
        scores = {step: scores_of(read_facts(folder / str(step))) for step in steps}
        top = top_of(scores, which)
        if top is None:
            raise UsageError(_UNSCORED[which].format(folder=folder))
        return folder / str(top)
    if str(which).isdigit() and int(which) in steps:
        return folder / str(int(which))
    raise UsageError(
        f"There is no checkpoint '{which}' in {folder}",
        f"use last, best, picked or one of {', '.join(map(str, steps))}.",
    )
