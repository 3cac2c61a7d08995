"""How an option is declared, and all that is read from its declaration, for `config`.

`option(...)` is the only place that says what an option is: its flag, the errors about it, its
range, whether the step is compiled for it or is given it as a number, whether it may differ when a
run goes on, what a run of before it existed computed with, and its line in `mrm-jax options`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from ml_collections import config_dict

from mrm_jax.errors import UsageError

Step = Literal["compiled", "traced", "weight", "absent"]
"""How an option reaches the training step.

compiled: the step is built for its value; another value is another program.
traced: as a number of `state.scalars`, under its dotted path; runs that differ in it share a
program.
weight: traced, but whether it is above 0 is compiled.
absent: not at all; it acts before, between or after steps, or on another option's `number`.
"""


class Since(NamedTuple):
    """The version that brought an option, and the value that every run before it computed with."""

    version: str
    value: Any


@dataclasses.dataclass(frozen=True)
class Option:
    """An option as it was declared; see `option`. `annotation`: its type, whose Literals are the
    choices; `named`: those that are known only when they are asked for."""

    doc: str
    unit: str = ""
    source: str = ""
    low: float | None = None
    high: float | None = None
    step: Step | None = None
    runtime: bool = False
    since: Since | None = None
    number: Callable[[Any, Any], Any] | None = None
    named: Callable[[], tuple[str, ...]] | None = None
    path: str = ""
    default: Any = None
    annotation: Any = None

    @property
    def range(self) -> str:
        """The values that are allowed, for people; empty where the type says all."""
        if choices := self.choices:
            return ", ".join(map(str, choices))
        if self.low is None or self.high is None:
            return "" if self.low is None else f"at least {_plain(self.low)}"
        return f"{_plain(self.low)}..{_plain(self.high)}"

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values that a Literal in its type or a registry names; empty: any of the type."""
        if self.named is not None:
            return self.named()
        inner = _optional(self.annotation)[0]
        if typing.get_origin(inner) is tuple:
            inner = typing.get_args(inner)[0]
        return typing.get_args(inner) if typing.get_origin(inner) is Literal else ()

    def typed(self, value: Any) -> Any:
        """`value` in the option's type, with lists as tuples. Raises UsageError for another one."""
        return _value(value, self.annotation, f"config.{self.path}")

    def check(self, value: Any) -> None:
        """Raises UsageError where `value`, or one of several, lies outside the range."""
        each = value if isinstance(value, tuple) else (value,)
        for v in each:
            if isinstance(v, tuple):
                self.check(v)
            elif v is not None and not self._holds(v):
                what = "must be " if self.high is None else "must lie in "
                raise UsageError.of(f"config.{self.path}", value, f"; it {what}{self.range}.")

    def _holds(self, value: Any) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


def option(
    default: Any,
    doc: str,
    *,
    unit: str = "",
    source: str = "",
    low: float | None = None,
    high: float | None = None,
    step: Step | None = None,
    runtime: bool = False,
    since: Since | None = None,
    number: Callable[[Any, Any], Any] | None = None,
    choices: Callable[[], tuple[str, ...]] | None = None,
) -> Any:
    """A field of a dataclass of options; a group of options is one whose default is a dataclass.

    doc: what it is. unit: of its value. source: where the default comes from. low, high: the range,
    ends included, of each entry where it has several. Choices are a Literal in its type, or
    `choices()` where they are registered: who looks one up refuses the others.
    step: how it reaches the training step; "compiled" unless it or its group says otherwise.
    runtime: it changes how a run is executed, not what it computes: may differ on resume.
    since: of an option that came later than runs that are still opened.
    number(value, config): what the step is given in its place, one number or a tuple of them.
    """
    said = Option(doc, unit, source, low, high, step, runtime, since, number, choices)
    if dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: default, metadata={"option": said})
    return dataclasses.field(default=default, metadata={"option": said})


