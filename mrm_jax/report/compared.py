"""Several runs on one page: curves with bands over seeds, per-class differences, where they part.

Runs of one config that differ in their seed alone are a group; the first group is what the others
are compared with. Reads only the runs' own files, so runs under way can be compared.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mrm_jax.config import Config
from mrm_jax.options import declared
from mrm_jax.report import record
from mrm_jax.report.comparison import Estimate, estimate
from mrm_jax.report.record import RunRecord, Score

MEAN = "mIoU"
"""What is compared besides the classes."""
_NAME_ONLY = ("seed", "data.classes.colours")


@dataclass(frozen=True)
class Group:
    """Runs of one config by seed. `name`: what sets their folders apart from the others'."""

    name: str
    runs: tuple[RunRecord, ...]

    @cached_property
    def scores(self) -> tuple[dict[int, Score], ...]:
        """Of every run the student's evaluations by step, those that have a mean."""
        found = (run.scores("student") for run in self.runs)
        return tuple({s.step: s for s in each if math.isfinite(s.mean_iou)} for each in found)

    @property
    def seeds(self) -> list[Any]:
        """The runs' seeds; None of one whose config is not there."""
        return [run.option("seed") for run in self.runs]

    def steps(self) -> set[int]:
        """The steps at which every run was scored."""
        return set.intersection(*(set(each) for each in self.scores))

    def values(self, step: int, name: str) -> list[float]:
        """mIoU or a class's IoU of every run at a step in `steps()`; NaN where it has none."""
        rows = [each[step] for each in self.scores]
        return [row.mean_iou if name == MEAN else row.iou.get(name, math.nan) for row in rows]

    def series(self, metric: str) -> tuple[list[tuple[int, float]], list[tuple[int, float, float]]]:
        """The mean over runs of a metric at the steps that all of them have, and its lowest and
        highest value; no band for a single run."""
        rows = [dict(run.series(metric)) for run in self.runs]
        steps = sorted(set.intersection(*(set(row) for row in rows)))
        found = [(step, [row[step] for row in rows]) for step in steps]
        found = [(step, values) for step, values in found if all(map(math.isfinite, values))]
        means = [(step, sum(values) / len(values)) for step, values in found]
        if len(self.runs) < 2:
            return means, []
        return means, [(step, min(values), max(values)) for step, values in found]


@dataclass(frozen=True)
class Parting:
    """From which evaluation on one group's seeds lie all above, or all below, another's, up to the
    last; `sign` +1 where this group is above."""

    name: str
    step: int
    sign: int


@dataclass(frozen=True)
class Difference:
    """The first value in which a run differs at all from another: at `step`, of `metric`."""

    step: int
    metric: str
    ours: float
    theirs: float


@dataclass(frozen=True)
class ComparedRuns:
    """The groups, the first of which the others are compared with; `step`: the last at which every
    run was scored, None where there is none."""

    groups: tuple[Group, ...]
    step: int | None

    @property
    def runs(self) -> list[RunRecord]:
        """All runs, group by group."""
        return [run for group in self.groups for run in group.runs]

    def classes(self) -> list[str]:
        """The classes of every run, in the order of the first."""
        return list(dict.fromkeys(name for run in self.runs for name in run.classes()))

    def options(self) -> list[tuple[str, list[Any]]]:
        """The options in which groups differ, with the value of each; None: not said."""
        tables = [_settings(group.runs[0]) for group in self.groups]
        names = dict.fromkeys(name for table in tables for name in table)
        rows = [(name, [table.get(name) for table in tables]) for name in names]
        return [(name, values) for name, values in rows if any(v != values[0] for v in values)]


def compared_runs(folders: Sequence[Path]) -> ComparedRuns:
    """The runs in `folders`, grouped; one that is named twice counts once. Raises
    FileNotFoundError for a folder that is not there."""
    found: dict[str, list[RunRecord]] = {}
    whole = dict.fromkeys(folder.resolve() for folder in folders)
    for number, folder in enumerate(whole):
        run = record.read_record(folder)
        key = json.dumps(_settings(run), sort_keys=True) if run.config else str(number)
        found.setdefault(key, []).append(run)
    ordered = [sorted(runs, key=_seed) for runs in found.values()]
    names = _names([[run.workdir for run in runs] for runs in ordered])
    groups = tuple(Group(*pair) for pair in zip(names, map(tuple, ordered), strict=True))
    common = set.intersection(*(group.steps() for group in groups))
    return ComparedRuns(groups, max(common, default=None))


