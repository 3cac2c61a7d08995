"""The report's answer to which checkpoint to take: the last, the one picked without labels and the
best by labels, side by side."""

from __future__ import annotations

import math
from html import escape

from mrm_jax.report import record
from mrm_jax.report.charts import Curve, line_chart, series_colour, short
from mrm_jax.report.facts import drawn_mark
from mrm_jax.report.record import RunRecord

PREFIX = "select/"
ORDER = ("infomax", "entropy", "diversity", "agreement", "masked_agreement")

ScoredSteps = dict[str, dict[int, float]]
"""Of every score without labels its value by step."""


def checkpoints(run: RunRecord) -> str:
    """The table and the scores over steps; empty for a run that has no scores without labels."""
    scores = _scores(run)
    if not scores:
        return ""
    by = str(run.option("evaluation.pick_by", ""))
    means = {network: _finite(run, f"eval/{network}/mIoU") for network in record.NETWORKS}
    last = max(step for found in (*scores.values(), *means.values()) for step in found)
    chosen = (
        ("last evaluated", last),
        (f"picked without labels, by {by or 'no score'}", _highest(scores.get(by, {}))),
        ("best by labels (chosen by the labels it is scored on)", _highest(means["student"])),
    )
    heads = ["checkpoint", "step", *(f"{network} mIoU, %" for network in means), *scores]
    titles = "".join(f"<th>{escape(head.replace('_', ' '))}</th>" for head in heads)
    over = {network: _finite(run, f"eval/{network}/classes_in_mIoU") for network in means}
    rows = "".join(_row(name, step, means, over, scores) for name, step in chosen)
    return (
        f"<h2>Which checkpoint{drawn_mark(run, 'target', 'evaluation')}</h2>"
        f'<div class="card scroll"><table class="plain lines"><tr>{titles}</tr>{rows}</table></div>'
        '<p class="small faint">Scores without labels are computed on target pictures of the '
        "training set; higher is better, but lower for entropy. Training lowers entropy by "
        "itself, so a confident network need not be a right one.</p>"
        f"{_chart(run, scores)}"
    )


def _scores(run: RunRecord) -> ScoredSteps:
    named = {name: _finite(run, PREFIX + name) for name in ORDER}
    return {name: found for name, found in named.items() if found}


def _finite(run: RunRecord, name: str) -> dict[int, float]:
    return {step: value for step, value in run.series(name) if math.isfinite(value)}


def _highest(found: dict[int, float]) -> int | None:
    """The step of the highest value, the earliest of equals; as checkpoints are kept."""
    return max(found, key=lambda step: found[step], default=None)


def _row(
    name: str, step: int | None, means: ScoredSteps, over: ScoredSteps, scores: ScoredSteps
) -> str:
    at = -1 if step is None else step

    def mean(network: str) -> str:
        if at not in means[network]:
            return "–"
        classes = over[network].get(at)
        covered = "" if classes is None else f" ({classes:.0f} classes)"
        return f"{100 * means[network][at]:.1f}{covered}"

    cells = [
        "–" if step is None else str(step),
        *map(mean, means),
        *(short(found[at]) if at in found else "–" for found in scores.values()),
    ]
    return f"<tr><td>{escape(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _chart(run: RunRecord, scores: ScoredSteps) -> str:
    curves = [
        Curve(name.replace("_", " "), sorted(found.items()), series_colour(place), "dots")
        for place, (name, found) in enumerate(scores.items())
    ]
    return (
        '<div class="grid2"><figure class="card"><h3>Scores without labels'
        f"{drawn_mark(run, 'target')}</h3>{line_chart(curves)}</figure></div>"
    )
