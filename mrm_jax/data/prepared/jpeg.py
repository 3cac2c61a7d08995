"""JPEG files of which a part can be decoded alone, pixel for pixel what the whole gives.

A restart interval is a run of units that is coded without a look at what lies before. Where a row
of units is a whole number of intervals, those that cover a rectangle are a file of their own as
soon as its header says so: cutting them out copies bytes and decodes nothing. Source: ITU-T T.81,
annexes B and F.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import cv2
import numpy as np

UNIT = 16  # px: two by two blocks of 8, since colours have half the resolution
MARGIN = 2  # px: colours are interpolated between samples, so the next ones must be there
LENGTHS = (*range(8, 3, -1), *range(9, 17))
"""Units of an interval, best first: shorter ones cost bytes, longer ones are decoded in vain."""
_HALF = b"\x22\x11\x11"  # sampling of the three components, colours at half resolution
_FRAME, _INTERVAL, _SCAN, _END = 0xC0, 0xDD, 0xDA, b"\xff\xd9"
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")


def interval(width: int) -> int:
    """The restart interval, units, for a picture `width` px wide; 0, none, where no useful length
    divides a row of units.
    """
    units = -(-width // UNIT)
    return next((length for length in LENGTHS if units % length == 0), 0)


class _Header(NamedTuple):
    """`size` (height, width) px; its place, and that of the first coded byte; units an interval."""

    size: tuple[int, int]
    size_at: int
    data_at: int
    interval: int


def _header(content: bytes) -> _Header | None:
    """None for a file that is not coded as `records` does it, with restart intervals."""
    at, size_at, length = 2, 0, 0
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, segment = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == _FRAME and content[at + 11 : at + 19 : 3] == _HALF:
            size_at = at + 5
        elif marker == _INTERVAL:
            length = int.from_bytes(content[at + 4 : at + 6], "big")
        elif marker == _SCAN:
            height, width = (
                int.from_bytes(content[k : k + 2], "big") for k in (size_at, size_at + 2)
            )
            usable = size_at and length and -(-width // UNIT) % length == 0
            return _Header((height, width), size_at, at + 2 + segment, length) if usable else None
        at += 2 + segment
    return None


class Parts:
    """A stored picture RGB u8[H,W,3]. `parts[a:b, c:d]` decodes that rectangle and little more."""

    def __init__(self, content: bytes, header: _Header, marks: list[int]) -> None:
        self._content, self._header, self._marks = content, header, marks
        self.shape = (*header.size, 3)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded picture."""
        return int(np.prod(self.shape))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(_decoded(self._content), dtype)

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        """Rows and columns without steps. Raises ValueError for what cannot be decoded."""
        (height, width), length = self._header.size, self._header.interval
        top, bottom, _ = part[0].indices(height)
        left, right, _ = part[1].indices(width)
        across = length * UNIT
        first, last = max(0, top - MARGIN) // UNIT, -(-min(height, bottom + MARGIN) // UNIT)
        begin, end = max(0, left - MARGIN) // across, -(-min(width, right + MARGIN) // across)
        in_row = -(-width // across)
        size = min(height, last * UNIT) - first * UNIT, min(width, end * across) - begin * across
        pieces = [
            self._content[self._marks[k] + 2 : self._marks[k + 1]]
            for row in range(first, last)
            for k in range(row * in_row + begin, row * in_row + end)
        ]
        image = _decoded(self._file(size, pieces))
        down, over = first * UNIT, begin * across
        return image[top - down : bottom - down, left - over : right - over]

    def _file(self, size: tuple[int, int], pieces: list[bytes]) -> bytes:
        """A file of these intervals, between which restart markers count 0 .. 7 over and over."""
        header = bytearray(self._content[: self._header.data_at])
        at = self._header.size_at
        header[at : at + 4] = size[0].to_bytes(2, "big") + size[1].to_bytes(2, "big")
        marked = [bytes(header)]
        for number, piece in enumerate(pieces):
            marked += (piece, bytes((0xFF, 0xD0 + number % 8)))
        return b"".join([*marked[:-1], _END])


def _decoded(content: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ValueError("it cannot be decoded")
    return image


def parts(content: bytes) -> Parts | None:
    """The picture of a file by its parts; None where it can be decoded as a whole only.

    Raises ValueError for a file that lost some of its intervals: decoders fill the gaps with grey.
    """
    header = _header(content)
    if header is None:
        return None
    height, width = header.size
    count = -(-height // UNIT) * -(-width // (header.interval * UNIT))
    marks = [match.start() for match in _RESTART.finditer(content, header.data_at)]
    in_turn = all(content[mark + 1] == 0xD0 + k % 8 for k, mark in enumerate(marks))
    if len(marks) != count - 1 or not in_turn or not content.endswith(_END):
        raise ValueError(f"its restart intervals are not the {count} of its size, in turn")
    return Parts(content, header, [header.data_at - 2, *marks, len(content) - 2])
