"""Picture and label files to arrays: any usual format, every fault named.

EXIF rotation is ignored, so that a picture and its label keep the same axes. Labels are read as
stored: palettes give their indices (GTA5), pictures of few bits their numbers, 16-bit colour PNGs
their red channel (SYNTHIA), which PIL would silently cut to 8 bits.
"""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mrm_jax.config import Domain
from mrm_jax.data import kinds, polygons, promise
from mrm_jax.data.tree import File, Member, first, size_of
from mrm_jax.errors import UsageError
from mrm_jax.paths import what_is_wrong

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Endings that count as a picture, in lower case."""

MEGAPIXELS: float = Domain().max_megapixels
Image.MAX_IMAGE_PIXELS = None  # what was read has passed our own limit, which the user sets
# What OpenCV says of a damaged file is said by our errors, in one line. 0: silent; 5.0 moved it.
_cv2: Any = cv2
(_cv2 if hasattr(_cv2, "setLogLevel") else _cv2.utils.logging).setLogLevel(0)
MOST_COLOURS = 64
"""Colours of a picture above which they stand for no ids: it is a photograph, or was stored so."""

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


def promised_size(path: File) -> tuple[int, int] | None:
    """(height, width) px that the first bytes of a file promise, None where they say nothing."""
    try:
        return promise.size(first(path, promise.HEAD))
    except OSError:
        return None


def _check_pixels(path: File, content: bytes, megapixels: float) -> tuple[int, int] | None:
    """The size that a picture's header promises; raises UnreadableError for too many pixels."""
    size = promise.size(content)
    if size is not None and size[0] * size[1] > megapixels * 1e6:
        raise UnreadableError.at(
            path,
            f" promises a picture of {size[0]} x {size[1]} px, more than max_megapixels "
            f"({megapixels:g}) allows",
            "remove it, or raise max_megapixels if that is intended.",
        )
    return size


def _content(path: File, megapixels: float) -> bytes:
    """`content_of`; raises UnreadableError too where the end of a picture is missing."""
    content = content_of(path, megapixels)
    if not content:
        raise UnreadableError.at(path, " is empty", "fetch it again.")
    # OpenCV fills a picture that was cut off with grey and says nothing. What lies behind its end,
    # such as a phone's video, does no harm.
    if promise.ends(content) is False:
        raise UnreadableError.at(
            path, " is cut off: the end marker of its picture is missing", "fetch it again."
        )
    return content


def _opened(content: bytes) -> Any:
    """Pillow's picture, of which only the header was read."""
    return Image.open(io.BytesIO(content))


def _decode(path: File, content: bytes, flags: int) -> np.ndarray:
    array = _decoded(content, flags)
    if array is not None:
        return array
    if what := kinds.kind_named(content):
        raise UnreadableError.at(path, f" is {what}, no picture", kinds.WAYS_OUT[what])
    stored = _decoded(content, cv2.IMREAD_UNCHANGED)
    if stored is not None and stored.dtype not in (np.uint8, np.uint16):
        raise UnreadableError.at(
            path,
            f" holds {stored.dtype} values, of which nothing says what is black and what white",
            "scale them to 0..255 and save it with 8 bits.",
        )
    raise UnreadableError.at(
        path, " is not a picture that can be decoded", "fetch it again or remove it."
    )


