"""What a workdir says about its run, read without complaint: a run stopped early still has a
report."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrm_jax.config import Config
from mrm_jax.options import declared

NETWORKS = ("student", "teacher")


@dataclass(frozen=True)
class Score:
    """One evaluation of one network: shares of 1, NaN where there is no score."""

    step: int
    mean_iou: float
    iou: dict[str, float]


@dataclass(frozen=True)
class Setting:
    """One option of the run beside its default (None when today's table does not know it)."""

    name: str
    value: Any
    default: Any
    doc: str

    @property
    def differs(self) -> bool:
        """True when the run does not use the default."""
        return self.value != self.default


@dataclass(frozen=True)
class RunRecord:
    """A run's files. Missing ones are empty; `unread` counts lines of metrics.jsonl that are no
    JSON object.

    `sheets`: for every kind of picture sheet its (step, path), by step.
    """

    workdir: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    evaluation: dict[str, Any]
    lines: tuple[dict[str, Any], ...]
    unread: int
    sheets: dict[str, tuple[tuple[int, Path], ...]]

    def names(self) -> list[str]:
        """Every metric's name, in the order of its first appearance."""
        return list(dict.fromkeys(name for line in self.lines for name in line if name != "step"))

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a metric by step; null is NaN. Of two lines with one step the later one
        counts."""
        found = {line["step"]: number(line[name]) for line in self.lines if name in line}
        return sorted(found.items())

    def scores(self, network: str) -> list[Score]:
        """The evaluations of "student" or "teacher" during training, by step."""
        prefix = f"eval/{network}/IoU/"
        found: dict[int, dict[str, float]] = {}
        for name in self.names():
            if name.startswith(prefix):
                for step, value in self.series(name):
                    found.setdefault(step, {})[name.removeprefix(prefix)] = value
        means = dict(self.series(f"eval/{network}/mIoU"))
        steps = sorted({*found, *means})
        return [Score(s, means.get(s, math.nan), found.get(s, {})) for s in steps]

    def last_step(self) -> int | None:
        """The largest step that a line of metrics names."""
        return max((line["step"] for line in self.lines), default=None)

    def option(self, name: str, default: Any = None) -> Any:
        """The value of a dotted option in config.json, such as "method.kind"."""
        value: Any = self.config
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value

    def drawn(self) -> list[str]:
        """Which of source, target and evaluation are drawn scenes."""
        sets = ("source", "target", "evaluation")
        return [name for name in sets if self.option(f"data.{name}.kind") == "drawn"]

    def classes(self) -> dict[str, tuple[int, int, int]]:
        """Name and colour of every class, train-id order; from the metrics' names where
        config.json has none."""
        names = self.option("data.classes.names") or []
        colours = self.option("data.classes.colours") or []
        table = {str(n): tuple(map(int, c)) for n, c in zip(names, colours, strict=False)}
        for network in NETWORKS:
            for score in self.scores(network):
                for name in score.iou:
                    table.setdefault(name, (128, 128, 128))
        return typing.cast(dict[str, tuple[int, int, int]], table)

    def settings(self) -> list[Setting]:
        """Every option in config.json, in its order."""
        if not self.config:
            return []
        defaults = dict(flat(json.loads(json.dumps(dataclasses.asdict(Config())))))
        known = declared(Config)
        return [
            Setting(name, value, defaults.get(name), known[name].doc if name in known else "")
            for name, value in flat(self.config)
        ]


def read_record(workdir: str | Path) -> RunRecord:
    """The record of a workdir. Raises FileNotFoundError when there is no such folder."""
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise FileNotFoundError(f"{workdir} is no folder; give the --workdir of a run.")
    lines, unread = _lines(workdir / "metrics.jsonl")
    return RunRecord(
        workdir=workdir,
        config={k: v for k, v in _object(workdir / "config.json").items() if k != "mrm_jax"},
        environment=_object(workdir / "environment.json"),
        evaluation=_object(workdir / "evaluation.json"),
        lines=tuple(lines),
        unread=unread,
        sheets=_sheets(workdir / "views"),
    )


def is_run(workdir: Path) -> bool:
    """Whether a folder holds records of a run. Another program's config.json is none, a damaged one
    may be."""
    if any((workdir / name).exists() for name in ("metrics.jsonl", "checkpoints")):
        return True
    config = workdir / "config.json"
    found = _object(config)
    ours = {field.name for field in dataclasses.fields(Config)}
    return config.is_file() and (not found or bool(ours & found.keys()))


def number(value: Any) -> float:
    """The value as a float; NaN for anything that is none."""
    if isinstance(value, int | float) and (type(value) is float or abs(value) < 2**63):
        return float(value)
    return math.nan


def best(scores: list[Score]) -> Score | None:
    """The score with the highest mIoU, the earliest of equals; None without any finite one."""
    finite = [score for score in scores if math.isfinite(score.mean_iou)]
    return max(finite, key=lambda score: score.mean_iou, default=None)


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8", "replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return [], 0
    lines, unread = [], 0
    for row in filter(str.strip, text.splitlines()):
        try:
            line = json.loads(row)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and type(line.get("step")) is int and 0 <= line["step"] < 2**53:
            lines.append(line)
        else:
            unread += 1
    return lines, unread


def _sheets(folder: Path) -> dict[str, tuple[tuple[int, Path], ...]]:
    """PNGs named <kind>_<step>.png or <step>.png, by kind."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted(folder.glob("*.png")):
        match = re.fullmatch(r"(.*?)[-_]?(\d+)", path.stem)
        kind, step = (match[1], int(match[2])) if match else (path.stem, 0)
        found.setdefault(kind, []).append((step, path))
    return {kind: tuple(sorted(sheets)) for kind, sheets in found.items()}


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted names and values of nested mappings, in their order."""
    rows = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows
