"""A download becomes a prepared set: labels mapped to train ids, pictures resized once, shards of
records, metadata for tensorflow-datasets, class counts and a manifest.

A shard is one process's work (`shards.py`). A run that was killed goes on with those that are
missing, several hosts can share them out, and the result has the same bytes whatever happened on
the way. The manifest comes last.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mrm_jax import children
from mrm_jax.data import datasets
from mrm_jax.data.document import DocumentError, parsed
from mrm_jax.data.locate import Located, locate
from mrm_jax.data.prepared import manifest, records, room, shards, verified
from mrm_jax.data.prepared.shards import Pair, ShardJob
from mrm_jax.data.tree import size_of
from mrm_jax.errors import UsageError

PICTURES_A_SHARD = 512
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Options:
    """How a set is stored.

    resize: box (long, short) px for the splits that are trained on, "native", or None for that of
    the data set's recipes. splits: which of them, empty: all that there are. shards: of a split,
    None: one for every 512 pictures. skip_broken: leave out pictures that cannot be used. part:
    (number from 1, of how many): which share of the shards is written.
    """

    resize: tuple[int, int] | str | None = None
    codec: str = "png"
    splits: tuple[str, ...] = ()
    shards: int | None = None
    skip_broken: bool = False
    part: tuple[int, int] = (1, 1)
    workers: int = 1


def prepare(
    data_set: datasets.DataSet,
    root: Path,
    to: Path,
    options: Options,
    *,
    say: Callable[[str], None],
    progress: Callable[[int], Any],
) -> manifest.Manifest | None:
    """Writes the set in `root` to `to`; returns its manifest, None where other parts are missing.

    `progress(total)` is a context that gives `advance(pictures done)`. Raises UsageError for a
    download that is not usable, a folder of other things, or too little room; OSError where a file
    cannot be written. What is finished stays in every case.
    """
    found = _chosen(data_set, locate(data_set, root), options)
    jobs = _jobs(data_set, found, options, say)
    source = jobs[0].source
    if manifest.is_prepared(to):
        there = manifest.read_manifest(to, field="--to")
        if there.source == source:
            _clean(to, jobs)
            say(f"{to} is prepared already.")
            return there
        fault = " holds a set that was prepared from other files or with other options"
        raise UsageError.at("--to", fault, "give a new folder.", to)
    _check_folder(to, source)
    missing = [job for job in jobs if shards.note(to, job) is None]
    number, of = options.part
    mine = [job for i, job in enumerate(jobs) if number - 1 == i * of // len(jobs)]
    mine = [job for job in mine if job in missing]
    _drop_halves(to, mine)
    room.check_room(to, mine)
    done = sum(len(job.pairs) for job in jobs) - sum(len(job.pairs) for job in missing)
    if done:
        say(f"{done} pictures are stored already.")
    to.mkdir(parents=True, exist_ok=True)
    manifest.write_json(to / _SOURCE, {"source": source})
    with progress(sum(len(job.pairs) for job in mine)) as advance:
        _run(mine, to, options.workers, advance)
    notes = [note for job in jobs if (note := shards.note(to, job)) is not None]
    left = len(jobs) - len(notes)
    if left:
        say(f"part {number} of {of} is stored; {left} of {len(jobs)} shards are other parts'.")
        return None
    return _finish(data_set, to, jobs, notes)


def _chosen(
    data_set: datasets.DataSet, found: dict[str, Located], options: Options
) -> dict[str, Located]:
    for name in options.splits:
        if name not in found:
            raise UsageError.at(
                "--splits",
                f" names '{name}'; this copy of {data_set.title} holds {', '.join(found)}.",
            )
    return {name: each for name, each in found.items() if name in (options.splits or found)}


def _jobs(
    data_set: datasets.DataSet,
    found: dict[str, Located],
    options: Options,
    say: Callable[[str], None],
) -> list[ShardJob]:
    """All shards of all splits, in one order."""
    jobs = []
    for split, located in found.items():
        native = data_set.splits[split].native or options.resize == "native"
        box = options.resize if isinstance(options.resize, tuple) else located.domain.resize
        pairs, left_out = _pairs(data_set, located, options.skip_broken, say)
        count = options.shards or -(-len(pairs) // PICTURES_A_SHARD)
        count = max(1, min(count, len(pairs)))
        for i in range(count):
            jobs.append(
                ShardJob(
                    file=f"{data_set.name}-{split}.array_record-{i:05d}-of-{count:05d}",
                    split=split,
                    pairs=tuple(pairs[i * len(pairs) // count : (i + 1) * len(pairs) // count]),
                    domain=located.domain,
                    classes=len(data_set.classes.names),
                    resize=None if native else box,
                    codec=options.codec,
                    skip_broken=options.skip_broken,
                    left_out=left_out if i == 0 else {},
                    source="",
                )
            )
    source = _source(data_set, jobs)
    return [replace(job, source=source) for job in jobs]


def _pairs(
    data_set: datasets.DataSet,
    located: Located,
    skip_broken: bool,
    say: Callable[[str], None],
) -> tuple[list[Pair], dict[str, str]]:
    """The pictures of a split with their labels, and those that are left out with the reason.
    Raises UsageError for what `skip_broken` would leave out: repeated stems and missing labels.
    """
    where = f"{data_set.name} {located.split}"
    for line in located.left_out():
        say(f"{where}: {line}")
    broken = {stem: "has no picture" for stem in located.lacking}
    broken |= {stem: "occurs twice" for stem in located.repeated}
    if located.labels:
        broken |= {s: "has no label" for s in located.pictures if s not in located.labels}
    if broken and not skip_broken:
        stem, what = next(iter(broken.items()))
        place = located.pictures.get(stem, located.domain.listing)
        raise UsageError.at(
            where,
            f": '{stem}' {what} ({place}), as one of {len(broken)} such pictures.",
            "Correct the download, or leave them out by --skip_broken.",
        )
    if broken:
        say(f"{where}: {len(broken)} pictures are left out, as '{next(iter(broken))}'.")
    pairs = [
        Pair(stem, picture, located.labels.get(stem), data_set.odd.get(stem.split("/")[-1], ""))
        for stem, picture in located.pictures.items()
        if stem not in broken
    ]
    return pairs, broken


def _source(data_set: datasets.DataSet, jobs: list[ShardJob]) -> str:
    """A hash of what the set is made from: names and sizes of files, how labels are stored, and
    options; 16 hex digits."""
    facts = []
    for job in jobs:
        stored = job.domain
        ids = (stored.raw_ids, stored.ignored_ids, stored.label_colours, stored.label_suffix)
        files = [
            (pair.stem, size_of(pair.picture), pair.label and size_of(pair.label))
            for pair in job.pairs
        ]
        facts.append((job.file, job.resize, job.codec, ids, files))
    text = json.dumps([manifest.FORMAT, data_set.name, data_set.classes.names, facts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_SOURCE = ".prepare.json"


def _check_folder(to: Path, source: str) -> None:
    """Raises UsageError where `to` holds other things than a part of this set."""
    if to.exists() and not to.is_dir():
        raise UsageError.at("--to", " is a file", "give a folder.", to)
    entries = list(to.iterdir()) if to.exists() else []
    if not entries:
        return
    try:
        same = parsed((to / _SOURCE).read_bytes())["source"].value == source
    except (OSError, DocumentError):
        way_out = "give a new or an empty folder."
        raise UsageError.at("--to", " holds other things", way_out, to) from None
    if not same:
        fault = " holds a part of a set from other files or with other options"
        raise UsageError.at("--to", fault, "give a new folder, or delete it.", to)


def _drop_halves(to: Path, jobs: list[ShardJob]) -> None:
    """Removes half written shards whose process is no more: they would take room until the end."""
    for job in jobs:
        for path in to.glob(f".{glob.escape(job.file)}.*"):
            process = path.name.rpartition(".")[2]
            if process.isdigit() and not _runs(int(process)):
                path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def estimated_bytes(
    data_set: datasets.DataSet, found: dict[str, Located], options: Options
) -> dict[str, int]:
    """About how many bytes each split will take, from a few of its pictures."""
    jobs = _jobs(data_set, found, replace(options, skip_broken=True), lambda line: None)
    return {split: int(size * count) for split, (size, count) in room.sizes(jobs).items()}


_counter: Any = None
_stop: Any = None


def _share(counter: Any, stop: Any) -> None:
    global _counter, _stop
    children.serve()
    _counter, _stop = counter, stop


def _write_counted(job: ShardJob, to: Path) -> None:
    for _ in shards.write_shard(job, to):
        with _counter.get_lock():
            _counter.value += 1
        if _stop.is_set():
            return


def _run(jobs: list[ShardJob], to: Path, workers: int, advance: Advance) -> None:
    """Writes the shards, in this process or one process each."""
    if workers == 1 or len(jobs) < 2:
        done = 0
        for job in jobs:
            for _ in shards.write_shard(job, to):
                done += 1
                advance(done)
        return

    import multiprocessing
    from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait

    context = multiprocessing.get_context("spawn")
    with children.starting():
        counter, stop = context.Value("q", 0), context.Event()
        pool = ProcessPoolExecutor(
            min(workers, len(jobs)), context, initializer=_share, initargs=(counter, stop)
        )
        futures = [pool.submit(_write_counted, job, to) for job in jobs]
    with pool:
        try:
            waiting = set(futures)
            while waiting:
                over, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
                advance(counter.value)
                for future in over:
                    future.result()
        except BaseException:
            stop.set()  # each ends after the picture that it is at
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _finish(
    data_set: datasets.DataSet, to: Path, jobs: list[ShardJob], notes: list[shards.Note]
) -> manifest.Manifest:
    """Metadata, what is known of the pictures, and at last the manifest."""
    splits = {}
    lengths: dict[str, list[tuple[int, int]]] = {}
    for split in {job.split: None for job in jobs}:
        mine = [(j, n) for j, n in zip(jobs, notes, strict=True) if j.split == split]
        lengths[split] = [(note.shard.count, note.bytes) for _, note in mine]
        known = manifest.Known(
            tuple(name for _, note in mine for name in note.known.names),
            np.concatenate([note.known.sizes for _, note in mine]),
            np.concatenate([note.known.counts for _, note in mine]),
        )
        manifest.save_known(to, split, known)
        splits[split] = manifest.PreparedSplit(
            count=len(known.names),
            labelled=any(pair.label is not None for job, _ in mine for pair in job.pairs),
            resize=mine[0][0].resize,
            shards=tuple(note.shard for _, note in mine),
            skipped={stem: why for _, note in mine for stem, why in note.skipped.items()},
        )
    records.write_metadata(
        to,
        data_set.name,
        lengths,
        jobs[0].codec,
        description=f"{data_set.title}, prepared by mrm_jax. Licence: {data_set.licence}.",
        homepage=data_set.homepage or None,
    )
    beside = [*map(manifest.known_file, splits), *records.METADATA]
    made = manifest.Manifest(
        name=data_set.name,
        title=data_set.title,
        homepage=data_set.homepage,
        licence=data_set.licence,
        classes=data_set.classes,
        codec=jobs[0].codec,
        source=jobs[0].source,
        splits=splits,
        files={name: verified.sha256(to / name) for name in beside},
    )
    manifest.write_manifest(to, made)
    _clean(to, jobs)
    return made


def _clean(to: Path, jobs: list[ShardJob]) -> None:
    """Removes notes, and what killed processes have left half written, of a set that is whole."""
    beside = [*map(manifest.known_file, {job.split for job in jobs}), manifest.FILE, _SOURCE[1:]]
    for name in (*(job.file for job in jobs), *beside):
        for path in to.glob(f".{glob.escape(name)}.*"):
            path.unlink(missing_ok=True)
    (to / _SOURCE).unlink(missing_ok=True)
