"""One shard of a prepared set: pictures and labels in, a file of records and a note of what it
holds out.

The file is written under another name and renamed when it is whole, then the note is put beside it;
without its note a shard counts as not written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrm_jax.config import Domain
from mrm_jax.data import files, labels, transforms
from mrm_jax.data.document import DocumentError, parsed
from mrm_jax.data.prepared import manifest, records, verified
from mrm_jax.data.tree import File
from mrm_jax.errors import UsageError


class Pair(NamedTuple):
    """A picture and its label, None in an unlabelled split; `odd` is what is known to be wrong with
    it, or empty.
    """

    stem: str
    picture: File
    label: File | None
    odd: str


@dataclass(frozen=True)
class ShardJob:
    """A shard to write: `pairs` in order, how their labels are stored (`domain`) and how they are
    to be stored. `left_out`: pictures of the split that are in no shard, and why."""

    file: str
    split: str
    pairs: tuple[Pair, ...]
    domain: Domain
    classes: int
    resize: tuple[int, int] | None
    codec: str
    skip_broken: bool
    left_out: Mapping[str, str]
    source: str


def write_shard(job: ShardJob, to: Path) -> Iterator[None]:
    """Writes a shard and then its note; yields after every picture. Raises UsageError naming a
    picture that cannot be used, unless such are left out, and OSError."""
    from array_record.python import (
        array_record_module,  # pyright: ignore[reportAttributeAccessIssue] - compiled
    )

    temporary = to / f".{job.file}.{os.getpid()}"
    names, sizes, counts, skipped = [], [], [], dict(job.left_out)
    written = 0
    try:
        # One record a group: each can be read alone, which is how training reads. What is stored is
        # compressed already.
        writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        try:
            for pair in job.pairs:
                try:
                    content, size, pixels = encoded(job, pair)
                except UsageError as error:
                    skipped[pair.stem] = _skipped(job, pair, error)
                else:
                    writer.write(content)
                    written += len(content)
                    names.append(pair.stem)
                    sizes.append(size)
                    counts.append(pixels)
                yield
        finally:
            writer.close()
        _sync(temporary, written)
        digest, size = verified.sha256(temporary), temporary.stat().st_size
        places = verified.places(temporary, len(names))
        index = verified.heads_digest(temporary, places)
        os.replace(temporary, to / job.file)
    finally:
        temporary.unlink(missing_ok=True)
    shard = manifest.Shard(job.file, len(names), digest, size, index, places)
    known = manifest.Known(
        tuple(names),
        np.array(sizes, np.int64).reshape(-1, 2),
        np.array(counts, np.int64).reshape(-1, job.classes),
    )
    holds = {"source": job.source, "shard": asdict(shard), "bytes": written, "skipped": skipped}
    manifest.write_json(note_file(to, job), holds | manifest.values_of(known))


def _sync(path: Path, written: int) -> None:
    """Raises OSError where less than what was written has reached the disk: the writer of records
    does not say so itself."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    if path.stat().st_size < written:
        raise OSError(28, "No space left on device", str(path))


def encoded(job: ShardJob, pair: Pair) -> tuple[bytes, tuple[int, int], np.ndarray]:
    """A record's bytes, the picture's size before resizing, and the pixels of each class in its
    label at that size."""
    image = files.read_image(pair.picture, megapixels=job.domain.max_megapixels)
    size = (image.shape[0], image.shape[1])
    label = np.full(size, labels.IGNORE, np.uint8)
    if pair.label is not None:
        raw = files.read_raw_label(
            pair.label, job.domain.label_colours, megapixels=job.domain.max_megapixels
        )
        label = labels.map_labels(
            raw,
            job.domain.raw_ids,
            job.domain.ignored_ids,
            classes=job.classes,
            name=str(pair.label),
            field="the data set",
        )
        if label.shape != size:
            raise files.SizesError.at(
                pair.picture,
                f" is {size[0]} x {size[1]} px, its label {pair.label} {label.shape[0]} x "
                f"{label.shape[1]} px (rows x columns); they must be equal.",
            )
    pixels = np.bincount(label.ravel(), minlength=256)[: job.classes]
    image, label = transforms.fit_source(image, label, job.resize)
    image = transforms.resize_image(image, label.shape)
    record = records.PictureRecord(pair.stem, image, label, size)
    return records.encode_record(record, job.codec), size, pixels


def _skipped(job: ShardJob, pair: Pair, error: UsageError) -> str:
    """Why a picture is left out; raises `error` where that was not asked for."""
    differs = isinstance(error, files.SizesError)
    if differs and pair.odd:
        return pair.odd
    if not job.skip_broken:
        raise UsageError(f"{error} Correct it, or leave such pictures out by --skip_broken.")
    if differs:
        return "its label has another size"
    unreadable = isinstance(error, files.UnreadableError)
    return "cannot be read" if unreadable else "its label holds an unknown id"


def note_file(to: Path, job: ShardJob) -> Path:
    """Where a finished shard's note lies."""
    return to / f".{job.file}.json"


class Note(NamedTuple):
    """What a finished shard holds: `bytes` of its records, and the pictures left out with why."""

    shard: manifest.Shard
    known: manifest.Known
    bytes: int
    skipped: dict[str, str]


def note(to: Path, job: ShardJob) -> Note | None:
    """What a finished shard holds; None where it is not finished, or not as its note says."""
    try:
        values = parsed(note_file(to, job).read_bytes())
        if values["source"].value != job.source:
            return None
        shard = manifest.shard_of(values["shard"])
        path = to / job.file
        if (
            path.stat().st_size != shard.size
            or verified.heads_digest(path, shard.places) != shard.index
        ):
            return None
        return Note(
            shard,
            manifest.known_of(values, shard.count, job.classes),
            values["bytes"].whole(),
            {stem: why.text() for stem, why in values["skipped"].entries().items()},
        )
    except (OSError, DocumentError):
        return None
