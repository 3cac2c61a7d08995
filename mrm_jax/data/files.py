"""Picture and label files to arrays: any usual format, every fault named.

EXIF rotation is ignored, so that a picture and its label keep the same axes. Labels are read as
stored: palette PNGs give palette indices (GTA5), 16-bit colour PNGs their red channel (SYNTHIA),
which PIL would silently cut to 8 bits.
"""

from __future__ import annotations

import codecs
import io
import itertools
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image

from mrm_jax.config import Domain
from mrm_jax.data import polygons, promise
from mrm_jax.data.tree import ANY, File, Matched, Member, match, size_of, walk
from mrm_jax.errors import UsageError
from mrm_jax.paths import as_path, as_text, shown, what_is_wrong

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
"""Endings that count as a picture, in lower case."""

MEGAPIXELS: float = Domain().max_megapixels
Image.MAX_IMAGE_PIXELS = None  # what was read has passed our own limit, which the user sets

Entry = TypeVar("Entry")
log = logging.getLogger(__name__)
Colours = tuple[tuple[int, int, int], ...]


class UnreadableError(UsageError):
    """A picture, a label or a pair of them that cannot be used; `data.<domain>.on_unreadable`
    decides what follows.
    """


class SizesError(UnreadableError):
    """A label of another size than its picture."""


def content_of(path: File, megapixels: float = MEGAPIXELS) -> bytes:
    """The bytes of a file that stands for at most so many pixels. Raises UnreadableError where
    there are none, or more.

    An archive's member is unpacked only as far as a picture of the size that its header promises
    can take.
    """
    most = int(megapixels * 1e6) * promise.BYTES_A_PIXEL + promise.BESIDE
    try:
        if isinstance(path, Member):
            size = _check_pixels(path, path.first(promise.HEAD), megapixels)
            if size is not None:
                most = size[0] * size[1] * promise.BYTES_A_PIXEL + promise.BESIDE
            if size_of(path) > most:
                of = f"a picture of {size[0]} x {size[1]} px" if size else "the largest picture"
                raise UnreadableError.at(
                    path,
                    f" would unpack to {size_of(path)} bytes, more than {of} can take "
                    "(max_megapixels)",
                    "fetch it again or remove it.",
                )
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableError.at(path, f" cannot be opened: {what_is_wrong(error)}.") from error
    _check_pixels(path, content, megapixels)
    return content


def _check_pixels(path: File, content: bytes, megapixels: float) -> tuple[int, int] | None:
    """The size that a picture's header promises; raises UnreadableError for too many pixels."""
    size = promise.size(content)
    if size is not None and size[0] * size[1] > megapixels * 1e6:
        raise UnreadableError.at(
            path,
            f" promises a picture of {size[0]} x {size[1]} px, more than max_megapixels "
            f"({megapixels:g}) allows",
            "remove it, or raise max_megapixels if it is meant.",
        )
    return size


def _content(path: File, megapixels: float) -> bytes:
    """`content_of`; raises UnreadableError too where the end of a picture is missing."""
    content = content_of(path, megapixels)
    if not content:
        raise UnreadableError.at(path, " is empty", "fetch it again.")
    # OpenCV fills a JPEG that was cut off with grey and says nothing.
    if content[:3] == b"\xff\xd8\xff" and b"\xff\xd9" not in content[-65536:]:
        raise UnreadableError.at(
            path, " is cut off: its JPEG end marker is missing", "fetch it again."
        )
    if content[:8] == b"\x89PNG\r\n\x1a\n" and b"IEND" not in content[-65536:]:
        raise UnreadableError.at(
            path, " is cut off: its PNG end marker is missing", "fetch it again."
        )
    return content


def _decode(path: File, content: bytes, flags: int) -> np.ndarray:
    try:
        array = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        array = None
    if array is None:
        raise UnreadableError.at(
            path, " is not a picture that can be decoded", "fetch it again or remove it."
        )
    return array


def read_image(path: File, *, upright: bool = False, megapixels: float = MEGAPIXELS) -> np.ndarray:
    """The picture as RGB u8[H,W,3]: grey is repeated, transparency dropped, 16 bits scaled to 8.

    `upright` turns it as its EXIF data says, for pictures that have no label. Raises
    UnreadableError naming the file, also where it has more than so many millions of pixels.
    """
    flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    return _decode(path, _content(path, megapixels), flags)


