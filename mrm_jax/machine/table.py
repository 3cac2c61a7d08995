"""Reports of `bench --against` as the tables of docs/performance.md.

Lines of a file are reports, or changes: {"change": what changed, "measure": what was measured,
"before": number, "after": number}.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mrm_jax.errors import UsageError
from mrm_jax.paths import replaced

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
"""Lines of a page that the tables stand between."""

_CHANGE = ("change", "measure", "before", "after")
_REPORT = ("against", "what", "part", "ratio", "cpu_ratio", "seconds", "peak_bytes", "machine")


def read(files: Iterable[Path]) -> list[dict[str, Any]]:
    """The lines of files, one JSON object each. Raises UsageError naming file and line."""
    found = []
    for file in files:
        try:
            lines = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError.at(
                "--table", " cannot be read.", "give files of `bench --json`.", value=file
            ) from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            known = isinstance(row, dict) and any(
                all(key in row for key in keys) for keys in (_CHANGE, _REPORT)
            )
            if not known:
                raise UsageError.at(
                    "--table",
                    f": line {number} is neither a report of `bench --against torch --json` nor a "
                    "change.",
                    "take it out.",
                    value=file,
                )
            found.append(row)
    return found


def tables(rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown: for each machine and its versions the whole networks and the parts, then the
    changes."""
    rows = list(rows)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if "change" not in row:
            groups.setdefault(where(row), []).append(row)
    pieces = []
    for place, found in groups.items():
        loads = [load for row in found for load in row["machine"]["load"].values()]
        pieces.append(f"**{place}**; load {_range(loads)}, our own work included")
        whole = [_whole(row) for row in found if not row["part"]]
        parts = [_part(row) for row in sorted(found, key=_cost) if row["part"]]
        if whole:
            pieces.append(_markdown(_WHOLE, whole))
        if parts:
            pieces.append(_markdown(_PARTS, parts))
    changes = [
        [row["change"], row["measure"], f"{row['before']:.3g} -> {row['after']:.3g}"]
        for row in rows
        if "change" in row
    ]
    if changes:
        pieces.append(_markdown(("what changed", "measured", "before -> after"), changes))
    return "\n\n".join(pieces or ["No figures yet."]) + "\n"


def write(page: Path, text: str) -> None:
    """Puts the tables between the two lines of a page. Raises UsageError where it has none."""
    try:
        old = page.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError.at("--to", " cannot be read.", "give a page.", value=page) from error
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UsageError.at(
            "--to",
            " has no place for tables.",
            f"it needs the lines {BEGIN} and {END}.",
            value=page,
        )
    with replaced(page) as new:
        new.write_text(f"{before}{BEGIN}\n{text}{END}{after}")


def where(row: Mapping[str, Any]) -> str:
    """The machine of a report in words: cores, instructions and versions."""
    machine = row["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
    return f"{machine['cores']} cores, {machine['instructions']}; {versions}"


def line(row: Mapping[str, Any]) -> str:
    """A report in a line for people."""
    seconds, held = row["seconds"], row["peak_bytes"]
    ours, torch = (_time(seconds[side]["median"]) for side in ("ours", "torch"))
    name = f"{row['part']} {row['what']}".strip() + (
        f" (x {row['times']})" if row["times"] > 1 else ""
    )
    memory = "" if row["part"] else f"; resident {_memory(held)}"
    return (
        f"{name}: ours / torch {_spread(row['ratio'])} in {row['ratio']['count']} pairs, of CPU "
        f"seconds {row['cpu_ratio']['median']:.2f}; {ours} against {torch}{memory}; load "
        f"{_range(row['machine']['load'].values())}"
    )


_WHOLE = (
    *("config", "what", "ours / torch", "pairs", "of CPU seconds", "ours", "products alone"),
    *("torch", "resident, ours / torch", "with the first call", "load"),
)
_PARTS = (
    *("config", "part", "times", "what", "ours / torch", "of CPU seconds", "ours", "torch"),
    "lost a network",
)


def _whole(row: Mapping[str, Any]) -> list[str]:
    held, seconds = row["peak_bytes"], row["seconds"]
    return [
        f"`{row['config']}`",
        row["what"],
        _spread(row["ratio"]),
        str(row["ratio"]["count"]),
        _spread(row["cpu_ratio"]),
        _time(seconds["ours"]["median"]),
        "–" if (alone := row.get("products_seconds")) is None else _time(alone),
        _time(seconds["torch"]["median"]),
        _memory(held),
        " / ".join(_gigabytes(held[side]["first"]) for side in ("ours", "torch")),
        _range(row["machine"]["load"].values()),
    ]


def _part(row: Mapping[str, Any]) -> list[str]:
    seconds = row["seconds"]
    return [
        f"`{row['config']}`",
        row["part"],
        str(row["times"]),
        row["what"],
        _spread(row["ratio"]),
        f"{row['cpu_ratio']['median']:.2f}",
        _time(seconds["ours"]["median"]),
        _time(seconds["torch"]["median"]),
        f"{-_cost(row) * 1e3:.3g} ms",
    ]


def _cost(row: Mapping[str, Any]) -> float:
    """What torch takes for all parts of a kind less what we take, seconds: least first."""
    seconds = row["seconds"]
    return row["times"] * (seconds["torch"]["median"] - seconds["ours"]["median"])


def _spread(found: Mapping[str, float]) -> str:
    return f"{found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f})"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _memory(held: Mapping[str, Mapping[str, Any]]) -> str:
    return " / ".join(_gigabytes(held[side]["calls"]) for side in ("ours", "torch"))


def _gigabytes(count: float | None) -> str:
    return "unknown" if count is None else f"{count / 1e9:.2f} GB"


def _range(values: Iterable[float]) -> str:
    found = sorted(values)
    return f"{found[0]:.1f}" if found[0] == found[-1] else f"{found[0]:.1f} to {found[-1]:.1f}"


def _markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
