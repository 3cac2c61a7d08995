"""What a file is that is no picture of a kind that is read here, by its first bytes.

Sources: the formats' own specifications.
"""

from __future__ import annotations

import re

WAYS_OUT = {
    "a video": "export its frames, say by ffmpeg -i VIDEO frames/%05d.png.",
    "a HEIC photograph": "export it as JPEG or PNG.",
    "an AVIF picture": "export it as JPEG or PNG.",
    "a JPEG XL picture": "export it as JPEG or PNG.",
    "a Photoshop file": "export it as PNG.",
    "an SVG drawing": "export it as PNG.",
    "a PDF": "export its pages as PNG.",
    "a web page": "it was saved in place of the file; fetch it again.",
    "a pointer of Git LFS": "fetch the file itself by git lfs pull.",
    "an archive": "unpack it.",
    "an array of NumPy": "save it as PNG.",
}
"""What a file may be, and what to do with it."""

_HEIC = ("heic", "heix", "hevc", "heim", "heis", "mif1", "msf1")
_STARTS: tuple[tuple[bytes, str], ...] = (
    (rb"....ftyp(?:avif|avis)", "an AVIF picture"),
    (rb"....ftyp(?:%s)" % "|".join(_HEIC).encode(), "a HEIC photograph"),
    (rb"....(?:ftyp|moov|mdat|wide)", "a video"),  # MP4, QuickTime
    (rb"\x1aE\xdf\xa3|RIFF....AVI |FLV\x01|OggS|\0\0\x01[\xba\xb3]", "a video"),
    (rb"0&\xb2u\x8ef\xcf\x11", "a video"),  # Windows Media
    (rb"G.{187}G.{187}G", "a video"),  # MPEG transport stream
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (rb"8BPS", "a Photoshop file"),
    (
        rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?(?:<!DOCTYPE svg[^>]*>\s*)?<svg",
        "an SVG drawing",
    ),
    (rb"\s*(?i:<!doctype html|<html)", "a web page"),
    (rb"%PDF-", "a PDF"),
    (rb"version https://git-lfs", "a pointer of Git LFS"),
    (rb"PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf|BZh|\xfd7zXZ", "an archive"),
    (rb"\x93NUMPY", "an array of NumPy"),
)
_HEAD = 2**12


def kind_named(content: bytes) -> str:
    """What a file is, one of `WAYS_OUT`; empty where its first bytes say nothing."""
    head = content[:_HEAD]
    return next((what for start, what in _STARTS if re.match(start, head, re.DOTALL)), "")
