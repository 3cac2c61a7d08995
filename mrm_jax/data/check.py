"""What is wrong with a download, and how to put it right.

Every file is read once and nothing is stopped by what is found; findings are data.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from mrm_jax.config import Classes, Domain
from mrm_jax.data import datasets, files, labels
from mrm_jax.data.locate import Located, locate
from mrm_jax.errors import UsageError

T = TypeVar("T")
SHOWN = 8
"""Pictures of a split on the contact sheet, spread evenly."""
SAMPLED = 100
"""Pictures of a split that `fast` reads, spread evenly."""

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """Something wrong with `count` pictures, `example` one of them, and the way out."""

    severity: Severity
    split: str
    what: str
    count: int
    example: str
    fix: str


class Shown(NamedTuple):
    """A picture for the contact sheet: RGB u8[H,W,3], train ids u8[H,W] or None."""

    name: str
    image: np.ndarray
    label: np.ndarray | None


@dataclass
class Checked:
    """What a split holds. `read` pictures of `pictures` were decoded; `expected` of the official
    download; `pixels` i64[K] of each class and `holding` i64[K] pictures that have it; `counted`
    pixels of all labels. `sizes`: (height, width) to how many pictures.
    """

    split: str
    classes: int
    pictures: int = 0
    read: int = 0
    expected: int | None = None
    labelled: bool = False
    counted: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    shown: list[Shown] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pixels = np.zeros(self.classes, np.int64)
        self.holding = np.zeros(self.classes, np.int64)

    @property
    def ignored(self) -> float:
        """Share of the labels' pixels that count nowhere."""
        return 1 - float(self.pixels.sum()) / self.counted if self.counted else 0.0

    def find(self, severity: Severity, what: str, examples: list[str], fix: str) -> None:
        """Adds a finding where there are examples of it."""
        if examples:
            self.findings.append(
                Finding(severity, self.split, what, len(examples), examples[0], fix)
            )


class Seen(NamedTuple):
    """Of one picture: problems as (kind, text), and what it counts."""

    name: str
    problems: list[tuple[str, str]]
    size: tuple[int, int] | None = None
    checksum: int = 0
    ids: tuple[int, ...] = ()
    pixels: np.ndarray | None = None
    counted: int = 0
    shown: Shown | None = None


_FIXES: dict[str, tuple[Severity, str, str]] = {
    "picture": ("error", "pictures that cannot be read", "fetch them again"),
    "label": ("error", "labels that cannot be read as class ids", "fetch them again"),
    "ids": (
        "error",
        "labels with ids outside the table",
        "see whether the labels are of another kind (train ids, colours, another release)",
    ),
    "size": (
        "error",
        "pictures and labels of different sizes",
        "fetch both again, or leave them out by prepare --skip_broken",
    ),
    "odd": ("warning", "pictures that are known to be odd", "prepare leaves them out by itself"),
    "empty": ("warning", "labels in which every pixel is ignored", "look whether that is meant"),
}


def check_download(
    data_set: datasets.DataSet,
    root: Path,
    *,
    fast: bool,
    progress: Callable[[int], Any],
) -> list[Checked]:
    """What is in the download at `root`, split by split. `progress(total)` is a context that gives
    `advance(pictures done)`. Raises UsageError where no split is found.
    """
    found = locate(data_set, root)
    chosen = {
        name: spread(list(each.pictures), SAMPLED if fast else None) for name, each in found.items()
    }
    results, done = [], 0
    with progress(sum(map(len, chosen.values()))) as advance:
        for name, located in found.items():
            checked = Checked(name, len(data_set.classes.names), len(located.pictures))
            checked.expected = data_set.splits[name].expected
            checked.labelled = bool(located.labels)
            shown = set(spread(chosen[name], SHOWN))
            seen = []
            for one in threaded(
                lambda stem, located=located, shown=shown: _look(
                    data_set, located, stem, stem in shown
                ),
                chosen[name],
            ):
                seen.append(one)
                done += 1
                advance(done)
            add(checked, seen)
            _structure(checked, data_set, located)
            histogram(checked, data_set.classes, seen, located.domain)
            results.append(checked)
    return results


