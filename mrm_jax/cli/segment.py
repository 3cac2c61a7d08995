"""What `predict` does with its pictures and videos: read, computed and written at the same time."""

from __future__ import annotations

import errno
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrm_jax import stop
from mrm_jax.cli.progress import progress_bar
from mrm_jax.cli.results import Results, shares
from mrm_jax.data.files import UnreadableError, read_image
from mrm_jax.errors import RunError, UsageError
from mrm_jax.evaluation import protocols, video
from mrm_jax.evaluation.inference import forget_programs
from mrm_jax.evaluation.network import Prediction, TrainedNetwork, stacked
from mrm_jax.evaluation.pictures import NamedPicture, scale_warning
from mrm_jax.evaluation.reading import grouped, read_ahead
from mrm_jax.evaluation.tiling import in_parts
from mrm_jax.paths import is_remote, replaced, shown, what_is_wrong

WARNINGS_SHOWN = 5
WRITERS, WAITING = 2, 2**25
"""Threads that write results, and pixels that may wait for them."""
PROGRAMS = 64
"""Sizes of pictures whose programs are kept: each takes memory for as long as it is."""
_ITS_OWN = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR, errno.ENOTDIR}
"""Errors of writing that say something of one name; a full disk says something of all."""


@dataclass
class Outcome:
    """What became of pictures: those that could not be read or written, the `sizes` (height, width)
    at which the network read them, and how many were far from the training scale."""

    failed: dict[str, list[str]] = field(default_factory=lambda: {"read": [], "written": []})
    sizes: set[tuple[int, int]] = field(default_factory=set)
    warned: int = 0

    def unread(self, path: Path, error: UsageError) -> None:
        """Names a picture that cannot be used."""
        self.failed["read"].append(shown(path))
        print(f"unreadable: {shown(error)}", file=sys.stderr)

    def unwritten(self, path: Path, error: RunError) -> None:
        """Names a picture whose results cannot be written; raises what says something of all."""
        if not (isinstance(cause := error.__cause__, OSError) and cause.errno in _ITS_OWN):
            raise error
        self.failed["written"].append(shown(path))
        print(f"not written: {shown(error)}", file=sys.stderr)

    def manner(self, net: TrainedNetwork) -> str:
        """How `net` has looked at the pictures, on a line."""
        evaluation = net.config.evaluation
        divided = any(in_parts(size, evaluation) for size in self.sizes)
        parts = evaluation.whole_pixels if divided else None
        how = protocols.manner(evaluation.mode, evaluation.window, evaluation.stride, parts)
        versions = protocols.augmentation(evaluation)
        return f"{net.name}, {how}, {'no flips, one scale' if versions == 'none' else versions}"


class _Read(NamedTuple):
    """A picture u8[H,W,3] as it was read, and as the network reads it."""

    job: NamedPicture
    image: np.ndarray
    versions: tuple[np.ndarray, ...]


def all_of(
    net: TrainedNetwork, results: Results, jobs: Sequence[NamedPicture], megapixels: float
) -> Outcome:
    """Segments what is missing of `jobs`. Raises RunError where nothing can be written."""
    outcome = Outcome()
    left = [job for job in jobs if not results.has(job.name, job.path)]
    if len(left) < len(jobs):
        print(f"{len(jobs) - len(left)} of {len(jobs)} are there already; going on.")
    _pictures(net, results, [job for job in left if not job.is_video], megapixels, outcome)
    for job in left:
        if job.is_video:
            try:
                _video(net, results, job, outcome)
            except UnreadableError as error:
                outcome.unread(job.path, error)
            except RunError as error:
                outcome.unwritten(job.path, error)
    return outcome


def _pictures(
    net: TrainedNetwork,
    results: Results,
    jobs: Sequence[NamedPicture],
    megapixels: float,
    outcome: Outcome,
) -> None:
    def read(index: int) -> _Read | tuple[Path, UnreadableError]:
        path = jobs[index].path
        try:
            image = read_image(path, upright=True, megapixels=megapixels)
        except UnreadableError as error:
            return path, error
        return _Read(jobs[index], image, net.versions(image))

    def readable() -> Iterator[_Read]:
        for found in read_ahead(read, len(jobs)):
            if isinstance(found, _Read):
                yield found
            else:
                outcome.unread(*found)

    done = 0
    bar = progress_bar("pictures", len(jobs), lines=True)
    with bar as advance, _Writer(results, outcome) as writer:
        for group in _grouped(net, readable()):
            _note(net, group, outcome)
            for read_, prediction in zip(group, _seen(net, group), strict=True):
                writer.write(read_.job, prediction)
            done += len(group)
            advance(done + len(outcome.failed["read"]))


