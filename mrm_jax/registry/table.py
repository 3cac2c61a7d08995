"""What a registration is: a frozen dataclass of pieces, kept in a table by its name."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from mrm_jax.errors import UsageError
from mrm_jax.options import nearest

Reference = Callable[..., Any] | str
"""A function, or where it stands, "package.module:name": imported when it is first called for, so
that a registration costs no jax."""

_MISSING: Any = object()


def piece(doc: str, default: Any = _MISSING) -> Any:
    """A field of a registration. doc: what it is, which the error says that misses it; it has to be
    given unless it has a default."""
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata={"doc": doc})
    return dataclasses.field(default=default, metadata={"doc": doc})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Registered:
    """A registration; UsageError where a piece is missing, naming it."""

    name: str = piece("what the config calls it")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is _MISSING:
                called = "" if self.name is _MISSING else f" '{self.name}'"
                raise UsageError(
                    f"{type(self).__name__}{called} lacks {field.name}: {field.metadata['doc']}.",
                    field=type(self).__name__,
                    value=field.name,
                )


T = TypeVar("T", bound=Registered)


class Table(Generic[T]):
    """Registrations of one sort, in order. `field`: the option that names one of them."""

    def __init__(self, sort: type[T], field: str) -> None:
        self._sort, self._field = sort, field
        self._rows: dict[str, T] = {}
        self.changes = 0
        """How often it changed: a key for what is made of it."""

    def register(self, row: T) -> T:
        """Adds a registration. Raises UsageError for another sort and for a name, its own or a
        variant's, that is taken."""
        if not isinstance(row, self._sort):
            raise UsageError(
                f"{row!r} is no {self._sort.__name__}; it cannot be registered here.",
                field=self._sort.__name__,
                value=row,
            )
        if row.name in self._rows:
            raise UsageError(
                f"{self._sort.__name__} '{row.name}' is registered already.",
                field=self._sort.__name__,
                value=row.name,
            )
        mine = getattr(row, "variants", {})
        for other in self._rows.values():
            if taken := mine.keys() & getattr(other, "variants", {}).keys():
                raise UsageError(
                    f"{self._sort.__name__} '{row.name}': its variant {min(taken)} is one of "
                    f"'{other.name}' already.",
                    field=f"{self._sort.__name__} '{row.name}'",
                    value=min(taken),
                )
        self._rows[row.name] = row
        self.changes += 1
        return row

    def remove(self, name: str) -> None:
        """Takes a registration back."""
        del self._rows[name]
        self.changes += 1

    def __getitem__(self, name: str) -> T:
        """The registration called so. Raises UsageError, with those there are."""
        return self.found(name, self._field)

    def found(self, name: str, field: str) -> T:
        """The registration that the option `field` names. Raises UsageError."""
        if name not in self._rows:
            installed()
        if name not in self._rows:
            raise UsageError.of(
                f"config.{field}",
                name,
                "",
                f"it must be one of {', '.join(self._rows)}.{nearest(name, self._rows)}",
            )
        return self._rows[name]

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._rows.values()))

    def names(self) -> tuple[str, ...]:
        """Of all registrations, in order."""
        return tuple(self._rows)


@functools.cache
def installed() -> None:
    """Loads what installed packages register, by their entry points of the group "mrm_jax"."""
    from importlib.metadata import entry_points  # costs what most commands need not pay

    for entry in entry_points(group="mrm_jax"):
        entry.load()


def referenced(reference: Reference) -> Any:
    """What a reference stands for."""
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
