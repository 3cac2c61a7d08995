"""What was found in a data set, as data: counts, what is wrong, and the way out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from mrm_jax.config import Classes, Domain
from mrm_jax.label_ids import IGNORE

Severity = Literal["error", "warning"]
FLAT_SHARE = 0.2
"""Share of a set's pictures from which on those of few colours are taken for labels."""


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
    pixels of all labels. `sizes`: (height, width) to how many pictures. `own`: it is of one's own,
    so that no download helps.
    """

    split: str
    classes: int
    pictures: int = 0
    read: int = 0
    expected: int | None = None
    labelled: bool = False
    own: bool = False
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
    """Of one picture: problems as (kind, text), and what it counts. `flat`: it has a few colours,
    as labels have."""

    name: str
    problems: list[tuple[str, str]]
    size: tuple[int, int] | None = None
    checksum: int = 0
    ids: tuple[int, ...] = ()
    pixels: np.ndarray | None = None
    counted: int = 0
    shown: Shown | None = None
    flat: bool = False


_UNCHANGED = "use the label files of the official download, unchanged (16 bits stay 16 bits)"
_FIXES: dict[str, tuple[Severity, str, str, str]] = {
    "picture": (
        *("error", "pictures that cannot be read", "fetch them again"),
        "copy or export them again, or leave them out by on_unreadable=skip",
    ),
    "label": (
        *("error", "labels that cannot be read as class ids", "fetch them again"),
        "export them again as the line says, or leave them out by on_unreadable=skip",
    ),
    "ids": (
        *("error", "labels with ids outside the table"),
        "see whether the labels are of another kind (train ids, colours, another release)",
        "give these ids a class in raw_ids, or add them to ignored_ids",
    ),
    "size": (
        *("error", "pictures and labels of different sizes"),
        "fetch both again, or leave them out by prepare --skip_broken",
        "export both at one size, or leave them out by prepare --skip_broken",
    ),
    "odd": (
        *("warning", "pictures that are known to be odd", "prepare leaves them out by itself"),
        "prepare leaves them out by itself",
    ),
    "empty": (
        *("warning", "labels in which every pixel is ignored", "check whether that is intended"),
        "check whether that is intended, and at ignored_ids",
    ),
    "mask": (
        *("error", "pictures of few colours, as labels are, among others"),
        *("unpack the download into an empty folder",),
        "move them to labels/ beside images/, each by the name of its picture (docs/data.md)",
    ),
}
"""Kind of problem -> how bad, what it is, and the way out for a download and for a set of one's
own."""


def add(checked: Checked, seen: list[Seen]) -> None:
    """Sums and the findings that single pictures give."""
    examples: dict[str, list[str]] = {}
    flat = [one.name for one in seen if one.flat]
    if FLAT_SHARE * len(seen) <= len(flat) < len(seen):  # all of them: drawings
        examples["mask"] = flat
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
    for kind, (severity, what, fix, own) in _FIXES.items():
        checked.find(severity, what, examples.get(kind, []), own if checked.own else fix)
    copies = [f"{names[1]} = {names[0]}" for names in same.values() if len(names) > 1]
    checked.find(
        "warning", "pictures that are copies of another one", copies, "remove one of each pair"
    )


def histogram(checked: Checked, classes: Classes, seen: list[Seen], domain: Domain) -> None:
    """Findings about which classes occur."""
    if not checked.counted:
        return
    ids = {i for one in seen for i in one.ids}
    classes_named = {*range(len(classes.names)), IGNORE}
    beyond = any(i not in classes_named for row in domain.raw_ids for i in row)
    if beyond and IGNORE in ids and ids <= classes_named:
        checked.findings.append(
            Finding(
                "error",
                checked.split,
                f"labels hold ids 0 to {len(classes.names) - 1} and 255 alone, as train ids do, "
                "where label ids are expected",
                len(seen),
                "",
                "leave raw_ids out: train ids need none" if checked.own else _UNCHANGED,
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
                "correct raw_ids and ignored_ids, or the labels" if checked.own else _UNCHANGED,
            )
        )
        return
    never = [name for name, n in zip(classes.names, checked.pixels, strict=True) if not n]
    if never:
        fix = "none if the set has none; rare class sampling: data.rare_class.on_missing=warn"
        what = f"classes that never occur ({', '.join(never)})"
        checked.findings.append(Finding("warning", checked.split, what, len(never), "", fix))
