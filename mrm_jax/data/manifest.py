"""What a prepared set says of itself: `manifest.json`, written last, so that where it lies the set
is complete; and what is known of each picture, in `pictures-<split>.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrm_jax.config import Classes, UsageError
from mrm_jax.paths import below, write_text

FILE = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Shard:
    """A file of records, how many it holds and its SHA-256."""

    file: str
    count: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """A split as it is stored. `resize`: box (long, short) px that pictures were fitted into, None:
    native. `skipped`: stem to why a picture was left out.
    """

    count: int
    labelled: bool
    resize: tuple[int, int] | None
    shards: tuple[Shard, ...]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class Manifest:
    """A prepared set: which data set, under which terms, how it is stored and what it holds.

    `source` is a hash of names and sizes of the files it was made from and of the options.
    """

    name: str
    title: str
    homepage: str
    licence: str
    classes: Classes
    codec: str
    source: str
    splits: Mapping[str, Split]

    def split(self, name: str, *, field: str) -> Split:
        """The split of that name; raises UsageError naming those that there are."""
        if name not in self.splits:
            raise UsageError(
                f"{field}.split is '{name}'; the prepared set of {self.title} holds "
                f"{', '.join(self.splits)}."
            )
        return self.splits[name]


@dataclass(frozen=True)
class Known:
    """What is known of the pictures of a split, in their order.

    `sizes` i64[N,2] (height, width) px before resizing; `counts` i64[N,K]: pixels of each class in
    the label at that size, zeros in an unlabelled split.
    """

    names: tuple[str, ...]
    sizes: np.ndarray
    counts: np.ndarray


def is_prepared(folder: Path) -> bool:
    """Whether `folder` holds a prepared set."""
    return (folder / FILE).is_file()


def load(folder: Path, *, field: str) -> Manifest:
    """The manifest of the prepared set in `folder`. Raises UsageError for one that cannot be
    read.
    """
    path = folder / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise UsageError(
                f"{field}: {path} has format {values['format']}, this version reads {FORMAT}; "
                "prepare the set again."
            )
        splits = {name: _split(each) for name, each in values["splits"].items()}
        classes = Classes(
            tuple(values["classes"]["names"]), tuple(map(tuple, values["classes"]["colours"]))
        )
        text = {k: values[k] for k in ("name", "title", "homepage", "licence", "codec", "source")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{field}: {path} cannot be read ({error!r}); prepare the set again."
        ) from error
    return Manifest(classes=classes, splits=splits, **text)


def _split(values: Mapping[str, Any]) -> Split:
    shards = tuple(Shard(**shard) for shard in values["shards"])
    resize = tuple(values["resize"]) if values["resize"] else None
    return Split(values["count"], values["labelled"], resize, shards, dict(values["skipped"]))


def save(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest in one move."""
    write_json(folder / FILE, {"format": FORMAT, **asdict(manifest)})


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` by `value` as JSON in one move."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def known_file(split: str) -> str:
    """The file that holds what is `Known` of a split's pictures."""
    return f"pictures-{split}.json"


def load_known(folder: Path, split: str, *, field: str) -> Known:
    """What is known of a split's pictures; raises UsageError where it cannot be read."""
    path = below(folder, known_file(split))
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        sizes = np.array(values["sizes"], np.int64).reshape(-1, 2)
        counts = np.zeros((len(sizes), values["classes"]), np.int64)
        for row, pixels in zip(counts, values["pixels"], strict=True):
            for class_id, count in pixels.items():
                row[int(class_id)] = count
        return Known(tuple(values["names"]), sizes, counts)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{field}: {path} cannot be read ({error!r}); prepare the set again."
        ) from error


def save_known(folder: Path, split: str, known: Known) -> None:
    """Writes what is known of a split's pictures, in one move."""
    pixels = [{str(c): int(row[c]) for c in np.flatnonzero(row)} for row in known.counts]
    values = {
        "classes": known.counts.shape[1],
        "names": known.names,
        "sizes": known.sizes.tolist(),
        "pixels": pixels,
    }
    write_text(below(folder, known_file(split)), json.dumps(values) + "\n")


def sha256(path: Path) -> str:
    """Of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
