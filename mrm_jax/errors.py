"""The two errors that are answered with one line: the user's mistake, and what ends a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self


class _ForPeople(Exception):
    """One line, and the parts of it that code asks about.

    field: what is at fault: an option's path, a flag, a file or a tensor; "": only the line says
    it. value: what the field holds; None: nothing, or not said. way_out: the end of the line, what
    to do; "": only the line says it.
    """

    field: str = ""
    value: Any = None
    way_out: str = ""

    def __init__(self, fault: str, way_out: str = "", *, field: object = "", value: Any = None):
        joint = " " if fault.endswith((".", ":")) else "; "
        super().__init__(fault + joint + way_out if way_out else fault)
        self.field, self.value, self.way_out = str(field), value, way_out

    @classmethod
    def of(cls, field: object, value: Any, fault: str = "", way_out: str = "") -> Self:
        """About a value: "FIELD is VALUE" and on with `fault`; a text stands in quotes."""
        shown = repr(value) if isinstance(value, str) else value
        return cls(f"{field} is {shown}{fault}", way_out, field=field, value=value)

    @classmethod
    def at(cls, field: object, fault: str, way_out: str = "", value: Any = None) -> Self:
        """About a file, or a flag with its value: "FIELD VALUE" and on with `fault`."""
        place = field if value is None else f"{field} {value}"
        return cls(f"{place}{fault}", way_out, field=field, value=value)

    def parts(self) -> dict[str, Any]:
        """The line and what it is made of, as JSON: what `told` on another host makes again."""
        value = json.loads(json.dumps(self.value, default=str))
        return {"line": str(self), "field": self.field, "value": value, "way_out": self.way_out}

    @classmethod
    def told(cls, parts: Mapping[str, Any], before: str = "") -> Self:
        """An error of another host, with `before` in front of its line."""
        error = cls(before + parts["line"], field=parts["field"], value=parts["value"])
        error.way_out = parts["way_out"]
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        """By its parts, whatever a subclass is made from: it crosses to other processes."""
        return _again, (type(self), self.args, vars(self))


def _again(kind: type[_ForPeople], args: tuple[Any, ...], parts: dict[str, Any]) -> _ForPeople:
    error = kind.__new__(kind, *args)
    vars(error).update(parts)
    return error


class UsageError(_ForPeople, ValueError):
    """A mistake in what the user asked for: one line, exit code 2."""


class RunError(_ForPeople):
    """A run cannot go on for a reason outside the user's command: one line, exit code 1."""