def _grouped(net: TrainedNetwork, found: Iterable[_Read]) -> Iterator[list[_Read]]:
    def sizes(read: _Read) -> tuple:
        return read.image.shape, *(version.shape for version in read.versions)

    return grouped(found, sizes, net.config.evaluation.batch)


def _seen(net: TrainedNetwork, group: Sequence[_Read]) -> list[Prediction]:
    """What the network sees; filled up to the batch, so that there is one program a size, and the
    one that `evaluate` runs."""
    stop.look()
    versions = stacked([read.versions for read in group], net.config.evaluation.batch)
    height, width, _ = group[0].image.shape
    images = (read.image for read in group)
    found = zip(images, *net.classified(versions, (height, width)), strict=False)
    return [Prediction(net, *one) for one in found]


def _note(net: TrainedNetwork, group: Sequence[_Read], outcome: Outcome) -> None:
    """Keeps the size that the network reads, and warns of one that is far from training."""
    height, width, _ = net.reference(group[0].versions).shape
    new = (height, width) not in outcome.sizes
    outcome.sizes.add((height, width))
    if new and len(outcome.sizes) % PROGRAMS == 0:
        forget_programs()
    for read in group:
        size = (read.image.shape[0], read.image.shape[1])
        warning = scale_warning(size, (height, width), net.config.data.crop)
        outcome.warned += warning is not None
        if warning is not None and outcome.warned <= WARNINGS_SHOWN:
            print(f"warning: {shown(read.job.path)} {warning}.", file=sys.stderr)


class _Writer:
    """Writes results in threads; rows of the table in the order in which pictures came."""

    def __init__(self, results: Results, outcome: Outcome):
        self._results, self._outcome = results, outcome
        self._pool = ThreadPoolExecutor(WRITERS)
        self._pending: deque[tuple[NamedPicture, np.ndarray, Future[None]]] = deque()

    def __enter__(self) -> _Writer:
        return self

    def write(self, job: NamedPicture, prediction: Prediction) -> None:
        """Writes the results of a picture soon. Raises RunError where none can be written."""
        pending = self._pool.submit(self._results.write, job.name, prediction)
        self._pending.append((job, prediction.ids, pending))
        self._finish(WAITING)

    def _finish(self, most: int) -> None:
        while sum(ids.size for _, ids, _ in self._pending) > most:
            job, ids, pending = self._pending.popleft()
            try:
                pending.result()
            except RunError as error:
                self._outcome.unwritten(job.path, error)
            else:
                found = shares(ids, len(self._results.classes))
                self._results.add(job.name, job.path, ids.shape, found)

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            self._finish(0)
        finally:
            self._pool.shutdown(cancel_futures=kind is not None)


def _video(net: TrainedNetwork, results: Results, job: NamedPicture, outcome: Outcome) -> None:
    """An overlay video of a video, or pictures of its frames."""
    with video.opened_video(job.path) as source, progress_bar("frames", source.frames) as advance:
        found = _frames(net, results, source, job, outcome, advance)
        if results.look.frames:
            with _Writer(results, outcome) as writer:
                for frame, prediction in found:
                    writer.write(frame, prediction)
            results.add(job.name, job.path, source.size, None)
            return
        target = results.video(job.name, source.size)
        if is_remote(target):
            raise UsageError.at(target, " lies in a bucket", "write videos on this machine.")
        total, count = np.zeros(len(net.classes)), 0

        def overlays() -> Iterator[np.ndarray]:
            nonlocal total, count
            for _, prediction in found:
                count += 1
                total = total + shares(prediction.ids, len(net.classes))
                yield results.overlay(prediction)

        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replaced(target) as new:
                video.write(new, source, overlays())
        except OSError as error:
            said = f" cannot be written: {what_is_wrong(error)}."
            raise RunError.at(target, said) from error
        results.add(job.name, job.path, source.size, total / max(count, 1))


def _frames(
    net: TrainedNetwork,
    results: Results,
    source: video.Video,
    job: NamedPicture,
    outcome: Outcome,
    advance: Callable[[int], None],
) -> Iterator[tuple[NamedPicture, Prediction]]:
    """Frame after frame, by the name of its results, and what the network sees in it; without those
    whose results are there already."""

    def reads() -> Iterator[_Read]:
        for index, picture in enumerate(source.pictures()):
            frame = NamedPicture(job.path, f"{job.name}_frames/{index:06d}")
            if not results.has(frame.name, frame.path):
                yield _Read(frame, picture, net.versions(picture))

    done = 0
    for group in _grouped(net, reads()):
        if not done:
            _note(net, group[:1], outcome)
        yield from zip((read.job for read in group), _seen(net, group), strict=True)
        done += len(group)
        advance(done)
