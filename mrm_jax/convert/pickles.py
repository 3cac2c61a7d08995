"""Pickles read as data: what weights are made of, and nothing that runs.

A pickle is a program for a small stack machine, and Python's machine imports and calls whatever the
program names. This one has a stack of plain values: what a program names stays a name, and stands
for one of our functions where it is on a list. pickletools of the standard library splits the
bytes. Source of what the operations do: the texts of `pickletools.opcodes`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

OPERATIONS = 5_000_000
"""Of one pickle: a tensor takes 40, and a byte can ask for 100 bytes of memory."""

Calls = Mapping[str, Callable[..., Any] | None]
"""Every name that a pickle may hold -> our function in its place; None for one never called."""


class Forbidden(ValueError):
    """A name that is on no list, or an operation that could run code (its text)."""


@dataclass(frozen=True)
class Name:
    """What stands where a pickle names a function, a class or a value of a module."""

    text: str


class Settable:
    """What a pickle may give a state after it was made."""

    def set_state(self, state: Any) -> None:
        """Takes the state; this one has no use for it."""


def load_pickle(stream: BinaryIO, calls: Calls, persistent: Callable[[Any], Any]) -> Any:
    """The value of the pickle at the stream's position, which is moved behind it.

    persistent: what stands for an object that lies outside of the pickle, from its id. Raises
    Forbidden, which says what it would take to go on, and ValueError and the like for a damaged
    one.
    """
    machine = _Machine(calls, persistent)
    try:
        for count, (code, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= OPERATIONS:
                raise ValueError(f"it has more than {OPERATIONS} operations")
            if code.name == "STOP":
                break
            if code.name not in _STEPS:
                raise Forbidden(_dotted(str(argument)) if code.name == "INST" else code.name)
            _STEPS[code.name](machine, argument)
        return machine.pop()
    except (IndexError, KeyError) as error:  # of an empty stack, and of what was never put by
        raise ValueError("its operations do not fit together") from error


def _dotted(argument: str) -> str:
    """A module and a name, which pickletools gives with a blank between them."""
    return ".".join(argument.split(" ", 1))


class _Machine:
    """The stack, what lay on it before each open mark, and what was put by."""

    def __init__(self, calls: Calls, persistent: Callable[[Any], Any]) -> None:
        self.calls, self.persistent = calls, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        found, self.stack = self.stack, self.below.pop()
        return found

    def drop(self, _: Any) -> None:
        """One value, or the mark where nothing lies on it."""
        if self.stack:
            self.pop()
        else:
            self.since_mark()

    def put(self, place: int | None) -> None:
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def tuple_of(self, count: int) -> None:
        found = tuple(self.stack[-count:])
        if len(found) < count:
            raise ValueError("its stack is empty")
        self.stack[-count:] = [found]

    def top(self, kind: type) -> Any:
        found = self.stack[-1]
        if type(found) is not kind:
            raise ValueError(f"it fills a {type(found).__name__} as if it were a {kind.__name__}")
        return found

    def extend(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def add(self, values: list[Any]) -> None:
        self.top(set).update(map(as_key, values))

    def fill(self, values: list[Any]) -> None:
        target = self.top(dict)
        for name, value in zip(values[::2], values[1::2], strict=True):
            if as_key(name) in target:
                raise ValueError(f"it holds {name!r:.200} twice")
            target[name] = value

    def name(self, text: Any) -> None:
        if text not in self.calls:
            raise Forbidden(text)
        self.push(Name(text))

    def name_on_stack(self, _: Any) -> None:
        attribute, module = self.pop(), self.pop()
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise ValueError("it names a module by something else than a text")
        self.name(f"{module}.{attribute}")

    def call(self, _: Any) -> None:
        arguments, what = self.pop(), self.pop()
        if not isinstance(what, Name) or type(arguments) is not tuple:
            raise ValueError(f"it calls a {type(what).__name__} on a {type(arguments).__name__}")
        function = self.calls[what.text]
        if function is None:
            raise Forbidden(what.text)
        self.push(function(*arguments))

    def set_state(self, _: Any) -> None:
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Settable):
            target.set_state(state)
        elif type(target) is not dict:  # an OrderedDict's: PyTorch keeps versions of modules there
            raise ValueError(f"it sets the state of a {type(target).__name__}")


def as_key(value: Any) -> Any:
    """`value`, as a key of a mapping or in a set; ValueError for what is none.

    Tuples are flat: hashing a tuple in a tuple in a tuple ... ends Python itself.
    """
    for part in value if type(value) is tuple else (value,):
        if not isinstance(part, str | bytes | int | float | Name | None):
            raise ValueError(f"it has a {type(part).__name__} as a key")
    return value


_Step = Callable[[_Machine, Any], Any]


def _constant(make: Callable[[], Any]) -> _Step:
    return lambda machine, _: machine.push(make())


_VALUES = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE BINUNICODE8 SHORT_BINUNICODE BINBYTES BINBYTES8 SHORT_BINBYTES BYTEARRAY8"
)
_STEPS: dict[str, _Step] = {
    **dict.fromkeys(_VALUES.split(), _Machine.push),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_SET": _constant(set),
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": lambda m, _: m.since_mark(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, at: m.push(m.memo[at])),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    "LIST": lambda m, _: m.push(m.since_mark()),
    "DICT": lambda m, _: (values := m.since_mark(), m.push({}), m.fill(values)),
    "FROZENSET": lambda m, _: m.push(frozenset(map(as_key, m.since_mark()))),
    "APPEND": lambda m, _: m.extend([m.pop()]),
    "APPENDS": lambda m, _: m.extend(m.since_mark()),
    "SETITEM": lambda m, _: m.fill([m.stack.pop(-2), m.pop()]),
    "SETITEMS": lambda m, _: m.fill(m.since_mark()),
    "ADDITEMS": lambda m, _: m.add(m.since_mark()),
    "GLOBAL": lambda m, argument: m.name(_dotted(argument)),
    "STACK_GLOBAL": _Machine.name_on_stack,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.set_state,
    "BINPERSID": lambda m, _: m.push(m.persistent(m.pop())),
}
"""By the operation's name. What is not here could run code: INST, OBJ, NEWOBJ, NEWOBJ_EX and EXT*
call, PERSID and the buffers of protocol 5 ask for more than PyTorch's files have."""
