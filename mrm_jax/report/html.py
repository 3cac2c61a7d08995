"""A run's report: one HTML file that needs nothing else, made from the files of its workdir."""

from __future__ import annotations

import base64
import math
import os
from html import escape
from pathlib import Path
from typing import Any

from mrm_jax import __version__
from mrm_jax.evaluation.protocols import Protocol
from mrm_jax.report import charts, facts, record
from mrm_jax.report.charts import Curve, line_chart, series_colour
from mrm_jax.report.facts import drawn_mark
from mrm_jax.report.record import Record, Score
from mrm_jax.report.theme import CSS

NAME = "report.html"


def write_report(workdir: str | Path) -> Path:
    """Writes `report.html` of a run into its workdir and returns its path.

    Reads config.json, environment.json, metrics.jsonl, evaluation.json and views/*.png; what is
    missing or torn is
    left out. The file appears whole or not at all. Raises FileNotFoundError when there is no such
    folder.
    """
    found = record.read(workdir)
    path = found.workdir / NAME
    partial = path.with_suffix(".html.partial")
    partial.write_text(page(found), "utf-8")
    os.replace(partial, path)
    return path


def page(run: Record) -> str:
    """The report as HTML text: no scripts, no addresses, pictures inside."""
    sections = (
        _title,
        _headline,
        _alarms,
        _command,
        _classes,
        _curves,
        _pictures,
        facts.confusion,
        facts.configuration,
        facts.time_and_memory,
        facts.environment,
    )
    body = "\n".join(part for section in sections if (part := section(run)))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(_name(run))}</title><style>{CSS}</style></head>\n<body><main>\n{body}\n"
        f"<footer>Written by mrm_jax {escape(__version__)} from the files in this run's workdir."
        f"{_unread(run)}</footer>\n</main></body></html>\n"
    )


def _name(run: Record) -> str:
    return run.workdir.resolve().name or "run"


def _unread(run: Record) -> str:
    if not run.unread:
        return ""
    lines = "1 line" if run.unread == 1 else f"{run.unread} lines"
    return f" {lines} of metrics.jsonl could not be read and left out."


def _method(run: Record) -> str:
    parts = [str(run.option("method.kind", ""))]
    if run.option("method.mrm.enabled"):
        parts.append("MRM")
    if run.option("method.augmented_source"):
        parts.append("augmented source")
    return " + ".join(part for part in parts if part)


def _steps(run: Record) -> tuple[int | None, int | None]:
    """(last step seen, steps planned)."""
    planned = run.option("train.steps")
    return run.last_step(), planned if isinstance(planned, int) else None


def _title(run: Record) -> str:
    done, planned = _steps(run)
    badges = []
    if drawn := run.drawn():
        badges.append(("drawn", f"drawn data: {', '.join(drawn)}"))
    if method := _method(run):
        badges.append(("", method))
    if (seed := run.option("seed")) is not None:
        badges.append(("", f"seed {seed}"))
    if done is None:
        badges.append(("warn", "no metrics yet"))
    elif planned and done < planned:
        badges.append(("warn", f"stopped at step {done} of {planned}"))
    else:
        badges.append(("", f"{done} steps"))
    marks = "".join(f'<span class="badge {kind}">{escape(text)}</span>' for kind, text in badges)
    return f'<h1>{escape(_name(run))}</h1><div class="badges">{marks}</div>'


def _headline(run: Record) -> str:
    student, teacher = run.scores("student"), run.scores("teacher")
    if not student and not teacher:
        return '<div class="card"><p>No evaluation has been written yet.</p></div>'
    network, scores = ("student", student) if student else ("teacher", teacher)
    final, others = scores[-1], []
    if student and teacher:
        others.append((_percent(teacher[-1].mean_iou), f"teacher, step {teacher[-1].step}"))
    if top := record.best(scores):
        others.append(
            (
                _percent(top.mean_iou),
                f"best {network}, step {top.step}: the highest of {len(scores)} evaluations, "
                f"picked on the "
                "pictures it is scored on, so it flatters",
            )
        )
    accuracy = dict(run.series(f"eval/{network}/pixel_accuracy")).get(final.step)
    if accuracy is not None:
        others.append((_percent(accuracy), f"pixel accuracy of the {network}, step {final.step}"))
    extra = "".join(
        f'<div><b>{v}</b><span class="small faint">{escape(t)}</span></div>' for v, t in others
    )
    number = (
        charts.short(final.mean_iou * 100)
        if math.isnan(final.mean_iou)
        else f"{final.mean_iou:.1%}"[:-1]
    )
    done, planned = _steps(run)
    last = "final step" if planned is not None and final.step >= planned else "last evaluation"
    return (
        f'<div class="card head"><div><div class="big">{number}<small>% mIoU</small></div>'
        f'<span class="faint">{network}, {last} '
        f"({final.step}){drawn_mark(run, 'evaluation')}</span></div>"
        f'<div class="others">{extra}</div><p class="protocol '
        f'small">{escape(_protocol(run))}</p></div>'
    )


