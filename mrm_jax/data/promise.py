"""What a picture's header says of its size, before anything is unpacked or decoded.

A small file can stand for a very large picture, or an archive's member for a file larger than its
picture could be. Sources: the formats' own specifications.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

HEAD = 2**16
"""Bytes of a file that nearly always hold its header."""
BYTES_A_PIXEL = 16  # four channels of 32 bits, the most that any format stores
BESIDE = 2**24  # bytes of a file that are no pixels: profiles, thumbnails, remarks
_NETPBM = re.compile(rb"P[1-6]\s(?:\s|#[^\n]*\n)*(\d{1,12})(?:\s|#[^\n]*\n)+(\d{1,12})\s")
_JPEG_ALONE = {0x01, *range(0xD0, 0xDA)}  # markers without a length
_JPEG_SCAN = 0xDA
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def size(content: bytes) -> tuple[int, int] | None:
    """(height, width) px that a picture's first bytes promise; None for a format that is not known
    here, and where the header is damaged or longer than `content`.

    Knows PNG, JPEG, BMP, TIFF, WebP, GIF, and PBM, PGM and PPM.
    """
    try:
        if content[:8] == b"\x89PNG\r\n\x1a\n":
            width, height = struct.unpack_from(">II", content, 16)
        elif content[:2] == b"\xff\xd8":
            frame = next((at for marker, at in _jpeg(content) if marker in _JPEG_FRAMES), None)
            return None if frame is None else struct.unpack_from(">HH", content, frame + 5)
        elif content[:2] == b"BM":
            short = struct.unpack_from("<I", content, 14)[0] == 12
            width, height = struct.unpack_from("<HH" if short else "<ii", content, 18)
        elif content[:4] == b"GIF8":
            width, height = struct.unpack_from("<HH", content, 6)
        elif content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _tiff(content)
        elif content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            return _webp(content)
        elif matched := _NETPBM.match(content):
            width, height = map(int, matched.groups())
        else:
            return None
    except (struct.error, IndexError):
        return None
    return abs(height), abs(width)


def ends(content: bytes) -> bool | None:
    """Whether a whole file holds the end of its picture; None for a format whose end is not known
    here, and where the header is damaged."""
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        return b"IEND" in content
    if content[:2] == b"\xff\xd8":
        try:
            scan = next((at for marker, at in _jpeg(content) if marker == _JPEG_SCAN), None)
        except (struct.error, IndexError):
            return False
        # In coded pixels 0xff is followed by 0 or a restart marker; a thumbnail lies before them.
        return None if scan is None else content.find(b"\xff\xd9", scan) >= 0
    return None


def _jpeg(content: bytes) -> Iterator[tuple[int, int]]:
    """(marker, where it stands) of every segment before the coded pixels, and of theirs."""
    at = 2
    while content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # a byte that fills
            at += 1
            continue
        yield marker, at
        if marker == _JPEG_SCAN:
            return
        at += 2
        if marker not in _JPEG_ALONE:
            at += struct.unpack_from(">H", content, at)[0]


def _webp(content: bytes) -> tuple[int, int] | None:
    kind = content[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(content[k : k + 3], "little") + 1 for k in (24, 27))
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", content, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", content, 26))
    else:
        return None
    return height, width


def _tiff(content: bytes) -> tuple[int, int] | None:
    """Of the first picture: numbers 256 and 257 of its table."""
    order, large = "<" if content[:1] == b"I" else ">", b"+" in content[2:4]
    count, entry, value = ("Q", 20, 12) if large else ("H", 12, 8)
    (at,) = struct.unpack_from(order + ("Q" if large else "I"), content, 8 if large else 4)
    (entries,) = struct.unpack_from(order + count, content, at)
    at += struct.calcsize(count)
    sides = {}
    for k in range(min(entries, 512)):
        number, kind = struct.unpack_from(order + "HH", content, at + k * entry)
        if number in (256, 257):
            width = {3: "H", 4: "I", 16: "Q"}.get(kind)
            if width is None:
                return None
            (sides[number],) = struct.unpack_from(order + width, content, at + k * entry + value)
    return (sides[257], sides[256]) if len(sides) == 2 else None
