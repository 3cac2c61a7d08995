"""`options`: what can be set in a config, from the declarations in `mrm_jax/config`."""

from __future__ import annotations

import argparse
import shutil
import textwrap

from mrm_jax.config import Config
from mrm_jax.errors import UsageError
from mrm_jax.options import Option, declared, nearest, value_of

WIDE = 140
"""Columns from which on an option is one row; below, its meaning stands under it."""
_HEAD = ("option", "default", "unit", "allowed", "meaning")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb besides `--config`."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WORD",
        help="show only options in whose name or meaning each of these is found",
    )


def run(arguments: argparse.Namespace, config: Config | None) -> int:
    """Prints a table; with a config its values stand in place of the defaults. Exit code.

    Raises UsageError where no option holds the words.
    """
    known, words = declared(Config), [word.lower() for word in arguments.words]
    found = [one for one in known.values() if all(word in _text(one) for word in words)]
    if not found:
        asked = " ".join(arguments.words)
        names = [part for path in known for part in (path, path.rpartition(".")[2])]
        raise UsageError(
            f"options: no option's name or meaning holds '{asked}'.{nearest(asked, names)}",
            field="options",
            value=asked,
        )
    rows = [
        (
            one.path,
            _shown(value_of(config, one.path) if config else one.default),
            one.unit,
            one.range,
            _meaning(one),
        )
        for one in found
    ]
    head = ("option", "value", *_HEAD[2:]) if config else _HEAD
    width = shutil.get_terminal_size((WIDE, 24)).columns
    print("\n".join(_wide(head, rows, width) if width >= WIDE else _narrow(rows, width)))
    return 0


def _text(one: Option) -> str:
    return f"{one.path} {_meaning(one)}".lower()


def _meaning(one: Option) -> str:
    parts = [one.doc, f"Source: {one.source}." if one.source else ""]
    parts += [f"Since {one.since.version}; before: {one.since.value}." if one.since else ""]
    parts += ["May differ when a run goes on." if one.runtime else ""]
    return " ".join(part for part in parts if part)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    return "empty" if value is None or value == "" else str(value)


def _wide(head: tuple[str, ...], rows: list[tuple[str, ...]], width: int) -> list[str]:
    sizes = [max(len(row[0]) for row in rows), 18, 8, 24]
    sizes.append(width - sum(sizes) - 2 * len(sizes))
    lines = []
    for row in (head, *rows):
        cells = [
            textwrap.wrap(c, size, break_on_hyphens=False) or [""]
            for c, size in zip(row, sizes, strict=True)
        ]
        for i in range(max(map(len, cells))):
            line = [cell[i] if i < len(cell) else "" for cell in cells]
            text = "  ".join(part.ljust(size) for part, size in zip(line, sizes, strict=True))
            lines.append(text.rstrip())
    return lines


def _narrow(rows: list[tuple[str, ...]], width: int) -> list[str]:
    lines = []
    for path, value, unit, allowed, meaning in rows:
        facts = [f"{path} = {value}{f' {unit}' if unit else ''}", f"({allowed})" if allowed else ""]
        lines += textwrap.wrap("  ".join(filter(None, facts)), width, subsequent_indent=" " * 8)
        lines += textwrap.wrap(meaning, width, initial_indent=" " * 4, subsequent_indent=" " * 4)
    return lines