def _protocol(run: Record) -> str:
    """How the scores were computed: evaluation.json's sentence, or what config.json implies."""
    if sentence := _recorded_protocol(run):
        return f"Protocol: {sentence}."
    if not run.config:
        return "Protocol unknown: the workdir has no config.json."
    kind = run.option("data.evaluation.kind")
    if kind == "drawn":
        look, split = run.option("data.evaluation.look"), run.option("data.evaluation.split")
        where = f"{run.option('data.evaluation.count')} drawn scenes ({look}, {split})"
    else:
        where = (
            f"pictures of {run.option('data.evaluation.path') or run.option('data.target.path')}"
        )
    if limit := run.option("evaluation.limit"):
        where = f"the first {limit} {where.removeprefix(str(limit)).strip()}"
    names = run.option("data.classes.names") or []
    counted = run.option("evaluation.classes") or names
    of = f" of {len(names)}" if len(counted) != len(names) else ""
    if run.option("evaluation.mode") == "slide":
        window, stride = run.option("evaluation.window"), run.option("evaluation.stride")
        how = f"windows of {_size(window)} every {_size(stride)} px"
    else:
        how = "whole pictures"
    return (
        f"Protocol: mean IoU over {len(counted)}{of} classes on {where}, {how}, labels at their "
        f"own size, "
        "one scale, no flips."
    )


def _recorded_protocol(run: Record) -> str:
    """The protocol in evaluation.json, where it belongs to the last scores of metrics.jsonl."""
    scores = run.scores("student") or run.scores("teacher")
    fields = run.evaluation.get("protocol")
    if not scores or run.evaluation.get("step") != scores[-1].step or not isinstance(fields, dict):
        return ""
    try:
        return Protocol(**fields).sentence()
    except (TypeError, KeyError, IndexError):  # written by another version
        return ""