def read_raw_label(
    path: File, colours: Colours = (), *, megapixels: float = MEGAPIXELS
) -> np.ndarray:
    """The raw ids of a label, u8 or u16 [H,W]: of a picture, or of a JSON file of Cityscapes'
    polygons (then ids of `*_labelIds.png`).

    colours: for labels stored as RGB pictures, the colour of each raw id. Without, a colour picture
    is refused. Raises UnreadableError as `read_image`, and naming a colour outside the list.
    """
    content = _content(path, megapixels)
    if path.name.endswith(".json"):
        try:
            return polygons.rendered(content, megapixels)
        except ValueError as error:
            raise UnreadableError.at(path, f" is no file of polygons: {error}") from error
    if colours:
        return _ids_of_colours(
            path, cv2.cvtColor(_decode(path, content, 1), cv2.COLOR_BGR2RGB), colours
        )
    if content[:8] == b"\x89PNG\r\n\x1a\n" and (content[25] == 3 or content[24] < 8):
        return _indices(path, content)
    raw = _decode(path, content, cv2.IMREAD_UNCHANGED)
    if raw.ndim == 3:
        raw = _one_channel(path, raw)
    if raw.dtype not in (np.uint8, np.uint16):
        raise UnreadableError.at(
            path, f" holds {raw.dtype} values; a label holds 8-bit or 16-bit ids."
        )
    return raw


def _ids_of_colours(path: File, picture: np.ndarray, colours: Colours) -> np.ndarray:
    """u16[H,W]: the place of each pixel's colour in `colours`."""
    packed = picture.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    listed = np.array(colours, np.int32) @ np.array([65536, 256, 1], np.int32)
    order = np.argsort(listed)
    at = order[np.minimum(np.searchsorted(listed, packed, sorter=order), len(listed) - 1)]
    unknown = listed[at] != packed
    if unknown.any():
        first = tuple(int(v) for v in picture[unknown][0])
        raise UnreadableError.at(
            path,
            f": colour {first} ({unknown.mean():.1%} of the pixels are of colours outside the "
            "list) is not in label_colours",
            "add it, or correct the file.",
        )
    return at.astype(np.uint16)


def _indices(path: File, content: bytes) -> np.ndarray:
    """Palette indices, or the stored numbers of a grey PNG of 1, 2 or 4 bits, which decoders
    stretch to 0..255.
    """
    try:
        with Image.open(io.BytesIO(content)) as picture:
            array = np.array(picture, np.uint8)
            grey = picture.mode != "P"
    except Exception as error:  # each of Pillow's formats raises its own
        raise UnreadableError.at(
            path, " is not a picture that can be decoded", "fetch it again or remove it."
        ) from error
    step = 255 // (2 ** content[24] - 1) if grey and array.max(initial=0) > 1 else 1
    return array // step


def _one_channel(path: File, raw: np.ndarray) -> np.ndarray:
    red = raw[..., min(2, raw.shape[2] - 1)]
    if raw.dtype == np.uint16 or (raw[..., :3] == red[..., None]).all():
        return np.ascontiguousarray(red)
    raise UnreadableError.at(
        path,
        " is a colour picture; a label is a grey or palette picture of class ids. If its "
        "colours stand for ids, list them in label_colours.",
    )


def find(
    root: Path, folder: str, suffix: str, *, field: str, without: str | None = None
) -> dict[str, File]:
    """Stem to file of all pictures in the folders below `root` that `folder` stands for, sorted by
    stem (see `tree.match`), each once; without its extension when `suffix` is empty.

    What lies in `without`, a folder below, is left out; other pictures that are left out are
    counted in the log. Raises UsageError for a missing or empty folder and for two files of one
    stem; `field` names the config option.
    """
    names = _below(root, folder, field=f"{field}.path", without=without)
    matched = by_stem(names, folder, suffix)
    found, copies = matched.once()
    if not found:
        kind = f"file ending in '{suffix}'" if suffix else f"picture ({' '.join(SUFFIXES)})"
        raise UsageError.at(f"{field}.path", f": {root / as_path(folder)} holds no {kind}.")
    taken = {str(file) for by in matched for files in by.values() for file in files}
    others = [name for name, file in pictures(names) if str(file) not in taken]
    for line in left_out(copies, others):
        log.warning("%s: %s", field, line)
    return one_each(found, field=f"{field}.path")


def left_out(copies: Sequence[str], others: Sequence[str]) -> list[str]:
    """What is said of pictures that are there and not used: copies, and those that no pattern
    takes."""
    lines = []
    if copies:
        lines.append(
            f"{len(copies)} pictures lie there twice, in folders and flattened, and count once; "
            f"{shown(copies[0])} is one that is left out."
        )
    if others:
        lines.append(
            f"{len(others)} other pictures lie there and are left out, by their folder or the end "
            f"of their name; {shown(others[0])} is one."
        )
    return lines