@functools.cache
def declared(cls: Any) -> Mapping[str, Option]:
    """Every option of a dataclass tree by its dotted path, in the order of declaration."""
    return types.MappingProxyType(dict(_declared(cls(), "", Option("", step="compiled"))))


def _declared(group: Any, prefix: str, above: Option) -> Iterable[tuple[str, Option]]:
    hints = typing.get_type_hints(type(group))
    for field in dataclasses.fields(group):
        path, default = prefix + field.name, getattr(group, field.name)
        said: Option = field.metadata["option"]
        found = dataclasses.replace(
            said,
            step=said.step or above.step,
            runtime=said.runtime or above.runtime,
            path=path,
            default=default,
            annotation=hints[field.name],
        )
        if dataclasses.is_dataclass(default):
            yield from _declared(default, f"{path}.", found)
        else:
            yield path, found


def value_of(config: Any, path: str) -> Any:
    """The value of the option at a dotted path."""
    return functools.reduce(getattr, path.split("."), config)


def edited(config: Any, values: Mapping[str, Any]) -> Any:
    """The dataclass tree with the options at dotted paths replaced."""
    own: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        name, dot, rest = path.partition(".")
        if dot:
            below.setdefault(name, {})[rest] = value
        else:
            own[name] = value
    groups = {name: edited(getattr(config, name), given) for name, given in below.items()}
    return dataclasses.replace(config, **own, **groups)


def check_ranges(config: Any) -> None:
    """Raises UsageError: the first option outside its declared range."""
    for path, found in declared(type(config)).items():
        found.check(value_of(config, path))


def numbers(config: Any) -> dict[str, Any]:
    """What the step is given of a config: a number, or a tuple of them, by dotted path."""
    found = {}
    for path, one in declared(type(config)).items():
        if one.step in ("traced", "weight"):
            value = value_of(config, path)
            found[path] = value if one.number is None else one.number(value, config)
    return found


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint such as " Did you mean 'steps'?", or an empty string when nothing is near."""
    match = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}".replace("e-0", "e-")


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


def from_mapping(cls: type, values: Mapping[str, Any], path: str) -> Any:
    """The dataclass `cls` from a mapping; a missing key keeps its default.

    Raises UsageError for an unknown key (with the nearest right one) and for a wrong value.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            raise UsageError.at(f"{path}.{key}", f" is not an option.{nearest(key, names)}")
    return cls(**{key: _value(values[key], hints[key], f"{path}.{key}") for key in values})


def _value(value: Any, annotation: Any, path: str) -> Any:
    annotation, optional = _optional(annotation)
    if value is None and optional:
        return None
    if dataclasses.is_dataclass(annotation):
        if not isinstance(value, Mapping):
            raise UsageError.of(path, value, "", "it must be a group of options.")
        return from_mapping(typing.cast(type, annotation), value, path)
    origin = typing.get_origin(annotation)
    if origin is Literal:
        choices = typing.get_args(annotation)
        if value not in choices:
            hint = nearest(str(value), map(str, choices))
            raise UsageError.of(
                path, value, "", f"it must be one of {', '.join(map(repr, choices))}.{hint}"
            )
        return value
    if origin is tuple:
        return _tuple(value, annotation, path)
    if annotation is float and type(value) is int:
        return float(value)
    if type(value) is not annotation:
        raise UsageError.of(path, value, "", f"it must be of type {annotation.__name__}.")
    return value


def _tuple(value: Any, annotation: Any, path: str) -> tuple:
    if not isinstance(value, tuple | list):
        raise UsageError.of(path, value, "", "it must be a tuple, say (1, 2).")
    arguments = typing.get_args(annotation)
    if arguments[-1] is Ellipsis:
        arguments = arguments[:1] * len(value)
    if len(value) != len(arguments):
        raise UsageError.of(path, value, "", f"it must have {len(arguments)} entries.")
    return tuple(
        _value(v, a, f"{path}[{i}]") for i, (v, a) in enumerate(zip(value, arguments, strict=True))
    )
