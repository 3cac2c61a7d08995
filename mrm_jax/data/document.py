"""JSON that anyone may have written: every value is asked for by its kind, and one of another kind
is an error that says where it stands.
"""

from __future__ import annotations

import json
import re
from typing import Any

MOST = 2**53
"""Above it a whole number is not what JSON's other readers make of it."""


class DocumentError(ValueError):
    """What is wrong with a document, in one line that begins with the place."""


class Node:
    """A value and the place where it stands, as in `splits.train.shards[3].count`.

    The place is made when it is asked for: documents of a large set hold some 400,000 values.
    """

    __slots__ = ("_above", "_key", "value")

    def __init__(self, value: Any, above: Node | None = None, key: str | int = "") -> None:
        self.value, self._above, self._key = value, above, key

    @property
    def place(self) -> str:
        """Where it stands; "it" is the document."""
        if self._above is None:
            return "it"
        if isinstance(self._key, int):
            return f"{self._above.place}[{self._key}]"
        key = self._key if self._key.isidentifier() else ascii(self._key[:40])
        return key if self._above._above is None else f"{self._above.place}.{key}"

    def wrong(self, wanted: str) -> DocumentError:
        """The error that says what stands here where `wanted` should."""
        return DocumentError(f"{self.place} is {self.short()}, not {wanted}")

    def short(self) -> str:
        """The value for an error, on one line."""
        return _short(self.value)

    def text(self, pattern: str = "", wanted: str = "a text") -> str:
        """A text of which all matches `pattern`, where one is given; one that no file name can
        hold is none."""
        value = self.value
        if not isinstance(value, str) or (pattern and not re.fullmatch(pattern, value, re.DOTALL)):
            raise self.wrong(wanted)
        if not _can_be_written(value):
            raise self.wrong("text that can be written")
        return value

    def whole(self, least: int = 0, most: int = MOST) -> int:
        """A whole number in these bounds."""
        value = self.value
        if type(value) is not int or not least <= value <= most:  # a bool is an int too
            upper = "" if most == MOST else f" and at most {most}"
            raise self.wrong(f"a whole number of at least {least}{upper}")
        return value

    def number(self, most: float = 2.0**31) -> float:
        """A finite number, of at most this size."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong("a number")
        if not -most <= value <= most:
            raise self.wrong(f"a number between {-most:g} and {most:g}")
        return float(value)

    def flag(self) -> bool:
        """true or false."""
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def items(self, count: int | None = None) -> list[Node]:
        """The values of a list, of `count` where that is given."""
        if not isinstance(self.value, list) or count not in (None, len(self.value)):
            raise self.wrong("a list" if count is None else f"a list of {count}")
        return [Node(value, self, i) for i, value in enumerate(self.value)]

    def entries(self) -> dict[str, Node]:
        """The values of an object by their names."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        for key in self.value:
            if not _can_be_written(key):
                raise DocumentError(f"{self.place} has the name {_short(key)}, which is no text")
        return {key: Node(value, self, key) for key, value in self.value.items()}

    def __getitem__(self, key: str) -> Node:
        """The value of that name in an object."""
        found = self.get(key)
        if found is None:
            raise DocumentError(f"{self.place} lacks '{key}'")
        return found

    def get(self, key: str) -> Node | None:
        """`self[key]`, None where there is no such name or it is null."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        if self.value.get(key) is None:
            return None
        return Node(self.value[key], self, key)


def parsed(content: bytes | str) -> Node:
    """The document; raises DocumentError where it is no JSON."""
    try:
        return Node(json.loads(content))
    except RecursionError:
        raise DocumentError("it is nested too deeply") from None
    except MemoryError:
        raise DocumentError("it does not fit into memory") from None
    except ValueError as error:
        raise DocumentError(f"it is no JSON: {' '.join(str(error).split())[:200]}") from error


def _can_be_written(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _short(value: Any) -> str:
    match value:
        case dict():
            return f"an object of {len(value)}"
        case list():
            return f"a list of {len(value)}"
        case str():
            return ascii(value[:40] + "..." * (len(value) > 40))
        case None | True | False:
            return {None: "null", True: "true", False: "false"}[value]
        case _:
            text = str(value)
            return text if len(text) <= 40 else f"{text[:40]}..."