def _size(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _percent(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{100 * value:.1f} %"


def _alarms(run: Record) -> str:
    """What the run's sentinel wrote, and classes that the last student never finds."""
    rows = [
        f"step {line['step']}: {line[name]}"
        for line in run.lines
        for name in line
        if name.startswith("alarm/")
    ]
    scores = run.scores("student")
    lost = [name for name, value in scores[-1].iou.items() if value < 0.005] if scores else []
    if lost:
        rows.append(
            f"step {scores[-1].step}: the student finds nothing of {', '.join(lost)} (IoU below "
            f"0.5 %)"
        )
    if not rows:
        return ""
    items = "".join(f"<li>{escape(row)}</li>" for row in rows[-30:])
    return f'<h2>Alarms</h2><div class="card alarm"><ul class="small">{items}</ul></div>'


def _command(run: Record) -> str:
    command = run.environment.get("command")
    if not command:
        return ""
    commit = run.environment.get("git")
    at = f" at commit <code>{escape(str(commit))}</code>" if commit else ""
    return (
        f"<h2>Command</h2><pre>{escape(str(command))}</pre>"
        f'<p class="small faint">To do it again, run this{at} with the package versions listed '
        f"under "
        "Environment. The order of the data and every draw follow from the seed and the step; on "
        "one kind of "
        "device the figures come back exactly, on another one up to rounding.</p>"
    )


def _classes(run: Record) -> str:
    columns: list[tuple[str, Score]] = []
    for network in record.NETWORKS:
        scores = run.scores(network)
        if scores:
            columns.append((f"{network}, step {scores[-1].step}", scores[-1]))
    for network in record.NETWORKS:
        top = record.best(run.scores(network))
        if top and top.step != run.scores(network)[-1].step:
            columns.append((f"best {network}, step {top.step}", top))
    if not columns:
        return ""
    curves = {score.step: score for score in run.scores("student") or run.scores("teacher")}
    head = "".join(f"<th>{escape(title)}</th>" for title, _ in columns)
    rows = [_class_row("mean", "var(--accent)", [s.mean_iou for _, s in columns], "", "mean")]
    for name, colour in run.classes().items():
        css = f"rgb({','.join(map(str, colour))})"
        line = charts.sparkline(
            [(k, s.iou.get(name, math.nan)) for k, s in curves.items()], "var(--accent)"
        )
        rows.append(
            _class_row(name, css, [s.iou.get(name, math.nan) for _, s in columns], line, "")
        )
    return (
        f"<h2>IoU of every class, %{drawn_mark(run, 'evaluation')}</h2>"
        f'<div class="card scroll"><table class="iou"><tr><th>class</th>{head}<th '
        f'class="spare">over steps</th>'
        f"</tr>{''.join(rows)}</table></div>"
        '<p class="small faint">A dash is a class that neither the labels nor the predictions '
        "have.</p>"
    )


def _class_row(name: str, css: str, values: list[float], line: str, kind: str) -> str:
    swatch = "" if kind else f'<i class="swatch" style="background:{css}"></i>'
    cells = "".join(f"<td>{_bar(value, css)}</td>" for value in values)
    first = f"<td>{swatch}{escape(name)}</td>"
    return f'<tr class="{kind}">{first}{cells}<td class="spare">{line}</td></tr>'


def _bar(value: float, css: str) -> str:
    if not math.isfinite(value):
        return '<div class="value"><span>–</span></div>'
    width = 100 * min(max(value, 0), 1)
    return (
        f'<div class="value"><span>{100 * value:.1f}</span>'
        f'<div class="bar"><i style="width:{width:.1f}%;background:{css}"></i></div></div>'
    )


def _curves(run: Record) -> str:
    names = run.names()
    train, evaluation = ("source", "target"), ("evaluation",)
    losses = [
        n
        for n in names
        if n != "total/loss" and n.split("/")[-1].startswith(("ce", "feature_dist"))
    ]
    rates = [n for n in names if "learning_rate" in n]
    figures = [
        ("mIoU", _many(run, [f"eval/{n}/mIoU" for n in record.NETWORKS], percent=True), evaluation),
        ("Loss of every pass, unweighted", _many(run, losses, low=0), train),
        ("Total loss", _many(run, ["total/loss"], low=0), train),
        (
            "Target pixels whose pseudo-label is confident",
            _many(run, ["teacher/confident_share"], percent=True, low=0),
            ("target",),
        ),
        ("Share of every class in the pseudo-labels", _class_shares(run), ("target",)),
        ("Learning rate", _many(run, rates, low=0), ()),
    ]
    cards = "".join(
        f'<figure class="card"><h3>{escape(title)}{drawn_mark(run, *sets)}</h3>{chart}</figure>'
        for title, chart, sets in figures
        if chart
    )
    return f'<h2>Curves over steps</h2><div class="grid2">{cards}</div>' if cards else ""


def _many(run: Record, names: list[str], *, percent: bool = False, low: float | None = None) -> str:
    curves = []
    for name in names:
        evaluated = name.startswith("eval/")
        label = name.split("/")[1] if evaluated else name
        colour = series_colour(len(curves))
        noisy = "learning_rate" not in name
        style = "dots" if evaluated else "noisy" if noisy else "plain"
        curves.append(Curve(label, run.series(name), colour, style))
    return line_chart(curves, percent=percent, low=0 if percent else low)


def _class_shares(run: Record) -> str:
    prefix = "teacher/class_share/"
    colours = run.classes()
    curves = [
        Curve(
            name.removeprefix(prefix),
            charts.running_mean(run.series(name)),
            f"rgb({','.join(map(str, colours.get(name.removeprefix(prefix), (128, 128, 128))))})",
        )
        for name in run.names()
        if name.startswith(prefix)
    ]
    return line_chart(curves, percent=True, low=0)


def _pictures(run: Record) -> str:
    figures = []
    for kind, sheets in run.sheets.items():
        chosen = dict.fromkeys((sheets[0], sheets[-1]))
        for step, path in chosen:
            title = f"{kind or 'views'}, step {step}".replace("_", " ")
            mark = (
                drawn_mark(run, "evaluation")
                if "eval" in kind
                else drawn_mark(run, "source", "target")
            )
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            figures.append(
                f'<figure class="sheet"><figcaption>{escape(title)}{mark}</figcaption><div '
                f'class="scroll">'
                f'<img alt="{escape(title)}" src="data:image/png;base64,{data}"></div></figure>'
            )
    return f"<h2>Pictures, first and last</h2>{''.join(figures)}" if figures else ""
