"""How many pixels of each class every label holds, counted once and kept.

The counts lie in `class_statistics-<which set>.json`: in the root of a folder data set, or in the
user's cache folder where that cannot be written and for drawn scenes. `<which set>` is a hash of
the folder, listing and label map; the file also holds a hash of the labels' names, sizes and times
of change, so that a changed folder is counted again. Peer: DAFormer counts with its data set
converters (sample_class_stats.json).
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mrm_jax.config import Domain
from mrm_jax.data import files, sources
from mrm_jax.data.document import DocumentError, Node, parsed
from mrm_jax.data.prepared import verified
from mrm_jax.paths import is_remote, located, states_below, write_text

FORMAT = 1
THREADS = 4  # Decoding and counting leave Python's lock; more threads than that wait for the disk.
PROGRESS_SECONDS = 10.0
log = logging.getLogger(__name__)

Say = Callable[[str], None]


class Statistics(NamedTuple):
    """`counts` i64[N,K]: pixels of each class in the label of each picture, as stored; `sizes`
    i64[N,2]: its height and width. A label that cannot be read has zeros in both.
    """

    counts: np.ndarray
    sizes: np.ndarray


class _Count(NamedTuple):
    """Of one label: height and width, px, and the pixels of each class."""

    size: tuple[int, int]
    pixels: np.ndarray


def class_statistics(
    pictures: sources.LabelledPictures,
    domain: Domain,
    classes: int,
    *,
    field: str,
    say: Say | None = None,
) -> Statistics:
    """The pixels of every class in every label of `pictures` (opened from `domain`), from the file
    that keeps them or counted now; of a prepared set, from what it holds.

    `say` is given lines of progress (default: the log). Raises UnreadableError naming a label
    that cannot be read, unless `domain.on_unreadable` is "skip". Works, slower, where nothing can
    be written.
    """
    say = say or log.info
    if known := kept_statistics(pictures, domain, classes, say=say):
        return known
    names = [pictures.name(index) for index in range(len(pictures))]
    places, content = _places(pictures, domain, classes), _content(pictures, domain)
    began = time.monotonic()
    say(f"class statistics: counting the pixels of {len(names)} labels ...")
    found = list(_counted(pictures, domain, classes, field, say))
    kept = next((place for place in places if _write(place, content, names, found)), None)
    where = f"kept in {kept}" if kept else "not kept: no folder for it can be written"
    say(f"class statistics: counted in {time.monotonic() - began:.0f} s; {where}.")
    return _table(found, classes)


def kept_statistics(
    pictures: sources.LabelledPictures, domain: Domain, classes: int, *, say: Say = log.info
) -> Statistics | None:
    """`class_statistics` where they are known without looking at a label, else None."""
    if known := pictures.counted():
        return Statistics(*known)
    names = [pictures.name(index) for index in range(len(pictures))]
    content = _content(pictures, domain)
    for place in _places(pictures, domain, classes):
        found = _read(place, content, names, classes, say)
        if found and (None not in found or domain.on_unreadable == "skip"):
            return _table(found, classes)
    return None


def _table(found: list[_Count | None], classes: int) -> Statistics:
    nothing = _Count((0, 0), np.zeros(classes, np.int64))
    rows = [count or nothing for count in found]
    sizes = np.array([row.size for row in rows], np.int64).reshape(-1, 2)
    return Statistics(np.stack([row.pixels for row in rows]), sizes)


def _counted(
    pictures: sources.LabelledPictures, domain: Domain, classes: int, field: str, say: Say
) -> Iterator[_Count | None]:
    def count(index: int) -> _Count | None:
        try:
            label = pictures.label(index)
        except files.UnreadableError as error:
            if domain.on_unreadable == "skip":
                log.warning("%s: %s Not counted.", field, error)
                return None
            hint = f"Set {field}.on_unreadable='skip' to train without such pictures."
            raise files.UnreadableError.at(field, f": {error} {hint}") from error
        height, width = label.shape
        pixels = np.bincount(label.ravel(), minlength=256)[:classes].astype(np.int64)
        return _Count((height, width), pixels)

    total, began = len(pictures), time.monotonic()
    told = began
    # A drawn scene holds Python's lock nearly all the time: threads would only take turns.
    with ThreadPoolExecutor(1 if domain.kind == "drawn" else THREADS) as pool:
        for done, found in enumerate(pool.map(count, range(total)), 1):
            if time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                left = (told - began) / done * (total - done)
                say(f"class statistics: {done} of {total} labels, about {left:.0f} s left")
            yield found


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _places(pictures: sources.LabelledPictures, domain: Domain, classes: int) -> list[Path]:
    """Where the file may lie, best place first."""
    table = (domain.raw_ids, domain.ignored_ids, classes)
    which: tuple[Any, ...] = (domain.kind, domain.look, domain.split, domain.count, domain.size)
    home = verified.cache()
    if not pictures.label_files:
        return [home / f"class_statistics-{_hash([which, table])[:16]}.json"]
    which = (domain.images, domain.image_suffix, domain.labels, domain.label_suffix, domain.listing)
    root = located(domain.path or "")
    if not is_remote(root):
        root = root.resolve()
    # In a common folder the root tells sets of one layout apart; in the root it may have moved.
    common = f"class_statistics-{_hash([which, table, str(root)])[:16]}.json"
    if is_remote(root):
        return [home / common]
    return [
        root / f"class_statistics-{_hash([which, table])[:16]}.json",
        home / common,
    ]


def _content(pictures: sources.LabelledPictures, domain: Domain) -> str:
    """A hash that changes with any label, as far as names, sizes and times of change show."""
    if not pictures.label_files:
        from mrm_jax.data.drawn.scenes import DRAWN_VERSION

        return _hash((FORMAT, DRAWN_VERSION, sources.DRAWN_SEED))
    names = [pictures.name(index) for index in range(len(pictures))]
    root = located(domain.path or "")
    if is_remote(root):  # which would be asked once a file
        known = dict(states_below(root))
        states = [known[path.relative_to(root).as_posix()] for path in pictures.label_files]
        return _hash((FORMAT, names, states))
    stats = [path.stat() for path in pictures.label_files]
    facts = [(n, s.st_size, s.st_mtime_ns) for n, s in zip(names, stats, strict=True)]
    return _hash((FORMAT, facts))


def _read(
    place: Path, content: str, names: list[str], classes: int, say: Say
) -> list[_Count | None] | None:
    """The counts of the file at `place`; None where there is none, or not of these labels."""
    try:
        document = parsed(place.read_bytes())
        if document["content"].value != content:
            return None
        labels = document["labels"].entries()
        return [_parsed(labels[name], classes) for name in names]
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return None
    except (OSError, DocumentError, LookupError):
        say(f"class statistics: {place} is damaged; counting again.")
        return None


def _parsed(entry: Node, classes: int) -> _Count | None:
    if entry.value is None:
        return None
    height, width = (side.whole(1, 2**20) for side in entry["size"].items(2))
    counts = {k: each.whole(0, height * width) for k, each in entry["pixels"].entries().items()}
    pixels = np.array([counts.pop(str(k), 0) for k in range(classes)], np.int64)
    if counts or pixels.sum() > height * width:
        raise entry["pixels"].wrong(f"the classes of {height} x {width} px")
    return _Count((height, width), pixels)


def _write(place: Path, content: str, names: list[str], found: list[_Count | None]) -> bool:
    """Whether the counts could be put at `place`, in one move."""

    def entry(count: _Count | None) -> dict[str, Any] | None:
        if count is None:
            return None
        present = {str(c): int(count.pixels[c]) for c in np.flatnonzero(count.pixels)}
        return {"size": list(count.size), "pixels": present}

    labels = {name: entry(count) for name, count in zip(names, found, strict=True)}
    text = json.dumps({"content": content, "labels": labels}) + "\n"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, text)
    except OSError:
        return False
    return True