def listed(root: Path, folder: str, suffix: str, *, field: str) -> dict[str, File]:
    """`find` with copies, and empty where there is no such file."""
    names = _below(root, folder, field=field)
    return one_each(by_stem(names, folder, suffix).every(), field=field)


def _below(
    root: Path, folder: str, *, field: str, without: str | None = None
) -> list[tuple[str, File]]:
    """(name below `root`, file) of all that lies in the folder from which a pattern starts."""
    start = root / as_path(fixed_part(folder))
    if not start.is_dir():
        if not root.is_dir():
            start = root
        way_out = higher(root, folder) or "Set it to where the pictures lie."
        way_out = "" if field.endswith(".labels") else way_out
        raise UsageError.at(field, f": there is no folder {start}.", way_out)
    base = as_text(start.relative_to(root).as_posix())
    names = ((name if base == "." else f"{base}/{name}", file) for name, file in walk(start))
    labels = f"{without.rstrip('/')}/" if without else None
    if labels and not folder.startswith(labels.rstrip("/")):
        names = ((name, file) for name, file in names if not name.startswith(labels))
    return list(names)


def higher(root: Path, folder: str) -> str:
    """The way out where `root` is the pattern's folder itself, or on the way to it; else empty."""
    inner = Path(as_path(fixed_part(folder)))
    for count, up in enumerate(root.parents[: len(inner.parts)], 1):
        if root.parts[-count:] == inner.parts[:count] and (up / inner).is_dir():
            return f"Give the folder one level up, {up}, which holds {inner}."
    return ""


def fixed_part(folder: str) -> str:
    """The folder from which a pattern starts."""
    return "/".join(itertools.takewhile(lambda part: part != ANY, folder.split("/")))


def pictures(names: Iterable[tuple[str, File]]) -> Iterable[tuple[str, File]]:
    """Those with the extension of a picture."""
    return (pair for pair in names if PurePosixPath(pair[0]).suffix.lower() in SUFFIXES)


def by_stem(
    names: Iterable[tuple[str, File]], folder: str, suffix: str, *, leading: bool = False
) -> Matched:
    """`tree.match`; an empty `suffix` stands for the extension of any picture."""
    if suffix:
        return match(names, folder, suffix, leading=leading)
    found = Matched({}, {})
    matched = match(pictures(names), folder, "", leading=leading)
    for stems, bare in zip(matched, found, strict=True):
        for stem, files in stems.items():
            bare.setdefault(PurePosixPath(stem).with_suffix("").as_posix(), []).extend(files)
    return found


def one_each(found: Mapping[str, Sequence[File]], *, field: str) -> dict[str, File]:
    """`found` with the only file of each stem. Raises UsageError for a second one."""
    for stem, files in found.items():
        if len(files) > 1:
            raise UsageError.at(
                field,
                f": {files[0]} and {files[1].name} share the stem '{stem}'",
                "set image_suffix, or remove one of them.",
            )
    return {stem: files[0] for stem, files in found.items()}


def chosen(found: Mapping[str, Entry], listing: Path, *, field: str) -> dict[str, Entry]:
    """The pictures that a text file names, one stem a line, in its order; blank lines are skipped.

    Raises UsageError for a missing or empty list, a stem without a picture, or a stem named twice.
    """
    if not listing.is_file():
        raise UsageError.at(f"{field}.listing", f": there is no file {listing}.")
    picked: dict[str, Entry] = {}
    for stem in stems(listing):
        if stem not in found:
            near = next(iter(found))
            raise UsageError.at(
                f"{field}.listing",
                f": '{stem}' of {listing} has no picture; stems look like '{near}'.",
            )
        if stem in picked:
            raise UsageError.at(
                f"{field}.listing", f": '{stem}' stands twice in {listing}", "keep one."
            )
        picked[stem] = found[stem]
    if not picked:
        raise UsageError.at(f"{field}.listing", f": {listing} names no picture.")
    return picked


def stems(listing: File) -> list[str]:
    """The stems that a text file names, one a line, without blank lines; raises UnreadableError."""
    content = content_of(listing)
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in content:
        raise UnreadableError(f"{listing} is no text in UTF-8; save it as such, or fetch it again.")
    # Of a name that is no UTF-8 the odd bytes stay, as in `paths.as_text`.
    text = content.decode("utf-8-sig", "surrogateescape")
    return [stem for line in re.split("\r\n|\r|\n", text) if (stem := line.strip())]
