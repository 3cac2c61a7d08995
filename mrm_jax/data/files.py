"""Picture and label files to arrays: any usual format, every fault named.

EXIF rotation is ignored, so that a picture and its label keep the same axes. Labels are read as
stored: palette PNGs give palette indices (GTA5), 16-bit colour PNGs their red channel (SYNTHIA),
which PIL would silently cut to 8 bits.
"""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mrm_jax.config import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
"""Endings that count as a picture, in lower case."""


class UnreadableError(UsageError):
    """A picture, a label or a pair of them that cannot be used; `data.<domain>.on_unreadable`
    decides what follows.
    """


def _content(path: Path) -> bytes:
    """The bytes of a file; raises UnreadableError when there is none or its end is missing."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableError(f"{path} cannot be opened: {error.strerror}.") from error
    if not content:
        raise UnreadableError(f"{path} is empty; fetch it again.")
    # OpenCV fills a JPEG that was cut off with grey and says nothing.
    if content[:3] == b"\xff\xd8\xff" and b"\xff\xd9" not in content[-65536:]:
        raise UnreadableError(f"{path} is cut off: its JPEG end marker is missing; fetch it again.")
    if content[:8] == b"\x89PNG\r\n\x1a\n" and b"IEND" not in content[-65536:]:
        raise UnreadableError(f"{path} is cut off: its PNG end marker is missing; fetch it again.")
    return content


def _decode(path: Path, content: bytes, flags: int) -> np.ndarray:
    try:
        array = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        array = None
    if array is None:
        raise UnreadableError(
            f"{path} is not a picture that can be decoded; fetch it again or remove it."
        )
    return array


def read_image(path: Path, *, upright: bool = False) -> np.ndarray:
    """The picture as RGB u8[H,W,3]: grey is repeated, transparency dropped, 16 bits scaled to 8.

    `upright` turns it as its EXIF data says, for pictures that have no label. Raises
    UnreadableError naming the file.
    """
    flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.cvtColor(_decode(path, _content(path), flags), cv2.COLOR_BGR2RGB)


def read_raw_label(path: Path) -> np.ndarray:
    """The raw ids of a label picture, u8 or u16 [H,W].

    Raises UnreadableError naming the file, also for an 8-bit colour picture: colours are no ids.
    """
    content = _content(path)
    if content[:8] == b"\x89PNG\r\n\x1a\n" and (content[25] == 3 or content[24] < 8):
        return _indices(path, content)
    raw = _decode(path, content, cv2.IMREAD_UNCHANGED)
    if raw.ndim == 3:
        raw = _one_channel(path, raw)
    if raw.dtype not in (np.uint8, np.uint16):
        raise UnreadableError(
            f"{path} holds {raw.dtype} values; a label holds 8-bit or 16-bit ids."
        )
    return raw


def _indices(path: Path, content: bytes) -> np.ndarray:
    """Palette indices, or the stored numbers of a grey PNG of 1, 2 or 4 bits, which decoders
    stretch to 0..255.
    """
    try:
        with Image.open(io.BytesIO(content)) as picture:
            array = np.array(picture, np.uint8)
            grey = picture.mode != "P"
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadableError(
            f"{path} is not a picture that can be decoded; fetch it again or remove it."
        ) from error
    step = 255 // (2 ** content[24] - 1) if grey and array.max(initial=0) > 1 else 1
    return array // step


def _one_channel(path: Path, raw: np.ndarray) -> np.ndarray:
    red = raw[..., min(2, raw.shape[2] - 1)]
    if raw.dtype == np.uint16 or (raw[..., :3] == red[..., None]).all():
        return np.ascontiguousarray(red)
    raise UnreadableError(
        f"{path} is a colour picture; a label is a grey or palette picture of class ids."
    )


def find(folder: Path, suffix: str, *, field: str, labels: Path | None = None) -> dict[str, Path]:
    """Stem to file of all pictures below `folder`, sorted by stem.

    A stem is the path below `folder` without `suffix` (without its extension when `suffix` is
    empty), with forward slashes. What lies in `labels`, a folder below
    `folder`, is left out. Raises UsageError for a missing or empty folder and for two files of one
    stem; `field` names the config option.
    """
    if not folder.is_dir():
        raise UsageError(f"{field}: there is no folder {folder}. Set it to where the pictures lie.")
    below = labels if labels and folder in labels.parents else None
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or not path.is_file():
            continue
        if below and path.is_relative_to(below):
            continue
        matches = path.name.endswith(suffix) if suffix else path.suffix.lower() in SUFFIXES
        if not matches:
            continue
        relative = path.relative_to(folder)
        stem = (
            relative.as_posix()[: -len(suffix)] if suffix else relative.with_suffix("").as_posix()
        )
        if stem in found:
            raise UsageError(
                f"{field}: {found[stem]} and {path.name} share the stem '{stem}'; set image_suffix."
            )
        found[stem] = path
    if not found:
        kind = f"file ending in '{suffix}'" if suffix else f"picture ({' '.join(SUFFIXES)})"
        raise UsageError(f"{field}: {folder} holds no {kind}.")
    return dict(sorted(found.items()))


def chosen(found: dict[str, Path], listing: Path, *, field: str) -> dict[str, Path]:
    """The pictures that a text file names, one stem a line, in its order; blank lines are skipped.

    Raises UsageError for a missing or empty list, a stem without a picture, or a stem named twice.
    """
    if not listing.is_file():
        raise UsageError(f"{field}.listing: there is no file {listing}.")
    picked: dict[str, Path] = {}
    for line in listing.read_text(encoding="utf-8").splitlines():
        stem = line.strip()
        if not stem:
            continue
        if stem not in found:
            near = next(iter(found))
            raise UsageError(
                f"{field}.listing: '{stem}' of {listing} has no picture; stems look like '{near}'."
            )
        if stem in picked:
            raise UsageError(f"{field}.listing: '{stem}' stands twice in {listing}; keep one.")
        picked[stem] = found[stem]
    if not picked:
        raise UsageError(f"{field}.listing: {listing} names no picture.")
    return picked
