"""What the servers of benchmarks with hidden labels take: names, folders, sizes and values.

Data, and how a zip is written from it; `evaluation/submitted.py` checks zips by it. docs/submit.md
says where each fact comes from.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from mrm_jax.data import labels
from mrm_jax.data.datasets import DATA_SETS
from mrm_jax.data.files import promised_size
from mrm_jax.data.locating import Located, locate
from mrm_jax.data.tree import File
from mrm_jax.errors import UsageError

TRAIN_IDS = frozenset(range(len(labels.CITYSCAPES.names)))
LABEL_IDS = frozenset(row[0] for row in labels.CITYSCAPES_IDS)


@dataclass(frozen=True)
class Folder:
    """A folder at the top of the zip with one PNG a picture; `name` "": anywhere in the zip.

    product: what `predict` calls its content; bits: of its PNGs; values: ids that a pixel may have.
    written: whether ours holds it; required: whether one without it is refused.
    """

    name: str
    product: Literal["ids", "confidence"] = "ids"
    bits: int = 8
    values: frozenset[int] = TRAIN_IDS
    written: bool = True
    required: bool = True


@dataclass(frozen=True)
class Benchmark:
    """A benchmark by the name of its data set.

    key: what of a file's name says which picture it is of, whatever follows. size: (height, width)
    px. counts: split to the number of its pictures, by how their keys begin. part: a number of
    pictures that is a task of its own there. largest: bytes of a zip.
    """

    name: str
    site: str
    key: str
    example: str
    size: tuple[int, int]
    counts: Mapping[str, Mapping[str, int]]
    folders: tuple[Folder, ...]
    part: int | None = None
    largest: int | None = None

    def key_of(self, name: str) -> str | None:
        """The picture that a file is of, by the last part of its name; None for one of no
        picture."""
        found = re.match(self.key, name)
        return found[0] if found else None

    def count(self, split: str) -> int:
        """Pictures of a split."""
        return sum(self.counts[split].values())


_FRAME = r"[A-Za-z0-9]+_frame_\d{6}(?!\d)"
_INVALID = TRAIN_IDS | {255}

BENCHMARKS = {
    each.name: each
    for each in (
        Benchmark(
            "cityscapes",
            "https://www.cityscapes-dataset.com/submit/",
            r"[a-z]+_\d{6}_\d{6}(?!\d)",
            "berlin_000000_000019_leftImg8bit.png",
            (1024, 2048),
            {
                "test": {
                    **{"berlin": 544, "bielefeld": 181, "bonn": 46, "leverkusen": 58},
                    **{"mainz": 298, "munich": 398},
                },
                "val": {"frankfurt": 267, "lindau": 59, "munster": 174},
            },
            (Folder("", values=LABEL_IDS),),
            largest=100_000_000,
        ),
        Benchmark(
            "acdc",
            "https://acdc.vision.ee.ethz.ch/submit",
            _FRAME,
            "GOPR0475_frame_000247_rgb_anon.png",
            (1080, 1920),
            {"test": {"": 2000}, "val": {"": 406}},
            (
                Folder("labelTrainIds"),
                Folder("labelTrainIds_invalid", values=_INVALID, written=False, required=False),
                Folder("confidence", "confidence", 16, written=False, required=False),
            ),
            part=500,
        ),
        Benchmark(
            "dark_zurich",
            "https://codalab.lisn.upsaclay.fr/competitions/3783",
            _FRAME,
            "GOPR0364_frame_000001_rgb_anon.png",
            (1080, 1920),
            {"test": {"": 151}, "val": {"": 50}},
            (
                Folder("labelTrainIds"),
                Folder("labelTrainIds_invalid", values=_INVALID),
                Folder("confidence", "confidence", 16),
            ),
        ),
    )
}
"""The benchmarks by the name that `submit` takes."""


@dataclass(frozen=True)
class Pictures:
    """The pictures of a split in a download, by key: what a zip has to hold, each at its picture's
    size. `others`: keys of the download's other splits, and which."""

    files: dict[str, File]
    sizes: dict[str, tuple[int, int]]
    others: dict[str, str]

    def unlike(self, benchmark: Benchmark, split: str) -> list[str]:
        """How they differ from the official split, for which a server refuses the zip."""
        lines, official = [], benchmark.count(split)
        if len(self.files) != official:
            lines.append(f"{len(self.files)} pictures of {split} are here, of {official}")
        odd = [key for key, size in self.sizes.items() if size != benchmark.size]
        if odd:
            (height, width), (h, w) = benchmark.size, self.sizes[odd[0]]
            lines.append(f"{len(odd)} are not {width} x {height} px: {odd[0]} is {w} x {h}")
        return lines


def pictures_of(benchmark: Benchmark, root: Path, split: str) -> Pictures:
    """The pictures of a split in the download at `root`, a folder or its archives.

    Raises UsageError where there are none, for two of one key and for one whose name has none.
    """
    field = f"{benchmark.name} --from"
    found = locate(DATA_SETS[benchmark.name], root)
    if split not in found:
        raise UsageError.at(
            field,
            f": {root} holds no picture of {split}",
            f"give the folder that holds it, or --split {'/'.join(found)}.",
            value=root,
        )
    files: dict[str, File] = {}
    for file in _every(found[split]):
        key = benchmark.key_of(file.name)
        if key is None:
            fault = f" is named unlike the pictures of {benchmark.name}, say {benchmark.example}"
        elif key in files:
            fault = f" is the same picture as {files[key]} by its name"
        else:
            files[key] = file
            continue
        raise UsageError.at(file, fault, "unpack the download into an empty folder.")
    sizes = {}
    for key, file in files.items():
        size = promised_size(file)
        if size is None:
            raise UsageError.at(file, " is no picture that can be read", "fetch it again.")
        sizes[key] = size
    others = {
        key: name
        for name, each in found.items()
        if name != split
        for file in each.pictures.values()
        if (key := benchmark.key_of(file.name)) and key not in files
    }
    return Pictures(files, sizes, others)


def _every(located: Located) -> list[File]:
    again = [file for files in located.repeated.values() for file in files[1:]]
    return [*located.pictures.values(), *again]


def stored_ids(folder: Folder, ids: np.ndarray) -> bytes:
    """The PNG of train ids u8[H,W] in the values of a folder."""
    if folder.values == LABEL_IDS:
        table = np.zeros(256, np.uint8)
        table[: len(labels.CITYSCAPES_IDS)] = [row[0] for row in labels.CITYSCAPES_IDS]
        ids = cv2.LUT(ids, table)
    return cv2.imencode(".png", ids)[1].tobytes()


def write_zip(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes (name, content) as a zip: the same bytes for the same members, stored, since PNGs are
    compressed. Raises OSError."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content)
