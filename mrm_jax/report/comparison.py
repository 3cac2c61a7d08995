"""What came out of a comparison's runs: scores of every seed, their means with 95 % intervals, and
differences of the same seeds.

Reads only the runs' own files, so a comparison under way can be looked at.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrm_jax import arms as armed
from mrm_jax.arms import Arm
from mrm_jax.errors import UsageError
from mrm_jax.paths import below, what_is_wrong
from mrm_jax.report import record
from mrm_jax.report.record import RunRecord, Score


@dataclass(frozen=True)
class FinishedRun:
    """One run at its last step. Shares of 1; NaN or empty where there is no such score.

    `best`: the student's score at the evaluation where it was highest by labels, which nobody has
    in practice. `covered`: how many classes the student's mIoU is over. `scores`: per step, every
    metric of an evaluation. `seconds`: of training.
    """

    seed: int
    student: float
    teacher: float
    best: float
    best_step: int
    per_class: dict[str, float]
    teacher_per_class: dict[str, float]
    scores: dict[int, dict[str, float]]
    steps: int
    seconds: float
    protocol: str
    commit: str
    covered: str = ""


@dataclass(frozen=True)
class Estimate:
    """A mean with the half width of its 95 % interval (Student's t; NaN for a single value)."""

    mean: float
    half: float
    count: int

    def text(self, *, sign: bool = False) -> str:
        """In percent, such as "43.4 ± 2.0"."""
        if not self.count:
            return "–"
        mean = f"{100 * self.mean:{'+' if sign else ''}.1f}"
        return mean if math.isnan(self.half) else f"{mean} ± {100 * self.half:.1f}"


@dataclass(frozen=True)
class ArmResult:
    """An arm and its finished runs, by seed; `difference` to the arm it is compared with, None
    where they share no seed."""

    arm: Arm
    runs: tuple[FinishedRun, ...]
    difference: Estimate | None

    @property
    def student(self) -> Estimate:
        """The student's mIoU at the last step."""
        return estimate([run.student for run in self.runs])

    @property
    def teacher(self) -> Estimate:
        """The teacher's mIoU at the last step."""
        return estimate([run.teacher for run in self.runs])


@dataclass(frozen=True)
class Comparison:
    """All arms of a folder. `protocols`: what scores mean, with the names of the arms scored so;
    `drawn`: which of source, target and evaluation are drawn scenes; `begun`: how many runs have a
    folder."""

    name: str
    outcomes: tuple[ArmResult, ...]
    protocols: dict[str, list[str]]
    drawn: tuple[str, ...]
    begun: int

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON values; numbers that do not exist are null."""
        return {
            "protocols": self.protocols,
            "drawn_data": list(self.drawn),
            "arms": [
                {
                    **outcome.arm._asdict(),
                    "student_mIoU": asdict(outcome.student),
                    "teacher_mIoU": asdict(outcome.teacher),
                    "difference": outcome.difference and asdict(outcome.difference),
                    "runs": [asdict(run) for run in outcome.runs],
                }
                for outcome in self.outcomes
            ],
        }


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval of independent values; NaN among them is left out."""
    from scipy import stats

    finite = np.asarray([v for v in values if math.isfinite(v)], float)
    count = len(finite)
    if count < 2:
        return Estimate(float(finite.mean()) if count else math.nan, math.nan, count)
    spread = finite.std(ddof=1) / math.sqrt(count)
    return Estimate(float(finite.mean()), float(stats.t.ppf(0.975, count - 1) * spread), count)


def seeds_for(half: float, found: Estimate) -> int | None:
    """How many values as scattered as those of `found` give an interval of at most ± `half`; None
    where their scatter is unknown. From few values this is itself a rough number."""
    from scipy import stats

    if found.count < 2:
        return None
    deviation = found.half * math.sqrt(found.count) / stats.t.ppf(0.975, found.count - 1)
    if deviation > half * 100:  # far beyond any budget
        return None
    return next(
        count
        for count in itertools.count(2)
        if stats.t.ppf(0.975, count - 1) * deviation / math.sqrt(count) <= half
    )


def paired(ours: Sequence[FinishedRun], theirs: Sequence[FinishedRun]) -> Estimate | None:
    """The mean difference of the student's mIoU between runs of the same seed."""
    other = {run.seed: run.student for run in theirs}
    differences = [run.student - other[run.seed] for run in ours if run.seed in other]
    return estimate(differences) if differences else None


def collect_runs(workdir: Path, earlier: Comparison | None = None) -> Comparison:
    """The comparison in a folder: its arms.json and the finished runs below it, and those of an
    `earlier` one whose arm and seed it has no finished run of."""
    listed = armed.read_arms(workdir)
    found: dict[str, list[FinishedRun]] = {}
    records: list[RunRecord] = []
    for arm in listed:
        runs = []
        for folder in sorted(below(workdir, arm.folder).glob("seed*")):
            if not folder.name.removeprefix("seed").isdigit():
                continue  # somebody's copy
            seen = record.read_record(folder)
            records.append(seen)
            if run := _run(seen, int(folder.name.removeprefix("seed"))):
                runs.append(run)
        found[arm.name] = runs
    drawn, begun = [name for seen in records for name in seen.drawn()], len(records)
    if earlier is not None:
        drawn += earlier.drawn
        known = [arm.name for arm in listed]
        for outcome in earlier.outcomes:
            name = outcome.arm.name
            listed += [outcome.arm] if name not in known else []
            here = {run.seed for run in found.setdefault(name, [])}
            more = [run for run in outcome.runs if run.seed not in here]
            found[name] += more
            begun += len(more)
    return _comparison(workdir.resolve().name, listed, found, tuple(dict.fromkeys(drawn)), begun)


def read_comparison(path: Path) -> Comparison:
    """The comparison that an ablation.json holds, named as its folder. Raises UsageError for a file
    that is none."""
    try:
        values = json.loads(path.read_text("utf-8"))
        arms = [Arm(*(row[name] for name in Arm._fields)) for row in values["arms"]]
        arms = [arm._replace(flags=tuple(arm.flags)) for arm in arms]
        found = {row["name"]: [_stored(run) for run in row["runs"]] for row in values["arms"]}
        drawn = values["drawn_data"]  # before 0.2 only whether anything was
        drawn = ("source", "target", "evaluation")[: 3 * drawn] if drawn in (True, False) else drawn
    except OSError as error:
        raise UsageError.at(path, f" cannot be read: {what_is_wrong(error)}.") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError.at(
            path, " is no ablation.json of a comparison", "name one that `ablate` wrote."
        ) from error
    begun = sum(map(len, found.values()))
    return _comparison(path.resolve().parent.name, arms, found, tuple(drawn), begun)


def _stored(row: dict[str, Any]) -> FinishedRun:
    """The inverse of what `Comparison.as_dict` makes of a run, in which null stands for NaN."""
    row = {name: math.nan if value is None else value for name, value in row.items()}
    scores = {
        int(step): {n: math.nan if v is None else v for n, v in values.items()}
        for step, values in row.pop("scores").items()
    }
    return FinishedRun(**row, scores=scores)


def _comparison(
    name: str,
    arms: Sequence[Arm],
    found: dict[str, list[FinishedRun]],
    drawn: tuple[str, ...],
    begun: int,
) -> Comparison:
    runs = {arm.name: tuple(sorted(found[arm.name], key=lambda run: run.seed)) for arm in arms}
    protocols: dict[str, list[str]] = {}
    for arm in arms:
        for sentence in dict.fromkeys(run.protocol for run in runs[arm.name]):
            protocols.setdefault(sentence, []).append(arm.name)
    outcomes = tuple(
        ArmResult(arm, runs[arm.name], paired(runs[arm.name], runs.get(arm.against, ())))
        for arm in arms
    )
    return Comparison(name, outcomes, protocols, drawn, begun)


LABEL_FREE = ("infomax", "agreement", "masked_agreement")
"""Scores without labels of which the highest may pick a checkpoint."""


def picked(run: FinishedRun, score: str) -> float:
    """The student's mIoU where a score without labels is highest; NaN without the score."""
    name = f"select/{score}"
    known = {
        step: v[name] for step, v in run.scores.items() if math.isfinite(v.get(name, math.nan))
    }
    if not known:
        return math.nan
    step = max(known, key=lambda step: known[step])  # the earliest of equals, as is kept
    return run.scores[step].get("eval/student/mIoU", math.nan)


def rank_correlation(run: FinishedRun, score: str) -> float:
    """Spearman's correlation of a score without labels with the student's mIoU over the
    evaluations of a run; NaN where one of them does not vary or is missing."""
    from scipy import stats

    pairs = [
        (v[f"select/{score}"], v["eval/student/mIoU"])
        for v in run.scores.values()
        if f"select/{score}" in v and "eval/student/mIoU" in v
    ]
    ours, theirs = zip(*pairs, strict=True) if pairs else ((), ())
    if len(set(ours)) < 2 or len(set(theirs)) < 2:
        return math.nan
    return float(np.asarray(stats.spearmanr(ours, theirs))[0])


def _run(seen: RunRecord, seed: int) -> FinishedRun | None:
    """What a run's files say; None for one whose last step has no score."""
    steps = seen.option("train.steps")
    students, teachers = seen.scores("student"), seen.scores("teacher")
    if not students or students[-1].step != steps:
        return None
    best = record.best(students) or students[-1]
    rates = [rate for _, rate in seen.series("perf/steps_per_second") if rate > 0]
    last = teachers[-1] if teachers else Score(steps, math.nan, {})
    return FinishedRun(
        seed=seed,
        student=students[-1].mean_iou,
        teacher=last.mean_iou,
        best=best.mean_iou,
        best_step=best.step,
        per_class=students[-1].iou,
        teacher_per_class=last.iou,
        scores=_evaluations(seen, [score.step for score in students]),
        steps=steps,
        seconds=steps * float(np.mean([1 / rate for rate in rates])) if rates else math.nan,
        protocol=str(seen.evaluation.get("protocol", {}).get("sentence", "")),
        commit=str(seen.environment.get("commit") or ""),
        covered=seen.covered(students[-1]),
    )


def _evaluations(seen: RunRecord, steps: list[int]) -> dict[int, dict[str, float]]:
    """mIoU and calibration error of both networks and every label-free score, by step."""
    names = [n for n in seen.names() if n.endswith(("/mIoU", "/ECE")) or n.startswith("select/")]
    table = {name: dict(seen.series(name)) for name in names}
    return {
        step: {name: values[step] for name, values in table.items() if step in values}
        for step in steps
    }
