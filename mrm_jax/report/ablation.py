"""The files of a comparison: ablation.json (all numbers), .md and .html (tables), .svg (plot)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from mrm_jax.paths import write_text
from mrm_jax.report import page
from mrm_jax.report.charts import ticks
from mrm_jax.report.comparison import (
    LABEL_FREE,
    ArmResult,
    Comparison,
    collect_runs,
    estimate,
    picked,
    rank_correlation,
    read_comparison,
    seeds_for,
)

NAME = "ablation"
_ROW, _RIGHT, _TOP, _WIDTH = 26, 84, 34, 760

ArmTable = tuple[list[str], list[list[str]]]
"""Head and rows of text."""


def write_ablation(workdir: Path, earlier: Path | None = None) -> list[Path]:
    """Writes the four files into the comparison's folder and returns their paths. Each appears
    whole or not at all.

    earlier: an ablation.json whose runs are taken over where the folder has none of their arm and
    seed. Raises UsageError where it cannot be read.
    """
    found = collect_runs(workdir, read_comparison(earlier) if earlier else None)
    contents = {
        "json": json.dumps(_without_nan(found.as_dict()), indent=1) + "\n",
        "md": markdown(found),
        "svg": plot(found),
        "html": comparison_page(found),
    }
    workdir.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending, text in contents.items():
        path = workdir / f"{NAME}.{ending}"
        write_text(path, text)
        paths.append(path)
    return paths


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def scores_table(found: Comparison) -> ArmTable:
    """Mean and interval of every arm, its difference to the arm it is compared with, and time."""
    head = ["arm", "runs", "student", "difference", "to", "seeds for ±0.5", "teacher"]
    head += ["seconds", "mIoU over"]
    rows = []
    for outcome in found.outcomes:
        seconds = estimate([run.seconds for run in outcome.runs])
        difference = outcome.difference
        rows.append(
            [
                outcome.arm.name,
                str(len(outcome.runs)),
                outcome.student.text(),
                difference.text(sign=True) if difference else "–",
                outcome.arm.against or "–",
                str((difference and seeds_for(0.005, difference)) or "–"),
                outcome.teacher.text(),
                f"{seconds.mean:.0f}" if seconds.count else "–",
                ", ".join(dict.fromkeys(run.covered for run in outcome.runs)) or "–",
            ]
        )
    return head, rows


def arm_class_table(found: Comparison) -> ArmTable:
    """The student's IoU of every class in every arm, mean and interval."""
    names = dict.fromkeys(
        name for outcome in found.outcomes for run in outcome.runs for name in run.per_class
    )
    rows = []
    for outcome in found.outcomes:
        means = [
            estimate([run.per_class.get(name, math.nan) for run in outcome.runs]) for name in names
        ]
        rows.append([outcome.arm.name, *(mean.text() for mean in means)])
    return ["arm", *names], rows


def seeds_table(found: Comparison) -> ArmTable:
    """The student's mIoU of every seed in every arm."""
    seeds = sorted({run.seed for outcome in found.outcomes for run in outcome.runs})
    rows = []
    for outcome in found.outcomes:
        by_seed = {run.seed: run.student for run in outcome.runs}
        cells = [f"{100 * by_seed[s]:.1f}" if s in by_seed else "–" for s in seeds]
        rows.append([outcome.arm.name, *cells])
    return ["arm", *(f"seed {seed}" for seed in seeds)], rows


def picking_table(found: Comparison) -> ArmTable:
    """What picking a checkpoint without labels gives, beside the last and the best by labels."""
    head = ["arm", "last", *(f"by {name}" for name in LABEL_FREE), "best by labels"]
    head += [f"rank correlation of {name}" for name in LABEL_FREE]
    rows = []
    for outcome in found.outcomes:
        chosen = [estimate([picked(run, name) for run in outcome.runs]) for name in LABEL_FREE]
        ranks = [
            estimate([rank_correlation(run, name) for run in outcome.runs]) for name in LABEL_FREE
        ]
        means = [outcome.student, *chosen, estimate([run.best for run in outcome.runs])]
        cells = [f"{100 * m.mean:.1f}" if m.count else "–" for m in means]
        cells += [f"{rank.mean:+.2f}" if rank.count else "–" for rank in ranks]
        rows.append([outcome.arm.name, *cells])
    return head, rows


def calibration_table(found: Comparison) -> ArmTable:
    """Expected calibration error of both networks at the last step, mean and interval."""
    rows = []
    for outcome in found.outcomes:
        last = [run.scores.get(run.steps, {}) for run in outcome.runs]
        means = [
            estimate([scores.get(f"eval/{network}/ECE", math.nan) for scores in last])
            for network in ("student", "teacher")
        ]
        rows.append([outcome.arm.name, *(mean.text() for mean in means)])
    return ["arm", "student", "teacher"], rows