def _decoded(content: bytes, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        return None


def read_image(path: File, *, upright: bool = False, megapixels: float = MEGAPIXELS) -> np.ndarray:
    """The picture as RGB u8[H,W,3]: grey is repeated, transparency dropped, 16 bits scaled to 8.

    `upright` turns it as its EXIF data says, for pictures that have no label. Raises
    UnreadableError naming the file, also where it has more than so many millions of pixels.
    """
    flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    return _decode(path, _content(path, megapixels), flags)


def read_raw_label(
    path: File,
    colours: Colours = (),
    *,
    megapixels: float = MEGAPIXELS,
    lossy: bool = False,
    field: str = "",
) -> np.ndarray:
    """The raw ids of a label, u8 or u16 [H,W]: of a picture, or of a JSON file of Cityscapes'
    polygons (then ids of `*_labelIds.png`).

    colours: for labels stored as RGB pictures, the colour of each raw id. Without, a colour picture
    is refused. lossy: whether it may be stored in a way that changes values; field: the config path
    of its set, for the option that errors show. Raises UnreadableError as `read_image`, and naming
    the colours that were found and are not in the list.
    """
    content = _content(path, megapixels)
    if path.name.endswith(".json"):
        try:
            return polygons.rendered(content, megapixels)
        except ValueError as error:
            raise UnreadableError.at(path, f" is no file of polygons: {error}") from error
    if not lossy and (how := _lossy(content)):
        raise UnreadableError.at(
            path,
            f" is stored as {how}, which changes values: ids at edges become others",
            "export labels as PNG, or take these as they are by "
            f"{_flag(field, 'lossy_labels')}=true.",
        )
    if colours:
        picture = cv2.cvtColor(_decode(path, content, 1), cv2.COLOR_BGR2RGB)
        return _ids_of_colours(path, picture, colours, field)
    stored = _numbers(path, content)
    if stored is not None:
        return stored
    raw = _decode(path, content, cv2.IMREAD_UNCHANGED)
    if raw.ndim == 3:
        raw = _one_channel(path, raw, field)
    if raw.dtype in (np.uint8, np.uint16):
        return raw
    if raw.dtype.kind in "iu" and raw.min(initial=0) >= 0 and raw.max(initial=0) < 2**16:
        return raw.astype(np.uint16)
    raise UnreadableError.at(
        path,
        f" holds {raw.dtype} values from {raw.min():g} to {raw.max():g}; a label holds whole ids "
        "of 0 to 65535",
        "save it with 8 or 16 bits.",
    )


def read_label(path: File, *, domain: Domain, field: str = "") -> np.ndarray:
    """`read_raw_label` of a label that is stored as `domain` says; `field`: its config path."""
    return read_raw_label(
        path,
        domain.label_colours,
        megapixels=domain.max_megapixels,
        lossy=domain.lossy_labels,
        field=field,
    )


def _flag(field: str, name: str) -> str:
    """An option of the set as it is given on a command line, or its name alone."""
    return f"--{field}.{name}" if field.startswith("config.") else name


def _lossy(content: bytes) -> str:
    """How a picture is stored, where that changes its values; empty where it keeps them."""
    if content[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "" if b"VP8L" in content[12:] else "lossy WebP"
    if content[:2] in (b"II", b"MM"):
        try:
            how = _opened(content).info.get("compression", "")
        except Exception:  # of a kind that only OpenCV knows
            return ""
        return f"TIFF with {how} inside" if "jpeg" in how or "webp" in how else ""
    return ""


def _numbers(path: File, content: bytes) -> np.ndarray | None:
    """The stored numbers, u8, of what OpenCV turns into colours or stretches to 0..255: palettes
    and pictures of few bits. None for other ones.

    A GIF whose colours are greys from dark to bright holds these greys: it has no other way.
    """
    png = content[:8] == b"\x89PNG\r\n\x1a\n"
    if png and content[25] != 3 and content[24] >= 8:
        return None  # most labels, and the header is enough
    if not png and not content.startswith((b"II", b"MM", b"GIF8", b"BM", b"P1", b"P4")):
        return None
    try:
        with _opened(content) as picture:
            if picture.mode in ("P", "PA"):
                indices = np.array(picture if picture.mode == "P" else picture.getchannel(0))
                return _greys(indices, picture) if picture.format == "GIF" else indices
            if picture.mode == "1":
                return np.array(picture, np.uint8)
            if picture.mode != "L":
                return None
            bits = content[24] if png else getattr(picture, "tag_v2", {}).get(258, (8,))[0]
            return np.array(picture) // (255 // (2**bits - 1)) if bits < 8 else None
    except Exception as error:  # each of Pillow's formats raises its own
        if not png and _decoded(content, cv2.IMREAD_UNCHANGED) is not None:
            return None  # a kind that only OpenCV knows
        raise UnreadableError.at(
            path, " is not a picture that can be decoded", "fetch it again or remove it."
        ) from error


def _greys(indices: np.ndarray, picture: Any) -> np.ndarray:
    palette = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
    used = palette[np.unique(indices)].astype(int)
    grey = (used == used[:, :1]).all() and (np.diff(used[:, 0]) > 0).all()
    return palette[indices, 0] if grey else indices


def _packed(picture: np.ndarray) -> np.ndarray:
    """One number i32 for each colour u8[...,3]."""
    return picture.astype(np.int32) @ np.array([65536, 256, 1], np.int32)


def _ids_of_colours(path: File, picture: np.ndarray, colours: Colours, field: str) -> np.ndarray:
    """u16[H,W]: the place of each pixel's colour in `colours`."""
    packed, listed = _packed(picture), _packed(np.array(colours, np.uint8))
    order = np.argsort(listed)
    at = order[np.minimum(np.searchsorted(listed, packed, sorter=order), len(listed) - 1)]
    unknown = listed[at] != packed
    if unknown.any():
        found, shown = _colours_of(picture[unknown])
        raise UnreadableError.at(
            path,
            f": {unknown.mean():.1%} of the pixels have colours that are not in label_colours: "
            f"{shown}",
            f"correct the file, or add them: {_line(field, (*colours, *found))}",
        )
    return at.astype(np.uint16)


def _colours_of(pixels: np.ndarray) -> tuple[Colours, str]:
    """The colours of u8[N,3], most frequent first, and how that is said."""
    numbers, counts = np.unique(_packed(pixels), return_counts=True)
    first = numbers[np.argsort(-counts, kind="stable")][: MOST_COLOURS + 1]
    found = tuple((int(n) >> 16, int(n) >> 8 & 255, int(n) & 255) for n in first)
    shares = np.sort(counts)[::-1] / counts.sum()
    said = [f"{colour} {share:.1%}" for colour, share in zip(found[:8], shares, strict=False)]
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    return found, ", ".join(said) + more


def _line(field: str, colours: Colours) -> str:
    """What to write to make ids of these colours."""
    if len(colours) > MOST_COLOURS:
        return "these are too many for ids; export labels without smoothing, as PNG."
    return f'{_flag(field, "label_colours")}="{colours}" (a colour\'s raw id is its place there).'


def _one_channel(path: File, raw: np.ndarray, field: str) -> np.ndarray:
    red = raw[..., min(2, raw.shape[2] - 1)]
    if raw.dtype != np.uint8 or (raw[..., :3] == red[..., None]).all():
        return np.ascontiguousarray(red)
    found, shown = _colours_of(raw[..., 2::-1].reshape(-1, 3))
    raise UnreadableError.at(
        path,
        " is a colour picture; a label is a grey or palette picture of class ids. It holds the "
        f"colours {shown}",
        f"if they stand for ids, list them: {_line(field, found)}",
    )
