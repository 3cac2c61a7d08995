"""What is wrong with a zip for a benchmark's server, before the server says so.

Nothing is unpacked to the disk, and no member further than a PNG of its picture's size can reach.
"""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np

from mrm_jax.data import promise
from mrm_jax.data.checked import Finding, Severity
from mrm_jax.data.tree import passed_over
from mrm_jax.evaluation.reading import read_ahead
from mrm_jax.evaluation.submission import (
    LABEL_IDS,
    TRAIN_IDS,
    Benchmark,
    Folder,
    Pictures,
)
from mrm_jax.paths import refusal

_PACK = "pack the files again, from inside their folder: zip -r ../FILE.zip *"
_SAVE = "save one channel of 8 bits: PIL's mode L, or a uint8 array of height x width in OpenCV"
KINDS: dict[str, tuple[Severity, str, str]] = {
    "archive": ("error", "file that is no zip archive or a damaged one", _PACK),
    "ending": ("error", "file whose name does not end in .zip", "rename it"),
    "name": ("error", "names that are refused in an archive", _PACK),
    "backslash": ("error", "names with backslashes, which are no folders elsewhere", _PACK),
    "link": ("error", "links in place of files", "pack the files themselves: zip without -y"),
    "locked": ("error", "encrypted files", "pack them without a password"),
    "packed": ("error", "files compressed as few programs read them", _PACK),
    "bomb": (
        *("error", "files that unpack to more than an image of that size can take"),
        "save the images as PNG and pack them again",
    ),
    "damaged": ("error", "damaged files", f"copy the zip again in binary mode, or {_PACK}"),
    "macos": (
        *("error", "files that macOS or a desktop adds"),
        "zip -d FILE.zip '__MACOSX/*' '*/.*' '.*'",
    ),
    "nested": (
        *("error", "files outside of the folders that the server opens at the top of the zip"),
        "pack those folders themselves: zip -r FILE.zip FOLDER..., from where they lie",
    ),
    "folder": ("error", "folders that are missing at the top of the zip", "add them"),
    "suffix": ("error", "images that are not called .png", "save them as PNG: JPEG changes ids"),
    "stranger": ("error", "files of no picture, by their name", "leave them out, or name them"),
    "split": ("error", "images of another split", "predict the split that is asked for"),
    "extra": ("error", "images that the split does not have", "leave them out"),
    "double": ("error", "images of which there are several", "keep one of each picture"),
    "missing": ("error", "images that are missing", "predict them, too, one file a picture"),
    "format": (
        "error",
        "files that are no PNG inside",
        "save them as PNG; a new name is not enough",
    ),
    "broken": ("error", "PNGs that cannot be decoded", "write and pack them again"),
    "size": (
        *("error", "images of another size than their picture"),
        "enlarge the logits, or the ids by nearest neighbour, to the picture's size",
    ),
    "colour": (
        *("error", "colour images, where a pixel's value is a class id"),
        f"save the ids, not their colours; {_SAVE}",
    ),
    "alpha": ("error", "images with an alpha channel", _SAVE),
    "palette": (
        *("error", "palette PNGs, which some programs read as colours"),
        f"save the indices; {_SAVE}",
    ),
    "bits": ("error", "images of other than 8 bits", _SAVE),
    "train": (
        *("error", "images of train ids, where label ids are wanted"),
        "write id of the class table instead of trainId: road is 7, not 0",
    ),
    "label": (
        *("error", "images of label ids, where train ids are wanted"),
        "write trainId of the class table instead of id: road is 0, not 7",
    ),
    "ignored": (
        *("error", "images with pixels of 255, which is no class"),
        "give every pixel the class of highest probability",
    ),
    "values": ("error", "images with values that are no ids", "save ids, not colours or shares"),
    "void": (
        *("warning", "images with ids that are not scored: these pixels count as wrong"),
        "give every pixel one of the 19 classes",
    ),
    "confidence": (
        *("warning", "confidences of 8 bits: the server's measures of confidence mean nothing"),
        "save 16 bits, 65535 for a probability of 1",
    ),
    "part": (
        *("warning", "images, which is one condition of four"),
        "choose that condition as the task on the site",
    ),
    "heavy": (
        *("warning", "zip that is larger than the site is said to take"),
        "pack with compression, and without colour images",
    ),
}
"""Every way of being refused: how bad it is, what it is, and the way out."""

