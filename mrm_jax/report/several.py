"""The page of `report --compare`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path

from mrm_jax.paths import write_text
from mrm_jax.report import page, scores
from mrm_jax.report.charts import Curve, line_chart, series_colour
from mrm_jax.report.compared import (
    MEAN,
    ComparedRuns,
    Group,
    Parting,
    by_chance,
    common_steps,
    difference,
    first_difference,
    partings,
)
from mrm_jax.report.comparison import Estimate, estimate

_SHOWN = 60
"""Letters of an option's value."""


def write_comparison(found: ComparedRuns, path: Path) -> None:
    """Writes the page; it appears whole or not at all. Raises OSError."""
    write_text(path, compared_page(found))


def compared_page(found: ComparedRuns) -> str:
    """The page as HTML text: no scripts, no addresses."""
    title = " and ".join(group.name for group in found.groups[:3])
    title = f"{title} and {len(found.groups) - 3} more" if found.groups[3:] else title
    parts = [f"<h1>{escape(title)}</h1>", _badges(found), _summary(found), _options(found)]
    parts += [_curves(found), _classes(found), _parting(found), _run_by_run(found)]
    return page.page(title, "\n".join(part for part in parts if part))


def _badges(found: ComparedRuns) -> str:
    many = len(found.runs)
    words = [("", f"{many} runs" if many != 1 else "1 run"), ("", f"{len(found.groups)} configs")]
    if any(run.drawn() for run in found.runs):
        words.insert(0, ("drawn", "drawn data"))
    sentences = dict.fromkeys(_protocol(group) for group in found.groups)
    if len(sentences) > 1:
        words.append(("warn", "scored in different ways"))
    marks = "".join(f'<span class="badge {kind}">{escape(text)}</span>' for kind, text in words)
    note = "Runs of one config that differ in their seed alone are a group. "
    note += f"What stands behind {found.groups[0].name} is compared with it."
    lines = [note] + ([f"Scored: {s}." for s in sentences if s] if sentences else [])
    return f'<div class="badges">{marks}</div>' + "".join(
        f'<p class="small faint">{escape(line)}</p>' for line in lines
    )


def _protocol(group: Group) -> str:
    fields = group.runs[0].evaluation.get("protocol")
    return str(fields.get("sentence", "")) if isinstance(fields, dict) else ""


def _summary(found: ComparedRuns) -> str:
    if found.step is None:
        return (
            '<div class="card alarm"><p>There is no step at which every run was scored, so scores '
            "are not set beside each other.</p></div>"
        )
    rows = []
    for group in found.groups:
        first = group is found.groups[0]
        away = "–" if first else _points(difference(group, found.groups[0], found.step, MEAN))
        own = max(group.steps())
        rows.append(
            [
                group.name,
                ", ".join(map(str, group.seeds)),
                estimate(group.values(found.step, MEAN)).text(),
                away,
                estimate(group.values(own, MEAN)).text(),
                str(own),
            ]
        )
    head = ["group", "seeds", f"mIoU at step {found.step}", "difference", "mIoU at its last"]
    return (
        "<h2>mIoU of the student, %</h2>"
        + page.table([*head, "which is step"], rows)
        + '<p class="small faint">Means with 95 % intervals over seeds (Student\'s t). Differences '
        "are those of the same seeds where groups share some, else of the means.</p>"
    )


def _points(value: Estimate) -> str:
    return value.text(sign=True)


