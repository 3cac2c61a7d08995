"""Tables that spreadsheets open."""

from __future__ import annotations

from collections.abc import Sequence

FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001 - the wide forms count too
"""What a cell begins with that a spreadsheet computes instead of showing it. Source: OWASP, "CSV
injection"."""


def cells(row: Sequence[object]) -> list[object]:
    """A row in which a text that would be a formula begins with an apostrophe, and what is no text
    stands as backslash escapes; numbers stay."""
    return [_shown(value) for value in row]


def _shown(value: object) -> object:
    if isinstance(value, int | float):
        return value
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return f"'{text}" if text.startswith(FORMULA) else text