_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6  # PNG's colour types
_UNPACKABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class _Problems:
    """Problems by kind: how many, and the first of them."""

    def __init__(self, split: str):
        self._split = split
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, example: str, count: int = 1) -> None:
        before, first = self._found.get(kind, (0, example))
        self._found[kind] = (before + count, first)

    def findings(self) -> list[Finding]:
        return [
            Finding(severity, self._split, what, *self._found[kind], fix)
            for kind, (severity, what, fix) in KINDS.items()
            if kind in self._found
        ]


def check_zip(
    path: Path,
    benchmark: Benchmark,
    split: str,
    pictures: Pictures | None = None,
    progress: Callable[[int], AbstractContextManager[Callable[[int], None]]] | None = None,
    called: str | None = None,
) -> list[Finding]:
    """What is wrong with a zip of predictions, errors and warnings in the order of `KINDS`; empty
    for one that the server takes.

    `pictures`: what it has to hold; without, the official numbers and size count. `progress(total)`
    is a context that gives `advance(images done)`. called: the name that it will have; default: its
    own. Raises OSError where there is no such file.
    """
    problems, called = _Problems(split), called or path.name
    if not called.lower().endswith(".zip"):
        problems.add("ending", called)
    if benchmark.largest is not None and path.stat().st_size > benchmark.largest:
        problems.add(
            "heavy", f"{path.stat().st_size / 1e6:.0f} MB of {benchmark.largest / 1e6:.0f}"
        )
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a damaged list of members raises what its fields lead to
        problems.add("archive", f"{called} ({' '.join(str(error).split())})")
        return problems.findings()
    with archive:
        images = _images(archive.infolist(), benchmark, problems)
        for folder in benchmark.folders:
            keys = {key: info.filename for (where, key), info in images.items() if where == folder}
            if keys or not folder.name:  # a folder without any is named by itself
                _compare(folder, keys, benchmark, split, pictures, problems)
        rows = [
            (info, folder, size)
            for (folder, key), info in images.items()
            if (size := pictures.sizes.get(key) if pictures else benchmark.size)
            and info.filename.endswith(".png")
        ]

        def look(index: int) -> list[tuple[str, str]]:
            return _look(archive, *rows[index])

        with (progress or _silent)(len(rows)) as advance:
            for done, found in enumerate(read_ahead(look, len(rows)), 1):
                for kind, example in found:
                    problems.add(kind, example)
                advance(done)
    return problems.findings()


def _silent(total: int) -> AbstractContextManager[Callable[[int], None]]:
    from contextlib import nullcontext

    return nullcontext(lambda done: None)


def _images(
    members: list[zipfile.ZipInfo], benchmark: Benchmark, problems: _Problems
) -> dict[tuple[Folder, str], zipfile.ZipInfo]:
    """The member of each folder and picture; what the other members are is a problem."""
    found: dict[tuple[Folder, str], zipfile.ZipInfo] = {}
    named = {folder.name: folder for folder in benchmark.folders}
    opened = set()
    for info in members:
        name = info.filename
        if kind := _refused(info):
            problems.add(kind, repr(info.orig_filename))
            continue
        if info.is_dir():
            continue
        *above, last = name.split("/")
        if any(map(passed_over, (*above, last))) or last == "Thumbs.db":
            problems.add("macos", name)
            continue
        place = next((part for part in above if part in named), None)
        if "" not in named and (not above or above[0] != place):
            problems.add("nested", name)
        folder = named.get(place or "", benchmark.folders[0])
        opened.add(folder.name)
        key = benchmark.key_of(last)
        if key is None:
            problems.add("stranger", f"{name}, not such as {benchmark.example}")
        elif not last.endswith(".png"):
            problems.add("suffix", name)
            found.setdefault((folder, key), info)
        elif (folder, key) in found:
            problems.add("double", f"{name} and {found[folder, key].filename}")
        else:
            found[folder, key] = info
    for folder in benchmark.folders:
        if folder.required and folder.name and folder.name not in opened:
            problems.add("folder", folder.name)
    return found