_TABLES = (
    ("mIoU of the student at the last step, %", scores_table),
    ("Every seed, %", seeds_table),
    ("IoU of every class, %", arm_class_table),
    ("Which evaluation to take: the student's mIoU, %", picking_table),
    ("Expected calibration error, %", calibration_table),
)
_LEGEND = (
    "Means with 95 % intervals over seeds (Student's t); differences are those of the same seeds. "
    "Seeds for ±0.5: how many would give the difference an interval of half a point either way, "
    "if they scatter as these do; from few seeds that is a rough number. "
    "Seconds are those of training, on whatever else the machine did. Best by labels picks an "
    "evaluation with the target's labels, which nobody has in practice; rank correlations are "
    "Spearman's over the evaluations of a run, averaged over seeds."
)


def _tables(found: Comparison) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, head and rows of every table that holds a number."""
    for title, table in _TABLES:
        head, rows = table(found)
        if any(cell != "–" for row in rows for cell in row[1:]):
            yield title, head, rows


def _notes(found: Comparison) -> list[str]:
    missing = found.begun - sum(len(outcome.runs) for outcome in found.outcomes)
    notes = [_LEGEND]
    if found.drawn:
        notes.insert(0, _drawn_note(found.drawn))
    for sentence, names in found.protocols.items():
        arms = f" ({', '.join(names)})" if len(found.protocols) > 1 else ""
        notes.append(f"Scored{arms}: {sentence}.")
    if missing:
        notes.append(
            f"Left out: {missing} begun but unfinished, or without labels to be scored against."
        )
    return notes


def _drawn_note(drawn: tuple[str, ...]) -> str:
    if "evaluation" in drawn:
        return "Drawn data: these numbers compare methods on drawn scenes alone."
    return f"Drawn data: {', '.join(drawn)}. The pictures scored on are not drawn."


def markdown(found: Comparison) -> str:
    """Every table as Markdown."""
    parts = [f"# {found.name}", *_notes(found)]
    if plot(found):
        parts.append(f"![mIoU of every arm]({NAME}.svg)")
    for title, head, rows in _tables(found):
        lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
        parts += [f"## {title}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def comparison_page(found: Comparison) -> str:
    """The tables and the plot as one HTML file without scripts or addresses."""
    parts = [f"<h1>{escape(found.name)}</h1>"]
    parts += [f"<p>{escape(note)}</p>" for note in _notes(found)]
    parts.append(f'<figure class="card scroll">{plot(found)}</figure>')
    for title, head, rows in _tables(found):
        parts.append(f"<h2>{escape(title)}</h2>{page.table(head, rows)}")
    return page.page(found.name, "\n".join(parts))


def plot(found: Comparison) -> str:
    """An SVG: a row an arm, a dot a seed, the mean with its interval; "" without a finished run."""
    outcomes = [outcome for outcome in found.outcomes if outcome.runs]
    if not outcomes:
        return ""
    ends = [end for outcome in outcomes for end in _ends(outcome)]
    marks = ticks(min(ends), max(ends), 6)
    height = _TOP + _ROW * len(outcomes) + 34
    left = 24 + 7 * max(len(outcome.arm.name) for outcome in outcomes)
    scale = (_WIDTH - left - _RIGHT) / (marks[-1] - marks[0])

    def x(value: float) -> float:
        return left + (value - marks[0]) * scale

    bottom = _TOP + _ROW * len(outcomes)
    parts = [
        f'<path d="M{x(mark):.1f} {_TOP - 6}V{bottom}" stroke="#8884" fill="none"/>'
        f'<text x="{x(mark):.1f}" y="{bottom + 16}" text-anchor="middle">{mark:g}</text>'
        for mark in marks
    ]
    for row, outcome in enumerate(outcomes):
        parts.append(_arm(outcome, x, left, _TOP + _ROW * row + _ROW / 2))
    what = "data" if "evaluation" in found.drawn else " and ".join(found.drawn)
    title = f"mIoU at the last step, %{f' · drawn {what}' if found.drawn else ''}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12" fill="#777" role="img" '
        f'aria-label="{escape(title)} of every arm">'
        f'<text x="{left}" y="14">{escape(title)}: a dot a seed, mean and 95 % interval</text>'
        f"{''.join(parts)}</svg>\n"
    )


def _ends(outcome: ArmResult) -> list[float]:
    """Of what is drawn of an arm, in percent: its interval's ends and its seeds."""
    mean = outcome.student
    half = 0.0 if math.isnan(mean.half) else mean.half
    ends = (mean.mean - half, mean.mean + half, *(run.student for run in outcome.runs))
    return [100 * end for end in ends if math.isfinite(end)]


def _arm(outcome: ArmResult, x: Callable[[float], float], left: float, y: float) -> str:
    mean, (low, high, *_) = outcome.student, map(x, _ends(outcome))
    dots = "".join(
        f'<circle cx="{x(100 * run.student):.1f}" cy="{y}" r="3" fill="#2563c9" fill-opacity=".45">'
        f"<title>seed {run.seed}: {100 * run.student:.1f}</title></circle>"
        for run in outcome.runs
    )
    return (
        f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(outcome.arm.name)}</text>'
        f'<path d="M{low:.1f} {y}H{high:.1f}" stroke="#2563c9" stroke-width="2" fill="none"/>{dots}'
        f'<path d="M{x(100 * mean.mean):.1f} {y - 7}v14" stroke="#2563c9" stroke-width="3"/>'
        f'<text x="{_WIDTH - _RIGHT + 8}" y="{y + 4}">{escape(mean.text())}</text>'
    )
