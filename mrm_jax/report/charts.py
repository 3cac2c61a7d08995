"""Curves as inline SVG: sharp at any size, coloured by the page's theme, readable without
scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Points = Sequence[tuple[int, float]]

_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 30
MAX_POINTS = 600
"""Points drawn of a long curve; the rest is averaged away."""


@dataclass(frozen=True)
class Curve:
    """A named curve; `colour` is CSS.

    `style`: "plain" is the line alone, "dots" marks every point, with its value as a tooltip, and
    "noisy" draws the line pale with its running mean on top. `band`:
    (step, lowest, highest) of what the line is the mean of.
    """

    name: str
    points: Points
    colour: str
    style: Literal["plain", "dots", "noisy"] = "plain"
    band: Sequence[tuple[int, float, float]] = ()


def series_colour(index: int) -> str:
    """CSS colour of the index-th curve of a chart, from the page's theme."""
    return f"var(--series-{index % 8})"


def line_chart(curves: Sequence[Curve], *, percent: bool = False, low: float | None = None) -> str:
    """An SVG of the curves over steps, with a legend of names and last values.

    `percent`: values are shares of 1, shown in percent. `low`: where the axis starts (default: the
    data's).
    An empty string when no curve has a finite point.
    """
    curves = [curve for curve in curves if any(math.isfinite(y) for _, y in curve.points)]
    if not curves:
        return ""
    scale = 100.0 if percent else 1.0
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y * scale for curve in curves for _, y in curve.points if math.isfinite(y)]
    ys += [y * scale for curve in curves for _, *ends in curve.band for y in ends]
    x_ticks = ticks(0, max(xs), 5, whole=True)
    y_ticks = ticks(min(ys) if low is None else low, max(ys), 5)
    frame = _Frame(0, max(xs), y_ticks[0], y_ticks[-1])
    parts = [_grid(frame, x_ticks, y_ticks, "%" if percent else "")]
    parts += [_band(frame, curve, scale) for curve in curves if curve.band]
    for curve in curves:
        scaled = [(x, y * scale) for x, y in curve.points]
        parts.append(_curve(frame, curve, scaled, "%" if percent else ""))
    names = ", ".join(curve.name for curve in curves)
    svg = (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(names)} over steps">' + "".join(parts) + "</svg>"
    )
    return svg + _legend(curves, percent)


def sparkline(points: Points, colour: str) -> str:
    """A small SVG over steps, its axis from 0 to the highest value; empty below two points."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if len(finite) < 2:
        return ""
    start, end = finite[0][0], finite[-1][0]
    top = max(max(y for _, y in finite), 0.01)
    line = " ".join(
        f"{2 + 76 * (x - start) / max(end - start, 1):.1f},{20 - 17 * max(y, 0) / top:.1f}"
        for x, y in thin(finite, 60)
    )
    return (
        '<svg class="spark" viewBox="0 0 80 22" role="img" aria-label="IoU over steps">'
        f'<path class="grid" d="M2 20H78"/><polyline points="{line}" '
        f'style="stroke:{colour}"/></svg>'
    )


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """About `count` round numbers that enclose low..high, ascending; at least two."""
    if not high > low:
        high = low + (abs(low) or 1.0) * 0.1
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 2.5, 5) if m * power >= raw * 0.999), 10 * power)
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def running_mean(points: Points, share: float = 0.04) -> list[tuple[int, float]]:
    """The mean of every value with its finite neighbours, over `share` of the curve in all."""
    reach = max(1, round(len(points) * share / 2))
    result = []
    for index, (x, y) in enumerate(points):
        near = [v for _, v in points[max(0, index - reach) : index + reach + 1] if math.isfinite(v)]
        result.append((x, sum(near) / len(near) if near and math.isfinite(y) else math.nan))
    return result


def thin(points: Points, count: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `count` points: means of neighbours (NaN where all of them are)."""
    size = math.ceil(len(points) / count) if points else 1
    result = []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        finite = [y for _, y in group if math.isfinite(y)]
        mean = sum(finite) / len(finite) if finite else math.nan
        result.append((sum(x for x, _ in group) / len(group), mean))
    return result


def short(value: float) -> str:
    """The number in at most about four significant digits: 12345 is 12.3k."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        for size, mark in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:.3g}{mark}"
    if abs(value) < 1e-2:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class _Frame:
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        span = max(self.x_high - self.x_low, 1e-12)
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - self.x_low) / span

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share


def _grid(frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], unit: str) -> str:
    parts = []
    for value in y_ticks:
        y = frame.y(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        label = f"{short(value)}{unit}"
        parts.append(f'<text class="end" x="{_LEFT - 7}" y="{y + 4:.1f}">{label}</text>')
    for value in x_ticks:
        if frame.x_low <= value <= frame.x_high:
            x = frame.x(value)
            parts.append(f'<text class="mid" x="{x:.1f}" y="{_HEIGHT - 9}">{short(value)}</text>')
    return "".join(parts)


def _band(frame: _Frame, curve: Curve, scale: float) -> str:
    there = [(x, low * scale) for x, low, _ in curve.band]
    back = [(x, high * scale) for x, _, high in reversed(curve.band)]
    path = _path(frame, [*there, *back])
    return f'<path class="band" style="fill:{curve.colour}" d="{path}Z"/>'


def _curve(frame: _Frame, curve: Curve, points: Points, unit: str) -> str:
    style = f'style="stroke:{curve.colour}"'
    if curve.style == "dots":
        parts = [f'<path class="line" {style} d="{_path(frame, points)}"/>']
        for x, y in points:
            if math.isfinite(y):
                tip = f"{curve.name}, step {x}: {short(y)}{unit}"
                parts.append(
                    f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.2" '
                    f'style="fill:{curve.colour}"><title>{escape(tip)}</title></circle>'
                )
        return "".join(parts)
    raw = _path(frame, thin(points))
    if curve.style == "plain" or len(points) < 12:
        return f'<path class="line" {style} d="{raw}"/>'
    smooth = _path(frame, thin(running_mean(points)))
    return f'<path class="line pale" {style} d="{raw}"/><path class="line" {style} d="{smooth}"/>'


def _path(frame: _Frame, points: Sequence[tuple[float, float]]) -> str:
    """SVG path commands; the pen is lifted over values that are not finite."""
    commands, lifted = [], True
    for x, y in points:
        if math.isfinite(y):
            y = min(max(y, frame.y_low), frame.y_high)
            commands.append(f"{'M' if lifted else 'L'}{frame.x(x):.1f} {frame.y(y):.1f}")
        lifted = not math.isfinite(y)
    return "".join(commands)


def _legend(curves: Sequence[Curve], percent: bool) -> str:
    items = []
    for curve in curves:
        last = next(y for _, y in reversed(curve.points) if math.isfinite(y))
        value = f"{last:.1%}" if percent else short(last)
        items.append(
            f'<span><i style="background:{curve.colour}"></i>{escape(curve.name)} '
            f"<b>{value}</b></span>"
        )
    return f'<div class="legend">{"".join(items)}</div>'