def _seed(run: RunRecord) -> float:
    seed = run.option("seed")
    return seed if isinstance(seed, int) else math.inf


def _settings(run: RunRecord) -> dict[str, Any]:
    """What makes a run's numbers besides its seed, by dotted option. Options that change how a run
    is executed and not what it computes are left out; a path that names the seed names none."""
    known = declared(Config)
    seed = f"seed{run.option('seed')}"
    return {
        name: value.replace(seed, "seed*") if isinstance(value, str) else value
        for name, value in record.flat(run.config)
        if name not in _NAME_ONLY and not (name in known and known[name].runtime)
    }


def _names(groups: list[list[Path]]) -> list[str]:
    """A name for each group: of what its folders' paths share, what not all groups' paths share;
    numbered where that leaves two alike."""
    shared = [list(_common([path.parts for path in paths])) for paths in groups]
    start = len(_common([path.parts[:-1] for paths in groups for path in paths]))
    names: list[str] = []
    for paths, parts in zip(groups, shared, strict=True):
        name = "/".join(parts[start:])
        if not name:  # a common folder holds all: what their own names begin with
            name = os.path.commonprefix([path.name for path in paths]).rstrip("-_. ")
            name = name.removesuffix("seed").rstrip("-_. ") or paths[0].name
        number = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({number + 1})" if number else name)
    return names


def _common(paths: Sequence[Sequence[str]]) -> Sequence[str]:
    alike = (len(set(parts)) == 1 for parts in zip(*paths, strict=False))
    return paths[0][: sum(itertools.takewhile(bool, alike))]


def difference(ours: Group, theirs: Group, step: int, name: str) -> Estimate:
    """Of mIoU or a class's IoU at a step: the mean difference of runs of the same seed with its
    interval, or where the groups share no seed the difference of the means."""
    pairs = dict(zip(theirs.seeds, theirs.values(step, name), strict=True))
    values = list(zip(ours.seeds, ours.values(step, name), strict=True))
    same = [value - pairs[seed] for seed, value in values if seed is not None and seed in pairs]
    if same:
        return estimate(same)
    mine, other = estimate([v for _, v in values]), estimate(list(pairs.values()))
    return Estimate(mine.mean - other.mean, math.nan, min(mine.count, other.count))


def partings(ours: Group, theirs: Group, names: Sequence[str]) -> list[Parting]:
    """Where a group parts from another, by mIoU and by each of `names`; those that do, by step.
    Empty for groups of a single seed each: nothing says how far seeds lie apart."""
    if len(ours.runs) < 2 and len(theirs.runs) < 2:
        return []
    steps = sorted(ours.steps() & theirs.steps())
    found = []
    for name in (MEAN, *names):
        signs = [_sign(ours.values(s, name), theirs.values(s, name)) for s in steps]
        if not signs or not signs[-1]:
            continue
        first = len(signs) - 1
        while first and signs[first - 1] == signs[-1]:
            first -= 1
        found.append(Parting(name, steps[first], signs[-1]))
    return sorted(found, key=lambda parting: parting.step)


def by_chance(ours: Group, theirs: Group) -> float:
    """The share of classes that lie apart so at one evaluation if nothing but chance orders the
    runs: 2 orders of all those in which they can stand."""
    return 2 / math.comb(len(ours.runs) + len(theirs.runs), len(ours.runs))


def _sign(ours: list[float], theirs: list[float]) -> int:
    if not all(map(math.isfinite, (*ours, *theirs))):
        return 0
    return (min(ours) > max(theirs)) - (max(ours) < min(theirs))


def first_difference(ours: RunRecord, theirs: RunRecord) -> Difference | None:
    """Where two runs differ first, in any metric but times and memory; None where all that both
    wrote is the same."""
    mine, other = _by_step(ours), _by_step(theirs)
    for step in common_steps(ours, theirs):
        for name, value in mine[step].items():
            there = other[step].get(name, value)
            if value != there and not (math.isnan(value) and math.isnan(there)):
                return Difference(step, name, value, there)
    return None


def common_steps(ours: RunRecord, theirs: RunRecord) -> list[int]:
    """The steps of which both runs wrote one metric or more."""
    mine, other = _by_step(ours), _by_step(theirs)
    return sorted(step for step in mine.keys() & other.keys() if mine[step].keys() & other[step])


def _by_step(run: RunRecord) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for line in run.lines:
        values: Mapping[str, Any] = {
            name: record.number(value)
            for name, value in line.items()
            if name != "step" and not name.startswith(("perf/", "alarm/"))
        }
        found.setdefault(line["step"], {}).update(values)
    return found
