"""What a run's pictures and labels hold, looked at before anything is compiled: how much of the
labels is ignored, which classes never occur, and whether pictures are smaller than the crop.

All of it from what is known already (class statistics, a prepared set), else from a sample that is
spread evenly and takes a bounded time.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mrm_jax.config import Config, Domain, source_domain
from mrm_jax.data import files, sources
from mrm_jax.data.class_statistics import THREADS, kept_statistics
from mrm_jax.data.rare_class import source_field
from mrm_jax.data.transforms import keep_ratio_size
from mrm_jax.errors import UsageError

SAMPLED = 100
"""Labels, or headers of pictures, that are looked at."""
SECONDS = 10.0
"""How long that may take."""
_TURN = 0.618033988749895  # golden ratio: any first few of a sequence by it are spread evenly

T = TypeVar("T")


@dataclass(frozen=True)
class Coverage:
    """What `labels` labels of `of` hold. `pixels` i64[K] of each class, `total` of all; `known`:
    every label was counted, so that this is no estimate."""

    labels: int
    of: int
    pixels: np.ndarray
    total: int
    known: bool

    @property
    def ignored(self) -> float:
        """Share of the pixels that are ignored."""
        return 1 - float(self.pixels.sum()) / self.total if self.total else 0.0

    def never(self, names: tuple[str, ...]) -> list[str]:
        """The classes that no pixel has."""
        return [name for name, count in zip(names, self.pixels, strict=True) if not count]

    def sentence(self, field: str, names: tuple[str, ...]) -> str:
        """One line for the user."""
        how = f"all {self.of}" if self.known else f"estimated from {self.labels} of {self.of}"
        never = self.never(names)
        classes = (
            f"{len(names) - len(never)} of {len(names)} classes occur; never: {', '.join(never)}"
            if never
            else f"all {len(names)} classes occur"
        )
        return f"labels of {field} ({how}): {self.ignored:.1%} of the pixels are ignored; {classes}"

    def facts(self, names: tuple[str, ...]) -> dict[str, Any]:
        """For environment.json."""
        return {
            "labels": self.labels,
            "of": self.of,
            "estimated": not self.known,
            "ignored": float(f"{self.ignored:.6g}"),
            "never": self.never(names),
        }


class Noticed(NamedTuple):
    """What is said at the start of a run: of its labels, and what deserves a warning."""

    labels: Coverage | None
    lines: tuple[str, ...]
    warnings: tuple[str, ...]


def notice(config: Config, *, target: bool) -> Noticed:
    """Looks at the source's labels, and at the sizes of its pictures and, where `target`, of the
    target's. Drawn scenes are known: only their size is asked for.

    Raises UsageError where all labels that were looked at are ignored, and as reading them does.
    """
    names, domain, field = config.data.classes.names, source_domain(config), source_field(config)
    labelled = sources.open_labelled(domain, config.data.classes, field=field)
    found = None if domain.kind == "drawn" else _coverage(labelled, domain, len(names), field)
    lines = () if found is None else (found.sentence(field, names),)
    if found is not None and found.labels and not found.pixels.any():
        raise UsageError.at(
            field,
            f": the {found.labels} labels that were looked at, of {found.of}, hold no class: every "
            "pixel is ignored",
            "correct raw_ids and ignored_ids, or the labels.",
        )
    sets: list[tuple[str, Domain, sources.Pictures]] = [(field, domain, labelled)]
    other = config.data.target
    if target and other is not domain:
        field = "config.data.target"
        sets.append((field, other, sources.open_pictures(other, field=field)))
    small = (_too_small(pictures, each, config.data.crop, at) for at, each, pictures in sets)
    return Noticed(found, lines, tuple(line for line in small if line))


def _coverage(
    pictures: sources.LabelledPictures, domain: Domain, classes: int, field: str
) -> Coverage:
    known = kept_statistics(pictures, domain, classes)
    if known is not None:
        total = int(known.sizes.prod(1).sum())
        readable = int((known.sizes.prod(1) > 0).sum())
        return Coverage(readable, len(pictures), known.counts.sum(0), total, known=True)

    def count(index: int) -> tuple[np.ndarray, int] | None:
        try:
            label = pictures.label(index)
        except files.UnreadableError as error:
            if domain.on_unreadable == "skip":
                return None
            hint = f"Set {field}.on_unreadable='skip' to train without such pictures."
            raise files.UnreadableError.at(field, f": {error} {hint}") from error
        return np.bincount(label.ravel(), minlength=256)[:classes], label.size

    found = _sampled(len(pictures), count)
    pixels = sum((pixels for pixels, _ in found), np.zeros(classes, np.int64))
    total = sum(size for _, size in found)
    every = len(found) == len(pictures)
    return Coverage(len(found), len(pictures), pixels, total, known=every)


def _sampled(count: int, look: Callable[[int], T | None]) -> list[T]:
    """`look` at up to `SAMPLED` of `count` indices, spread evenly also where time runs out, but at
    one at least; without those of which it says None."""
    chosen = [k * count // min(count, SAMPLED) for k in range(min(count, SAMPLED))]
    order = sorted(range(len(chosen)), key=lambda k: k * _TURN % 1)
    pool = ThreadPoolExecutor(THREADS)
    try:
        futures = [pool.submit(look, chosen[k]) for k in order]
        done, _ = wait(futures, timeout=SECONDS)
        if not done:
            done, _ = wait(futures, return_when=FIRST_COMPLETED)
        results = (future.result() for future in futures if future in done)
        return [result for result in results if result is not None]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _too_small(
    pictures: sources.Pictures, domain: Domain, crop: tuple[int, int], field: str
) -> str | None:
    """The line on pictures that are smaller than the crop as training reads them, or None."""

    def fitted(index: int) -> tuple[int, int] | None:
        size = pictures.size(index)
        return size and (keep_ratio_size(*size, domain.resize) if domain.resize else size)

    sizes = _sampled(len(pictures), fitted)
    small = [(h, w) for h, w in sizes if h < crop[0] or w < crop[1]]
    if not small:
        return None
    seen = np.mean([min(h, crop[0]) * min(w, crop[1]) for h, w in small]) / (crop[0] * crop[1])
    height, width = min(small, key=lambda size: size[0] * size[1])
    return (
        f"config.data.crop {crop} is larger than {len(small)} of {len(sizes)} pictures of {field} "
        f"that were looked at, such as {height} x {width} px (rows x columns): {1 - seen:.0%} of "
        "their crops is padding, which teaches nothing; set a smaller config.data.crop, or "
        f"{field}.resize to a larger box."
    )