def _options(found: ComparedRuns) -> str:
    rows = []
    for name, values in found.options():
        said = [v if isinstance(v, str) and v else json.dumps(v) for v in values]
        cut = [text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..." for text in said]
        rows.append([name, *cut])
    if not rows:
        return ""
    head = ["option", *(group.name for group in found.groups)]
    return "<h2>What their configs differ in</h2>" + page.table(head, rows)


def _curves(found: ComparedRuns) -> str:
    names = list(dict.fromkeys(name for run in found.runs for name in run.names()))
    losses = [n for n in names if n.split("/")[-1].startswith(scores.LOSSES)]
    wanted = [("mIoU of the student", f"eval/student/{MEAN}", True)]
    wanted += [("mIoU of the teacher", f"eval/teacher/{MEAN}", True)]
    wanted += [("Total loss", "total/loss", False)]
    wanted += [(f"Loss {name}", name, False) for name in losses if name != "total/loss"]
    wanted += [("Confident pseudo-labels", "teacher/confident_share", True)]
    cards = ""
    for title, metric, percent in wanted:
        curves = []
        for place, group in enumerate(found.groups):
            points, band = group.series(metric)
            style = "dots" if metric.startswith("eval/") else "noisy"
            curves.append(Curve(group.name, points, series_colour(place), style, band))
        if chart := line_chart(curves, percent=percent, low=None if percent else 0):
            cards += f'<figure class="card"><h3>{escape(title)}</h3>{chart}</figure>'
    if not cards:
        return ""
    return (
        f'<h2>Curves over steps</h2><div class="grid2">{cards}</div><p class="small faint">A line '
        "is the mean over a group's seeds, at the steps that all of them have; a band reaches from "
        "the lowest seed to the highest.</p>"
    )


def _classes(found: ComparedRuns) -> str:
    if found.step is None:
        return ""
    first, *others = found.groups
    step, names = found.step, found.classes()
    rows, widest = [], 0.01
    for name in (MEAN, *names):
        away = [difference(group, first, step, name) for group in others]
        finite = [abs(each.mean) for each in away if math.isfinite(each.mean)]
        widest = max(widest, *finite, 0.0)
        rows.append((name, estimate(first.values(step, name)), away))
    head = "".join(f"<th>{escape(g.name)}</th>" for g in found.groups)
    lines = "".join(
        f'<tr class="{"mean" if name == MEAN else ""}"><td>{escape(name)}</td>'
        f"<td>{escape(base.text())}</td>{''.join(_away(each, widest) for each in away)}</tr>"
        for name, base, away in rows
    )
    return (
        f"<h2>IoU of every class at step {step}, %, and differences in points</h2>"
        '<div class="card scroll"><table class="iou lines">'
        f"<tr><th>class</th>{head}</tr>{lines}</table></div>"
    )


def _away(value: Estimate, widest: float) -> str:
    """A cell with a difference and a bar to its side of the middle."""
    if not value.count:
        return "<td>–</td>"
    share = 50 * min(abs(value.mean) / widest, 1)
    up = value.mean >= 0
    place = f"left:{50 if up else 50 - share:.1f}%;width:{share:.1f}%"
    colour = "var(--series-2)" if up else "var(--series-4)"
    return (
        f'<td><div class="value away"><span>{escape(_points(value))}</span><div class="bar">'
        f'<i style="{place};background:{colour}"></i></div></div></td>'
    )


def _parting(found: ComparedRuns) -> str:
    first, *others = found.groups
    names = (MEAN, *found.classes())
    if not others:
        return ""
    parted = [{p.name: p for p in partings(group, first, names[1:])} for group in others]
    rows = [
        [name, *(_parted(each[name]) if name in each else "–" for each in parted)]
        for name in names
        if any(name in each for each in parted)
    ]
    said = "".join(
        f"<p>{escape(_first_parting(group, first, each))}</p>"
        for group, each in zip(others, parted, strict=True)
    )
    shown = page.table(["from step", *(group.name for group in others)], rows) if rows else ""
    return (
        f"<h2>Where they part from {escape(first.name)}</h2>{said}{shown}"
        '<p class="small faint">A group parts at the evaluation from which on, up to the last, all '
        "of its seeds lie above all of the other group's, or all below.</p>"
    )


def _parted(parting: Parting) -> str:
    return f"{parting.step}, {'above' if parting.sign > 0 else 'below'}"


def _first_parting(group: Group, first: Group, parted: Mapping[str, Parting]) -> str:
    """A sentence on where a group parts first, and what chance alone would do."""
    if len(group.runs) < 2 and len(first.runs) < 2:
        return f"{group.name}: one seed each, so nothing says how far seeds lie apart."
    if not group.steps() & first.steps():
        return f"{group.name}: there is no step at which it and {first.name} were scored."
    classes = [parting for name, parting in parted.items() if name != MEAN]
    mean = f"mIoU from step {_parted(parted[MEAN])}" if MEAN in parted else "not in mIoU"
    earliest = min(classes, key=lambda parting: parting.step, default=None)
    rest = f"first {earliest.name}, from step {_parted(earliest)}" if earliest else "in no class"
    chance = f"{by_chance(group, first):.0%} of the classes would by chance at one evaluation"
    return f"{group.name}: {mean}; {rest}; {len(classes)} classes in all, and {chance}."


def _run_by_run(found: ComparedRuns) -> str:
    runs = found.runs
    labels = [f"{group.name}, seed {seed}" for group in found.groups for seed in group.seeds]
    rows = []
    for label, run in zip(labels[1:], runs[1:], strict=True):
        at = first_difference(run, runs[0])
        values = [str(at.step), at.metric, f"{at.ours:.7g}", f"{at.theirs:.7g}"] if at else None
        # "never" needs something that both wrote.
        none = "never" if common_steps(run, runs[0]) else "no step in common"
        rows.append([label, *(values or [none, "–", "–", "–"])])
    if not rows:
        return ""
    head = ["run", "differs first at step", "in", "which is", f"in {labels[0]}"]
    return (
        f"<h2>Where each run differs at all from {escape(labels[0])}</h2>{page.table(head, rows)}"
        '<p class="small faint">Of everything that both wrote but times and memory. Runs of one '
        "config and one seed are the same on a CPU, elsewhere up to rounding.</p>"
    )
