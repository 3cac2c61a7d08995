"""The report's tables to look things up in: options, time, memory, environment, confusion."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping
from html import escape
from typing import Any, TypeGuard

from mrm_jax.report import charts
from mrm_jax.report.record import NETWORKS, RunRecord, Setting, flat


def drawn_mark(run: RunRecord, *sets: str) -> str:
    """The badge of a figure made from `sets` ("source", "target", "evaluation") that are drawn."""
    return '<span class="mark">drawn data</span>' if set(run.drawn()) & set(sets) else ""


def configuration(run: RunRecord) -> str:
    """Options that differ from their defaults, and all of them behind a click."""
    settings = run.settings()
    if not settings:
        return ""
    differing = [s for s in settings if s.differs and not s.name.startswith("data.classes.")]
    classes = len(run.option("data.classes.names") or [])
    return (
        "<h2>Configuration</h2>"
        f'<div class="card scroll"><h3>{len(differing)} options differ from their defaults, '
        f"and {classes} classes are set</h3>{_settings_table(differing, defaults=True)}"
        f"<details><summary>All {len(settings)} options</summary>"
        f"{_settings_table(settings, defaults=False)}</details></div>"
    )


def _settings_table(settings: list[Setting], *, defaults: bool) -> str:
    rows = []
    for setting in settings:
        default = f"<td><code>{_value(setting.default)}</code></td>" if defaults else ""
        rows.append(
            f"<tr><td><code>{_dotted(setting.name)}</code></td>"
            f"<td><code>{_value(setting.value)}</code></td>{default}"
            f'<td class="doc">{escape(setting.doc)}</td></tr>'
        )
    head = "<th>default</th>" if defaults else ""
    return (
        f'<table class="plain"><tr><th>option</th><th>value</th>{head}'
        '<th class="doc">meaning</th></tr>'
        f"{''.join(rows)}</table>"
    )


def _dotted(name: str) -> str:
    """A dotted name, which a narrow page breaks behind a dot or an underscore alone."""
    return re.sub(r"([._])(?=.)", r"\1<wbr>", escape(name))


def _value(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value)
    return escape(text)


def time_and_memory(run: RunRecord) -> str:
    """Every `perf/` metric but the time left: median, lowest, highest and last value."""
    rows = []
    for name in run.names():
        values = [v for _, v in run.series(name) if math.isfinite(v)]
        if name.startswith("perf/") and "eta" not in name and values:
            numbers = (statistics.median(values), min(values), max(values), values[-1])
            cells = "".join(f"<td>{quantity(name, number)}</td>" for number in numbers)
            rows.append(
                f"<tr><td><code>{escape(name.removeprefix('perf/'))}</code></td>{cells}</tr>"
            )
    if not rows:
        return ""
    return (
        '<h2>Time and memory</h2><div class="card scroll"><table '
        'class="plain lines"><tr><th></th><th>median</th>'
        f"<th>lowest</th><th>highest</th><th>last</th></tr>{''.join(rows)}</table></div>"
    )


def quantity(name: str, value: float) -> str:
    """The number with the unit that its name tells: bytes in binary multiples, long seconds in
    minutes."""
    if "bytes" in name:
        power = min(int(math.log2(value) // 10), 4) if value >= 1 else 0
        return f"{value / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
    if "second" in name and "per_second" not in name:
        return f"{value:.3g} s" if value < 120 else f"{value / 60:.1f} min"
    return charts.short(value)


def environment_rows(run: RunRecord) -> str:
    """All that environment.json says, nested names dotted."""
    rows = [
        f"<tr><td><code>{_dotted(name)}</code></td><td>{_value(value)}</td></tr>"
        for name, value in flat(run.environment)
        if name != "command"
    ]
    if not rows:
        return ""
    return (
        '<h2>Environment</h2><div class="card scroll"><table class="plain">'
        f"{''.join(rows)}</table></div>"
    )


def evaluations(run: RunRecord) -> list[tuple[str, Mapping[str, Any]]]:
    """(network, scores) in evaluation.json: the first at its top, others under their names."""
    protocol = run.evaluation.get("protocol")
    first = protocol.get("network") if isinstance(protocol, Mapping) else None
    found = [(str(first), run.evaluation)] if first else []
    others = [(name, run.evaluation.get(name)) for name in NETWORKS if name != first]
    return found + [(name, scores) for name, scores in others if isinstance(scores, Mapping)]


def confusion(run: RunRecord) -> str:
    """The confusion matrices in evaluation.json, rows normalised, each with its protocol."""
    figures = []
    names = list(run.classes())
    number = run.evaluation.get("step")
    step = f", step {number}" if isinstance(number, int) else ""
    for network, scores in evaluations(run):
        matrix = scores.get("confusion")
        if not _square(matrix, len(names)):
            continue
        figures.append(
            f'<figure class="card"><h3>{escape(network)}{step}{drawn_mark(run, "evaluation")}</h3>'
            f"{_matrix(matrix, names)}{_protocol_table(scores)}</figure>"
        )
    if not figures:
        return ""
    return (
        "<h2>Confusion matrix</h2>"
        '<p class="small faint">From evaluation.json. Rows are the true class, columns the '
        "predicted one; the "
        "stronger the colour, the larger the share of the true class's pixels. Hover over a cell "
        "for its figure.</p>"
        f'<div class="grid2">{"".join(figures)}</div>'
    )


def _square(matrix: Any, size: int) -> TypeGuard[list[list[float]]]:
    return (
        isinstance(matrix, list)
        and 0 < size == len(matrix)
        and all(isinstance(row, list) and len(row) == size for row in matrix)
    )


def _matrix(matrix: list[list[float]], names: list[str]) -> str:
    left, cell = 84, 20
    side = cell * len(names)
    parts = []
    for i, (truth, row) in enumerate(zip(names, matrix, strict=True)):
        total = sum(row)
        y = i * cell
        parts.append(f'<text class="end" x="{left - 6}" y="{y + 14}">{escape(truth)}</text>')
        for j, (predicted, count) in enumerate(zip(names, row, strict=True)):
            share = count / total if total else 0.0
            colour = "var(--series-2)" if i == j else "var(--series-4)"
            tip = f"{truth} predicted as {predicted}: {share:.1%}"
            parts.append(
                f'<rect class="cell" x="{left + j * cell}" y="{y}" width="{cell}" height="{cell}" '
                f'style="fill:{colour};fill-opacity:{share**0.6:.3f}">'
                f"<title>{escape(tip)}</title></rect>"
            )
    for j, name in enumerate(names):
        x, y = left + j * cell + 14, side + 8
        parts.append(
            f'<text class="end" transform="translate({x} {y}) rotate(-60)">{escape(name)}</text>'
        )
    return (
        f'<svg viewBox="0 0 {left + side + 4} {side + 76}" role="img" aria-label="confusion '
        f'matrix">'
        f"{''.join(parts)}</svg>"
    )


def _protocol_table(scores: Mapping[str, Any]) -> str:
    protocol = scores.get("protocol")
    if not isinstance(protocol, Mapping):
        return ""
    also = [row[0] for row in protocol.get("also") or () if row]
    over = scores.get("classes_covered")
    over = over if isinstance(over, Mapping) else {}
    rows = [
        (f"{name} over {over[name]} classes" if name in over else name, scores.get(name))
        for name in ("mIoU", *also)
    ]
    rows.append(("pixel accuracy", scores.get("pixel_accuracy")))
    rows.append(("calibration error (ECE)", scores.get("ECE")))
    rows += [(str(key).replace("_", " "), value) for key, value in protocol.items()]
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td>{_value(value)}</td></tr>" for name, value in rows
    )
    table = f'<table class="plain">{cells}</table>'
    return f'<details class="scroll"><summary>Protocol</summary>{table}</details>'