def _refused(info: zipfile.ZipInfo) -> str | None:
    if "\\" in info.orig_filename:
        return "backslash"
    if "\0" in info.orig_filename or refusal(info.filename.removesuffix("/")):
        return "name"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "link"
    if info.flag_bits & 0x1:
        return "locked"
    return "packed" if info.compress_type not in _UNPACKABLE else None


def _compare(
    folder: Folder,
    found: Mapping[str, str],
    benchmark: Benchmark,
    split: str,
    pictures: Pictures | None,
    problems: _Problems,
) -> None:
    """Which pictures a folder lacks or has too many of; found: its names by key."""
    place = f"{folder.name}/" if folder.name else ""
    if pictures is not None:
        for key, name in found.items():
            if key not in pictures.files:
                other = pictures.others.get(key)
                problems.add("split" if other else "extra", f"{name} of {other}" if other else name)
        lacking = [key for key in pictures.files if key not in found]
        if lacking:
            problems.add("missing", f"{place}{lacking[0]}", len(lacking))
        return
    counts = benchmark.counts[split]
    others = [name for name in benchmark.counts if name != split]
    if "" in counts:  # no name says which split a picture is of
        if same := [name for name in others if benchmark.count(name) == len(found)]:
            example = f"{place}: {len(found)} images, as many as {same[0]} has"
            problems.add("split", example.removeprefix(": "), len(found))
            return
        if benchmark.part == len(found):
            problems.add("part", f"{place} has them", len(found))
            return
    for key, name in found.items():
        if not any(_starts(key, start) for start in counts):
            of = [n for n in others if any(_starts(key, start) for start in benchmark.counts[n])]
            problems.add("split" if of else "extra", f"{name} of {of[0]}" if of else name)
    for start, wanted in counts.items():
        there = sum(_starts(key, start) for key in found)
        kind, count = ("missing", wanted - there) if there < wanted else ("extra", there - wanted)
        if count:
            of = " ".join(part for part in (place, start) if part)
            problems.add(kind, f"{of + ': ' if of else ''}{there} are there, of {wanted}", count)


def _starts(key: str, start: str) -> bool:
    return not start or key.startswith(f"{start}_")


def _look(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, folder: Folder, size: tuple[int, int]
) -> list[tuple[str, str]]:
    """(kind, example) of what is wrong with one image that should have `size`."""
    name, most = info.filename, size[0] * size[1] * promise.BYTES_A_PIXEL + promise.BESIDE // 16
    if info.file_size > most:
        return [("bomb", f"{name}: {info.file_size} bytes")]
    try:
        with archive.open(info) as file:
            content = file.read(most)
    except Exception as error:  # each kind of damage raises its own
        return [("damaged", f"{name} ({' '.join(str(error).split())})")]
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 33:
        return [("format", name)]
    found, bits, colours = promise.size(content), content[24], content[25]
    if found != size:
        height, width = found or (0, 0)
        return [("size", f"{name} is {width} x {height} px, not {size[1]} x {size[0]}")]
    kinds = {_RGB: "colour", _PALETTE: "palette", _GREY_ALPHA: "alpha", _RGB_ALPHA: "colour"}
    if kind := kinds.get(colours):
        return [(kind, name)]
    if bits != folder.bits:
        kind = "confidence" if (folder.product, bits) == ("confidence", 8) else "bits"
        return [(kind, f"{name} has {bits}")]
    image = None
    if promise.ends(content):
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.shape != size:
        return [("broken", name)]
    return [] if folder.product == "confidence" else _values(name, folder, image)


def _values(name: str, folder: Folder, image: np.ndarray) -> list[tuple[str, str]]:
    values = set(np.flatnonzero(np.bincount(image.ravel(), minlength=256)).tolist())
    odd = values - folder.values
    if not odd:
        return []
    example, plain = f"{name} holds {', '.join(map(str, sorted(odd)[:8]))}", odd - {255}
    if not plain:
        return [("ignored", example)]
    if folder.values == LABEL_IDS:
        if values <= TRAIN_IDS | {255}:
            return [("train", example)]
        return [("void" if odd <= set(range(34)) else "values", example)]
    return [("label" if plain <= set(range(34)) else "values", example)]