def spread(items: list[T], count: int | None) -> list[T]:
    """At most `count` of `items`, evenly."""
    if count is None or len(items) <= count:
        return items
    return [items[i * len(items) // count] for i in range(count)]


def threaded(look: Callable[[Any], Seen], items: list[Any]) -> Iterator[Seen]:
    """`look` at every item, in order, on all cores."""
    # Decoding leaves Python's lock.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        yield from pool.map(look, items)


def _look(data_set: datasets.DataSet, located: Located, stem: str, show: bool) -> Seen:
    problems: list[tuple[str, str]] = []
    most = located.domain.max_megapixels
    try:
        image = files.read_image(located.pictures[stem], megapixels=most)
    except UsageError as error:
        return Seen(stem, [("picture", str(error))])
    size, checksum = (image.shape[0], image.shape[1]), zlib.crc32(image.tobytes())
    if stem not in located.labels:
        shown = Shown(stem, image, None) if show else None
        return Seen(stem, problems, size, checksum, shown=shown)
    file, domain = located.labels[stem], located.domain
    try:
        raw = files.read_raw_label(file, domain.label_colours, megapixels=most)
    except UsageError as error:
        return Seen(stem, [("label", str(error))], size, checksum)
    label, ids, unknown = _mapped(raw, domain, len(data_set.classes.names))
    if unknown:
        text = ", ".join(map(str, unknown[:8]))
        problems.append(("ids", f"{file} holds {text}"))
    if label.shape != size:
        odd = data_set.odd.get(stem.rpartition("/")[2])
        text = (
            f"{file} is {label.shape[0]} x {label.shape[1]}, its picture {size[0]} x {size[1]} px"
        )
        problems.append(("odd", f"{text}: {odd}") if odd else ("size", text))
    pixels = np.bincount(label.ravel(), minlength=256)[: len(data_set.classes.names)]
    if not pixels.any() and not unknown:
        problems.append(("empty", str(file)))
    shown = Shown(stem, image, label) if show and label.shape == size else None
    return Seen(stem, problems, size, checksum, ids, pixels, label.size, shown)


def _mapped(
    raw: np.ndarray, domain: Domain, classes: int
) -> tuple[np.ndarray, tuple[int, ...], list[int]]:
    """Train ids with 255 for what is unknown, the raw ids that occur, and the unknown ones."""
    table = labels.lookup(domain.raw_ids, domain.ignored_ids, classes)
    mapped = table[raw]
    ids = np.flatnonzero(np.bincount(raw.ravel()))
    unknown = [int(i) for i in ids if table[i] < 0]
    return (
        np.where(mapped < 0, labels.IGNORE, mapped).astype(np.uint8),
        tuple(map(int, ids)),
        unknown,
    )


def add(checked: Checked, seen: list[Seen]) -> None:
    """Sums and the findings that single pictures give."""
    examples: dict[str, list[str]] = {}
    same: dict[tuple, list[str]] = {}
    for one in seen:
        for kind, text in one.problems:
            examples.setdefault(kind, []).append(text)
        if one.size is not None:
            checked.read += 1
            checked.sizes[one.size] += 1
            same.setdefault((one.size, one.checksum), []).append(one.name)
        if one.pixels is not None:
            checked.pixels += one.pixels
            checked.holding += one.pixels > 0
            checked.counted += one.counted
        if one.shown is not None:
            checked.shown.append(one.shown)
    for kind, (severity, what, fix) in _FIXES.items():
        checked.find(severity, what, examples.get(kind, []), fix)
    copies = [f"{names[1]} = {names[0]}" for names in same.values() if len(names) > 1]
    checked.find(
        "warning", "pictures that are copies of another one", copies, "remove one of each pair"
    )


def _structure(checked: Checked, data_set: datasets.DataSet, located: Located) -> None:
    """Findings about which files there are."""
    checked.find(
        "error",
        "stems that occur twice",
        [f"{each[1]} beside {each[0]}" for each in located.repeated.values()],
        "remove one of each, or unpack the download into an empty folder",
    )
    checked.find(
        "error",
        "stems of its list without a picture",
        [f"{stem} in {located.domain.listing}" for stem in located.lacking],
        "fetch the pictures, or leave such stems out by prepare --skip_broken",
    )
    if located.labels:
        lacking = [stem for stem in located.pictures if stem not in located.labels]
        checked.find(
            "error",
            "pictures without a label",
            [str(located.pictures[stem]) for stem in lacking],
            f"labels end in '{located.domain.label_suffix}'; fetch what is missing, or leave such "
            "pictures out by prepare --skip_broken",
        )
        checked.find(
            "warning",
            "labels without a picture",
            [str(file) for file in located.orphans.values()],
            "fetch the pictures, or remove the labels",
        )
    expected = checked.expected
    if expected is not None and checked.pictures != expected:
        checked.findings.append(
            Finding(
                "warning",
                checked.split,
                f"{checked.pictures} pictures, {expected} in the official {data_set.title}",
                abs(expected - checked.pictures),
                "",
                "see whether all of its archives are unpacked here, once",
            )
        )


def histogram(checked: Checked, classes: Classes, seen: list[Seen], domain: Domain) -> None:
    """Findings about which classes occur."""
    if not checked.counted:
        return
    ids = {i for one in seen for i in one.ids}
    classes_named = {*range(len(classes.names)), labels.IGNORE}
    beyond = any(i not in classes_named for row in domain.raw_ids for i in row)
    if beyond and labels.IGNORE in ids and ids <= classes_named:
        checked.findings.append(
            Finding(
                "error",
                checked.split,
                f"labels hold ids 0 to {len(classes.names) - 1} and 255 alone, as train ids do, "
                "where label ids are expected",
                len(seen),
                "",
                "use the label files of the official download",
            )
        )
    if not checked.pixels.any():
        checked.findings.append(
            Finding(
                "error",
                checked.split,
                "no label holds any class",
                len(seen),
                "",
                "use the label files of the official download, unchanged (16 bits stay 16 bits)",
            )
        )
        return
    never = [name for name, n in zip(classes.names, checked.pixels, strict=True) if not n]
    if never:
        fix = "none if the set has none; rare class sampling: data.rare_class.on_missing=warn"
        what = f"classes that never occur ({', '.join(never)})"
        checked.findings.append(Finding("warning", checked.split, what, len(never), "", fix))
