"""How options are declared, written as a ConfigDict and read back, for `config`."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import config_dict


class UsageError(ValueError):
    """A mistake in what the user asked for: one line, exit code 2."""


def option(default: Any, doc: str, *, source: str = "", runtime: bool = False) -> Any:
    """A field: `doc` says what it is with its unit, `source` where its value comes from.

    `runtime` fields change how a run is executed, not what it computes: they may differ on resume.
    """
    metadata = {"doc": doc, "source": source, "runtime": runtime}
    if dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def nearest(name: str, names: typing.Iterable[str]) -> str:
    """A hint such as " Did you mean 'steps'?", or an empty string when nothing is near."""
    match = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def _optional(annotation: Any) -> tuple[Any, bool]:
    """(type, True) for `T | None`, (type, False) otherwise."""
    if isinstance(annotation, types.UnionType):
        inner = [a for a in typing.get_args(annotation) if a is not type(None)]
        return inner[0], True
    return annotation, False


def _origin(annotation: Any) -> type:
    """The plain type behind an annotation: tuple for tuple[int, ...], str for Literal["a"]."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return type(typing.get_args(annotation)[0])
    return origin or annotation


def to_config_dict(config: Any) -> config_dict.ConfigDict:
    """The ConfigDict of a dataclass tree; optional fields become typed placeholders."""
    hints = typing.get_type_hints(type(config))
    result = config_dict.ConfigDict()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        annotation, optional = _optional(hints[field.name])
        if dataclasses.is_dataclass(value):
            result[field.name] = to_config_dict(value)
        elif optional:
            reference = config_dict.placeholder(_origin(annotation))
            if value is not None:
                reference.set(value)
            result[field.name] = reference
        else:
            result[field.name] = value
    return result


def build(cls: type, values: Mapping[str, Any], path: str) -> Any:
    """The dataclass `cls` from a mapping; a missing key keeps its default.

    Raises UsageError for an unknown key (with the nearest right one) and for a wrong value.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            raise UsageError(f"{path}.{key} is not an option.{nearest(key, names)}")
    return cls(**{key: _value(values[key], hints[key], f"{path}.{key}") for key in values})


def _value(value: Any, annotation: Any, path: str) -> Any:
    annotation, optional = _optional(annotation)
    if value is None and optional:
        return None
    if dataclasses.is_dataclass(annotation):
        if not isinstance(value, Mapping):
            raise UsageError(f"{path} is {value!r}; it must be a group of options.")
        return build(typing.cast(type, annotation), value, path)
    origin = typing.get_origin(annotation)
    if origin is Literal:
        choices = typing.get_args(annotation)
        if value not in choices:
            hint = nearest(str(value), map(str, choices))
            raise UsageError(
                f"{path} is {value!r}; it must be one of {', '.join(map(repr, choices))}.{hint}"
            )
        return value
    if origin is tuple:
        return _tuple(value, annotation, path)
    if annotation is float and type(value) is int:
        return float(value)
    if type(value) is not annotation:
        raise UsageError(f"{path} is {value!r}; it must be of type {annotation.__name__}.")
    return value


def _tuple(value: Any, annotation: Any, path: str) -> tuple:
    if not isinstance(value, tuple | list):
        raise UsageError(f"{path} is {value!r}; it must be a tuple, say (1, 2).")
    arguments = typing.get_args(annotation)
    if arguments[-1] is Ellipsis:
        arguments = arguments[:1] * len(value)
    if len(value) != len(arguments):
        raise UsageError(f"{path} is {value!r}; it must have {len(arguments)} entries.")
    return tuple(
        _value(v, a, f"{path}[{i}]") for i, (v, a) in enumerate(zip(value, arguments, strict=True))
    )


def runtime_fields(cls: type, prefix: str = "") -> set[str]:
    """Dotted names of the fields that may differ when a run is resumed."""
    hints = typing.get_type_hints(cls)
    found: set[str] = set()
    for field in dataclasses.fields(cls):
        name = prefix + field.name
        if dataclasses.is_dataclass(hints[field.name]):
            below = runtime_fields(typing.cast(type, hints[field.name]), name + ".")
            every = {
                name + "." + f.name for f in dataclasses.fields(typing.cast(Any, hints[field.name]))
            }
            found |= every if field.metadata["runtime"] else below
        elif field.metadata["runtime"]:
            found.add(name)
    return found
