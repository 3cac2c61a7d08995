"""What a prepared set says of itself: `manifest.json`, written last, so that where it lies the set
is complete; and what is known of each picture, in `pictures-<split>.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from mrm_jax.config import Classes
from mrm_jax.data.document import DocumentError, Node, parsed
from mrm_jax.data.prepared import records
from mrm_jax.errors import UsageError
from mrm_jax.paths import below, what_is_wrong, write_text

FILE = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Shard:
    """A file of records, how many it holds and its SHA-256.

    `size` bytes, and `index`, a digest of what stands at `places` in it (`verified.heads_digest`): by them
    a file that lies in another one's place is known when the set is opened. None: the set was
    prepared before they were kept.
    """

    file: str
    count: int
    sha256: str
    size: int | None = None
    index: str | None = None
    places: tuple[int, ...] = ()


@dataclass(frozen=True)
class PreparedSplit:
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

    `source` is a hash of names and sizes of the files it was made from and of the options. `files`:
    SHA-256 of the files beside the shards; empty in a set that was prepared before they were kept.
    """

    name: str
    title: str
    homepage: str
    licence: str
    classes: Classes
    codec: str
    source: str
    splits: Mapping[str, PreparedSplit]
    files: Mapping[str, str] = field(default_factory=dict)

    def split(self, name: str, *, field: str) -> PreparedSplit:
        """The split of that name; raises UsageError naming those that there are."""
        if name not in self.splits:
            raise UsageError.of(
                f"{field}.split",
                name,
                f"; the prepared set of {self.title} holds {', '.join(self.splits)}.",
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


AGAIN = "prepare the set again, or copy it again from where it was made"
_HASH = "[0-9a-f]{64}"


@contextmanager
def _one_line(path: Path, where: str) -> Iterator[None]:
    """What is wrong with the document at `path` as a UsageError."""
    try:
        yield
    except (OSError, DocumentError) as error:
        what = str(error) if isinstance(error, DocumentError) else what_is_wrong(error)
        raise UsageError.at(where, f": {path} cannot be read ({what}); {AGAIN}.") from error


def read_manifest(folder: Path, *, field: str) -> Manifest:
    """The manifest of the prepared set in `folder`. Raises UsageError for one that cannot be
    read, naming the value that is wrong.
    """
    path = folder / FILE
    with _one_line(path, field):
        values = parsed(path.read_bytes())
        if values["format"].whole() != FORMAT:
            raise UsageError.at(
                field,
                f": {path} has format {values['format'].short()}, this version reads {FORMAT}",
                "prepare the set again.",
            )
        splits = {name: _split(each) for name, each in values["splits"].entries().items()}
        if not splits:
            raise values["splits"].wrong("an object with a split")
        texts = {k: values[k].text() for k in ("name", "title", "homepage", "licence", "source")}
        kept = values.get("files")
        return Manifest(
            **texts,
            codec=values["codec"].text("|".join(records.CODECS), " or ".join(records.CODECS)),
            classes=_classes(values["classes"]),
            splits=splits,
            files={n: _digest(each) for n, each in kept.entries().items()} if kept else {},
        )


def _classes(values: Node) -> Classes:
    names = tuple(each.text(".+") for each in values["names"].items())
    if not 1 <= len(names) <= 255 or len(set(names)) < len(names):
        raise values["names"].wrong("1 to 255 names that differ")
    colours = tuple(
        tuple(value.whole(0, 255) for value in each.items(3))
        for each in values["colours"].items(len(names))
    )
    return Classes(names, cast("tuple[tuple[int, int, int], ...]", colours))


def _split(values: Node) -> PreparedSplit:
    box = values.get("resize")
    shards = tuple(shard_of(each) for each in values["shards"].items())
    count = values["count"].whole(0, 2**31)
    held = sum(shard.count for shard in shards)
    if held != count:
        raise values["count"].wrong(f"{held}, the sum of its shards' counts")
    names = [shard.file for shard in shards]
    if not names or len(set(names)) < len(names):
        raise values["shards"].wrong("a list of files that differ")
    return PreparedSplit(
        count=count,
        labelled=values["labelled"].flag(),
        resize=_sides(box) if box else None,
        shards=shards,
        skipped={stem: why.text() for stem, why in values["skipped"].entries().items()},
    )


def _sides(box: Node) -> tuple[int, int]:
    long, short = (side.whole(1, 2**20) for side in box.items(2))
    return long, short


def shard_of(values: Node) -> Shard:
    """The shard that a document describes; raises DocumentError."""
    size, index, places = (values.get(key) for key in ("size", "index", "places"))
    return Shard(
        file=values["file"].text(".+"),
        count=values["count"].whole(0, 2**31),
        sha256=_digest(values["sha256"]),
        size=size.whole() if size else None,
        index=_digest(index) if index else None,
        places=tuple(each.whole() for each in places.items()) if places else (),
    )


def _digest(value: Node) -> str:
    return value.text(_HASH, "a SHA-256, 64 hex digits")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest in one move."""
    write_json(folder / FILE, {"format": FORMAT, **asdict(manifest)})


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Replaces `path` by `value` as JSON in one move."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def known_file(split: str) -> str:
    """The file that holds what is `Known` of a split's pictures."""
    return f"pictures-{split}.json"


def load_known(folder: Path, made: Manifest, split: str, *, field: str) -> Known:
    """What is known of a split's pictures. Raises UsageError where it cannot be read, or is not
    what was prepared."""
    path = below(folder, known_file(split))
    with _one_line(path, field):
        content = path.read_bytes()
        kept = made.files.get(path.name)
        if kept is not None and hashlib.sha256(content).hexdigest() != kept:
            raise DocumentError("its SHA-256 is not the manifest's")
        return known_of(parsed(content), made.splits[split].count, len(made.classes.names))


def known_of(values: Node, count: int, classes: int) -> Known:
    """What a document says of `count` pictures; raises DocumentError."""
    if values["classes"].whole() != classes:
        raise values["classes"].wrong(f"{classes}, as in the manifest")
    names = tuple(each.text() for each in values["names"].items(count))
    if len(set(names)) < count or "" in names:
        raise values["names"].wrong("a list of names that differ")
    sizes = [
        [side.whole(1, 2**20) for side in each.items(2)] for each in values["sizes"].items(count)
    ]
    pixels = values["pixels"].items(count)
    ids = {str(class_id): class_id for class_id in range(classes)}
    counts = np.zeros((count, classes), np.int64)
    for row, each, (height, width) in zip(counts, pixels, sizes, strict=True):
        for class_id, held in each.entries().items():
            if class_id not in ids:
                raise DocumentError(f"{held.place} is of no class of the set")
            row[ids[class_id]] = held.whole(1, height * width)
    sides = np.array(sizes, np.int64).reshape(-1, 2)
    for i in np.flatnonzero(counts.sum(axis=1) > sides.prod(axis=1)):
        raise pixels[i].wrong(f"the classes of {sides[i][0]} x {sides[i][1]} px")
    return Known(names, sides, counts)


def values_of(known: Known) -> dict[str, Any]:
    """The document that `known_of` reads."""
    return {
        "classes": known.counts.shape[1],
        "names": known.names,
        "sizes": known.sizes.tolist(),
        "pixels": [{str(c): int(row[c]) for c in np.flatnonzero(row)} for row in known.counts],
    }


def save_known(folder: Path, split: str, known: Known) -> None:
    """Writes what is known of a split's pictures, in one move."""
    write_json(below(folder, known_file(split)), values_of(known), indent=None)
