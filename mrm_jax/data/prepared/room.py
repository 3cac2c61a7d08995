"""How much room on a disk a prepared set takes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from mrm_jax.data.prepared import shards, verified
from mrm_jax.data.prepared.shards import ShardJob
from mrm_jax.errors import UsageError

SAMPLED = 3
"""Pictures of a split that are encoded to estimate how much room it needs."""

EMPTY = 2 * verified.BLOCK
"""Bytes of a shard without records."""


def said(count: float) -> str:
    """A number of bytes with the unit that leaves something to read, as in "3.4 MiB"."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = min((max(int(count), 1).bit_length() - 1) // 10, len(units) - 1)
    return f"{count / 1024**power:.{1 if power else 0}f} {units[power]}"


def check_room(to: Path, jobs: list[ShardJob]) -> None:
    """Raises UsageError where the shards would not fit, as far as a few pictures show."""
    needed = sum(size * count for size, count in sizes(jobs).values()) + EMPTY * len(jobs)
    there = next(folder for folder in (to, *to.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UsageError.at(
            "--to",
            f": about {said(needed)} are needed and {said(free)} are free",
            "choose another disk, fewer --splits, a smaller --resize or --codec jpeg95.",
            value=to,
        )


def sizes(jobs: list[ShardJob]) -> dict[str, tuple[float, int]]:
    """Of each split, mean bytes of a few of its records, and their number."""
    found = {}
    for split in {job.split: None for job in jobs}:
        pairs = [(job, pair) for job in jobs if job.split == split for pair in job.pairs]
        each = []
        for job, pair in pairs[:: max(1, len(pairs) // SAMPLED)][:SAMPLED]:
            try:
                each.append(len(shards.encoded(job, pair)[0]))
            except UsageError:
                continue  # said where the shard is written
        found[split] = (float(np.mean(each)) if each else 0.0, len(pairs))
    return found
