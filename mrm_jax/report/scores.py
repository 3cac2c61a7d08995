"""The report's scores and curves: IoU of every class, and every metric over the steps."""

from __future__ import annotations

import math
from html import escape

from mrm_jax.report import charts, record
from mrm_jax.report.charts import Curve, line_chart, series_colour
from mrm_jax.report.facts import drawn_mark
from mrm_jax.report.record import RunRecord, Score

PASSES = ("source", "augmented", "mixed", "masked", "inpainted", "reconstructed")
LOSSES = ("ce", "feature", "contrast", "pixels")
"""How the name of a loss begins, behind that of its pass."""


def network_class_table(run: RunRecord) -> str:
    """IoU of every class: student and teacher at the last evaluation, and at their best ones."""
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
        f'<div class="card scroll"><table class="iou"><tr><th>class</th>{head}'
        f'<th class="spare">over steps</th></tr>{"".join(rows)}</table></div>'
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


def curves(run: RunRecord) -> str:
    """Losses, pseudo-label shares, mIoU and learning rates over the steps, those that there are."""
    names = run.names()
    train, evaluation = ("source", "target"), ("evaluation",)
    losses = [n for n in names if n != "total/loss" and n.split("/")[-1].startswith(LOSSES)]
    losses.sort(key=lambda name: _place(name.split("/")[0]))
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
        (
            "Gradient norm",
            _many(run, [n for n in names if n.startswith("grad_norm/")], low=0),
            train,
        ),
        ("Learning rate", _many(run, rates, low=0), ()),
    ]
    cards = "".join(
        f'<figure class="card"><h3>{escape(title)}{drawn_mark(run, *sets)}</h3>{chart}</figure>'
        for title, chart, sets in figures
        if chart
    )
    return f'<h2>Curves over steps</h2><div class="grid2">{cards}</div>' if cards else ""


def _place(name: str) -> int:
    """Where a pass stands in a step."""
    return PASSES.index(name) if name in PASSES else len(PASSES)


def _many(
    run: RunRecord, names: list[str], *, percent: bool = False, low: float | None = None
) -> str:
    curves = []
    for name in names:
        evaluated = name.startswith("eval/")
        label = name.split("/")[1] if name.startswith(("eval/", "grad_norm/")) else name
        colour = series_colour(len(curves))
        style = "dots" if evaluated else "plain" if "learning_rate" in name else "noisy"
        curves.append(Curve(label, run.series(name), colour, style))
    return line_chart(curves, percent=percent, low=0 if percent else low)


def _class_shares(run: RunRecord) -> str:
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
