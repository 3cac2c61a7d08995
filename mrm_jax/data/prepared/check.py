"""What is wrong with a prepared set: are its files those of its manifest, can they be read."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mrm_jax.config import Domain
from mrm_jax.data.check import (
    SAMPLED,
    SHOWN,
    Checked,
    Seen,
    Shown,
    add,
    histogram,
    spread,
    threaded,
)
from mrm_jax.data.prepared import manifest, records, verified
from mrm_jax.data.prepared.manifest import AGAIN
from mrm_jax.data.prepared.reading import Records, RecordsLabelled
from mrm_jax.errors import UsageError
from mrm_jax.label_ids import IGNORE
from mrm_jax.paths import below


def check_prepared(
    folder: Path, *, fast: bool, progress: Callable[[int], Any]
) -> tuple[manifest.Manifest, list[Checked]]:
    """What is in a prepared set, and whether its files are those of its manifest."""
    made = manifest.read_manifest(folder, field="--from")
    results, done = [], 0
    total = sum(min(s.count, SAMPLED) if fast else s.count for s in made.splits.values())
    with progress(total) as advance:
        for name, split in made.splits.items():
            checked = Checked(name, len(made.classes.names), split.count)
            checked.labelled = split.labelled
            results.append(checked)
            _files(checked, folder, made, split)
            if any(finding.severity == "error" for finding in checked.findings):
                continue
            domain = Domain(path=str(folder), split=name, resize=split.resize)
            pictures = _open(domain, made, split)
            places = spread(list(range(len(pictures))), SAMPLED if fast else None)
            shown = set(spread(places, SHOWN))
            seen = []
            for one in threaded(lambda i, p=pictures, s=shown: _record(p, i, i in s), places):
                seen.append(one)
                done += 1
                advance(done)
            add(checked, seen)
            histogram(checked, made.classes, seen, domain)
    return made, results


def _open(domain: Domain, made: manifest.Manifest, split: manifest.PreparedSplit) -> Records:
    if split.labelled:
        return RecordsLabelled(domain, made.classes, "--from")
    return Records(domain, "--from")


def _record(pictures: Records, index: int, show: bool) -> Seen:
    try:
        name = pictures.name(index)
        image, label = pictures.decoded(index)
    except UsageError as error:
        return Seen(str(index), [("picture", str(error))])
    size = (image.shape[0], image.shape[1])
    shown = Shown(name, image, label) if show else None
    if label is None:
        return Seen(name, [], size, zlib.crc32(image.tobytes()), shown=shown)
    pixels = np.bincount(label.ravel(), minlength=256)[: len(pictures.manifest.classes.names)]
    problems = [] if pixels.any() else [("empty", name)]
    unknown = sorted({*np.unique(label).tolist()} - {*range(len(pixels)), IGNORE})
    if unknown:
        problems.append(("ids", f"{name} holds {', '.join(map(str, unknown[:8]))}"))
    return Seen(name, problems, size, zlib.crc32(image.tobytes()), (), pixels, label.size, shown)


def _sha256(path: Path) -> str | None:
    return verified.sha256(path) if path.is_file() else None


def _files(
    checked: Checked, folder: Path, made: manifest.Manifest, split: manifest.PreparedSplit
) -> None:
    missing = [s.file for s in split.shards if not below(folder, s.file).is_file()]
    checked.find("error", "files that are missing", missing, AGAIN)
    changed = []
    for shard in split.shards:
        if shard.file in missing:
            continue
        digest = verified.sha256(below(folder, shard.file))
        if digest == shard.sha256:
            verified.stamp(below(folder, shard.file), shard)
            continue
        belongs = [
            s.file for each in made.splits.values() for s in each.shards if s.sha256 == digest
        ]
        changed.append(shard.file + (f", which holds {belongs[0]}" if belongs else ""))
    known = manifest.known_file(checked.split)
    if made.files.get(known, digest := _sha256(below(folder, known))) != digest:
        changed.append(known)
    checked.find("error", "files whose SHA-256 is not the manifest's", changed, AGAIN)
    for name in records.METADATA:
        digest = _sha256(folder / name)
        if digest is None:
            checked.find("warning", "metadata of tensorflow-datasets is missing", [name], AGAIN)
        elif made.files.get(name, digest) != digest:
            what = "metadata of tensorflow-datasets whose SHA-256 is not the manifest's"
            checked.find("warning", what, [name], AGAIN)
    checked.find(
        "warning",
        "pictures that prepare has left out",
        [f"{stem}: {why}" for stem, why in split.skipped.items()],
        "none is needed where they are known to be broken",
    )
