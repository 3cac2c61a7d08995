"""What is wrong with a download, and how to fix it.

Every file is read once and nothing is stopped by what is found; findings are data.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mrm_jax.config import Domain
from mrm_jax.data import datasets, files, finding, labels, locating, sources
from mrm_jax.data.checked import Checked, Finding, Seen, Shown, add, histogram
from mrm_jax.data.tree import walk
from mrm_jax.errors import UsageError
from mrm_jax.label_ids import IGNORE
from mrm_jax.paths import as_path

T = TypeVar("T")
SHOWN = 8
"""Pictures of a split on the contact sheet, spread evenly."""
SAMPLED = 100
"""Pictures of a split that `fast` reads, spread evenly."""
LOOKED_AT = 40_000
"""About how many pixels of a picture its colours are counted in."""
FEW_COLOURS = 64
"""Colours that a label may have; a photograph of more pixels has more."""


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
    found = locating.locate(data_set, root)
    chosen = {
        name: spread(list(each.pictures), SAMPLED if fast else None) for name, each in found.items()
    }
    results, done = [], 0
    with progress(sum(map(len, chosen.values()))) as advance:
        for name, located in found.items():
            checked = Checked(name, len(data_set.classes.names), len(located.pictures))
            checked.expected = data_set.splits[name].expected
            checked.labelled = bool(located.labels)
            checked.own = bool(data_set.field)
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
            if checked.own and root.is_dir():
                _as_training(checked, data_set, located, root)
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


def _look(data_set: datasets.DataSet, located: locating.Located, stem: str, show: bool) -> Seen:
    problems: list[tuple[str, str]] = []
    most = located.domain.max_megapixels
    try:
        image = files.read_image(located.pictures[stem], megapixels=most)
    except UsageError as error:
        return Seen(stem, [("picture", str(error))])
    size, checksum = (image.shape[0], image.shape[1]), zlib.crc32(image.tobytes())
    if stem not in located.labels:
        shown = Shown(stem, image, None) if show else None
        return Seen(stem, problems, size, checksum, shown=shown, flat=_flat(image))
    file, domain = located.labels[stem], located.domain
    try:
        raw = files.read_label(file, domain=domain, field=data_set.field)
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


def _flat(image: np.ndarray) -> bool:
    """Whether a picture has several colours, and as few as a label."""
    step = max(1, int((image.shape[0] * image.shape[1] / LOOKED_AT) ** 0.5))
    some = image[::step, ::step].reshape(-1, 3)
    return 2 <= len(np.unique(some, axis=0)) <= FEW_COLOURS and len(some) > 4 * FEW_COLOURS


def _as_training(
    checked: Checked, data_set: datasets.DataSet, located: locating.Located, root: Path
) -> None:
    """What training says when it opens a set of one's own, where nothing else was found: as a
    source where there are labels or a place for them, else as a target."""
    source = replace(data_set.splits[located.split].readings[0], path=str(root))
    labelled = bool(source.labels) and any(
        True for _ in walk(root / as_path(finding.fixed_part(source.labels)))
    )
    where = "" if labelled or located.labels else f" (none lies in {root}/{source.labels})"
    if where:
        what = f"a set without labels{where}, which training takes as a target and not as a source"
        fix = "none is needed for a target; a source has labels/ beside images/ (docs/data.md)"
        checked.findings.append(Finding("warning", checked.split, what, 1, "", fix))
    if any(f.severity == "error" for f in checked.findings):
        return
    try:
        if where:
            sources.open_pictures(
                replace(located.domain, path=str(root)), field="config.data.target"
            )
        else:
            sources.open_labelled(source, data_set.classes, field=data_set.field)
    except UsageError as error:
        said, fix = str(error).removesuffix(error.way_out).rstrip("; ."), error.way_out.rstrip(".")
        checked.findings.append(
            Finding("error", checked.split, "line with which training refuses it", 1, said, fix)
        )


def _mapped(
    raw: np.ndarray, domain: Domain, classes: int
) -> tuple[np.ndarray, tuple[int, ...], list[int]]:
    """Train ids with 255 for what is unknown, the raw ids that occur, and the unknown ones."""
    table = labels.lookup(domain.raw_ids, domain.ignored_ids, classes)
    mapped = table[raw]
    ids = np.flatnonzero(np.bincount(raw.ravel()))
    unknown = [int(i) for i in ids if table[i] < 0]
    return (
        np.where(mapped < 0, IGNORE, mapped).astype(np.uint8),
        tuple(map(int, ids)),
        unknown,
    )


def _structure(checked: Checked, data_set: datasets.DataSet, located: locating.Located) -> None:
    """Findings about which files there are."""
    get = "add" if checked.own else "fetch"
    checked.find(
        "error",
        "stems that occur twice",
        [f"{each[1]} beside {each[0]}" for each in located.repeated.values()],
        "remove one of each"
        if checked.own
        else "remove one of each, or unpack the download into an empty folder",
    )
    checked.find(
        "error",
        "stems of its list without a picture",
        [f"{stem} in {located.domain.listing}" for stem in located.lacking],
        f"{get} the pictures, or leave such stems out by prepare --skip_broken",
    )
    if located.labels:
        lacking = [stem for stem in located.pictures if stem not in located.labels]
        checked.find(
            "error",
            "pictures without a label",
            [str(located.pictures[stem]) for stem in lacking],
            f"labels end in '{located.domain.label_suffix}'; {get} what is missing, or leave such "
            "pictures out by prepare --skip_broken",
        )
        checked.find(
            "warning",
            "labels without a picture",
            [str(file) for file in located.orphans.values()],
            f"{get} the pictures, or remove the labels",
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
