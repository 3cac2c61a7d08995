"""Pictures of a prepared set, by index: what `sources` opens where a domain's path holds one."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from mrm_jax.config import Classes, Domain
from mrm_jax.data import files
from mrm_jax.data.prepared import manifest, verified
from mrm_jax.data.prepared.records import StoredPicture
from mrm_jax.data.transforms import Picture, keep_ratio_size
from mrm_jax.errors import UsageError
from mrm_jax.paths import below, is_remote, located, replaced, what_is_wrong

Taken = TypeVar("Taken")
Sized = TypeVar("Sized", np.ndarray, Picture)
log = logging.getLogger(__name__)


def reads_prepared(domain: Domain) -> bool:
    """Whether the domain's path holds a prepared set."""
    return bool(domain.path) and manifest.is_prepared(located(domain.path or ""))


@contextmanager
def _unreadable(name: str) -> Iterator[None]:
    """What goes wrong with a record, as an UnreadableError that names it."""
    try:
        yield
    except Exception as error:  # the reader of records raises unrelated types
        what = " ".join(str(error).split())
        raise files.UnreadableError.at(
            name, f" cannot be read ({what})", "prepare the set again."
        ) from error


class _Part:
    """A picture of a record whose parts are decoded when they are asked for; errors name it."""

    def __init__(self, picture: Picture, name: str) -> None:
        self._picture, self._name = picture, name
        self.shape, self.nbytes = picture.shape, picture.nbytes

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        with _unreadable(self._name):
            return self._picture[part]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        with _unreadable(self._name):
            return np.asarray(self._picture, dtype)


class Records:
    """The pictures of a split without labels."""

    def __init__(self, domain: Domain, field: str) -> None:
        self._folder, self._split = located(domain.path or ""), domain.split
        self.manifest = manifest.read_manifest(self._folder, field=f"{field}.path")
        split = self.manifest.split(domain.split, field=field)
        _check_resize(split, domain, field)
        self._resize = split.resize
        self._known = manifest.load_known(
            self._folder, self.manifest, domain.split, field=f"{field}.path"
        )
        if not self._known.names:
            raise UsageError.at(
                field,
                f": split {domain.split} of the prepared set in {self._folder} holds no picture",
                "choose another one.",
            )
        self._files = tuple(_at_hand(self._folder, shard, field) for shard in split.shards)
        verified.check_unchanged(self._files, split, field=f"{field}.path")
        stops = domain.on_unreadable == "error"
        self.shards = tuple(
            verified.Held(path, shard, stops)
            for path, shard in zip(self._files, split.shards, strict=True)
        )

    def __len__(self) -> int:
        return len(self._known.names)

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not travel to loader processes.
        return {k: v for k, v in self.__dict__.items() if k != "_source"}

    @functools.cached_property
    def _source(self) -> Any:
        from grain.sources import ArrayRecordDataSource

        return ArrayRecordDataSource([str(file) for file in self._files])

    def name(self, index: int) -> str:
        """The stem."""
        return self._known.names[index]

    def native_size(self, index: int) -> tuple[int, int]:
        """(height, width) px of the picture before it was resized."""
        height, width = self._known.sizes[index]
        return int(height), int(width)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) px of `image`."""
        height, width = self.native_size(index)
        return (
            (height, width)
            if self._resize is None
            else keep_ratio_size(height, width, self._resize)
        )

    def image(self, index: int) -> np.ndarray:
        """RGB u8[H,W,3] as it is stored. Raises UnreadableError naming the record and its file."""
        return self._read(index, lambda stored: self._sized(index, stored.image()))

    def picture(self, index: int) -> Picture:
        """`image`, of which parts are decoded when they are asked for, where the codec allows; then
        they raise what `image` does."""
        return self._read(index, functools.partial(self._picture, index))

    def decoded(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """`image`, and its label where the split was opened with labels."""
        return self.image(index), None

    def _picture(self, index: int, stored: StoredPicture) -> Picture:
        picture = self._sized(index, stored.picture())
        return picture if isinstance(picture, np.ndarray) else _Part(picture, self._named(index))

    def _sized(self, index: int, array: Sized) -> Sized:
        """`array`; raises ValueError where it has not the size that a picture was stored at."""
        height, width = self.size(index)
        if tuple(array.shape[:2]) != (height, width):
            raise ValueError(
                f"it holds {array.shape[0]} x {array.shape[1]} px, not {height} x {width}"
            )
        return array

    def _read(self, index: int, take: Callable[[StoredPicture], Taken]) -> Taken:
        with _unreadable(self._named(index)):
            stored = StoredPicture(self._source[index])
            name = stored.name
            if name == self.name(index):
                return take(stored)
        # Not one damaged record, which a run may leave out: what is counted and drawn is wrong.
        raise UsageError.at(
            self._named(index),
            f" holds '{name}': a file was put in the place of another; {manifest.AGAIN}.",
        )

    def _named(self, index: int) -> str:
        """A picture and where it lies, for errors."""
        first = 0
        for path, shard, _ in self.shards:
            if index < first + shard.count:
                return f"'{self.name(index)}' (record {index - first} of {path})"
            first += shard.count
        raise IndexError(index)


class RecordsLabelled(Records):
    """The pictures of a split with labels as train ids of the config's classes."""

    label_files: tuple[Path, ...] = ()

    def __init__(self, domain: Domain, classes: Classes, field: str) -> None:
        super().__init__(domain, field)
        if not self.manifest.splits[domain.split].labelled:
            raise UsageError.at(
                field,
                f": split {domain.split} of the prepared set of {self.manifest.title} has no "
                "labels.",
            )
        self._classes = len(classes.names)
        stored = self.manifest.classes.names
        self._table, self._same = _by_name(stored, classes.names, field), stored == classes.names

    def label(self, index: int) -> np.ndarray:
        """Train ids u8[H,W] as stored, 255 where the config has no such class."""
        return self._mapped(self._read(index, lambda stored: self._sized(index, stored.label())))

    def pair(self, index: int) -> tuple[Picture, np.ndarray]:
        """`picture` and `label` of one record, which is read once; of one size since `prepare`."""
        image, label = self._read(
            index,
            lambda stored: (self._picture(index, stored), self._sized(index, stored.label())),
        )
        return image, self._mapped(label)

    def _mapped(self, label: np.ndarray) -> np.ndarray:
        return label if self._same else cv2.LUT(label, self._table)

    def decoded(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """`image` and `label`."""
        image, label = self.pair(index)
        return np.asarray(image), label

    def counted(self) -> tuple[np.ndarray, np.ndarray]:
        """(pixels i64[N,K] of the config's classes in the labels before resizing, sizes
        i64[N,2])."""
        counts = np.zeros((len(self), self._classes), np.int64)
        for class_id, pixels in enumerate(self._known.counts.T):
            if self._table[class_id] < 255:
                counts[:, self._table[class_id]] += pixels
        return counts, self._known.sizes


def _at_hand(folder: Path, shard: manifest.Shard, field: str) -> Path:
    """The file of a shard on this machine: records in a bucket are copied into the user's cache
    folder once, under the name of their content, which is verified on the way."""
    there = below(folder, shard.file)
    if not is_remote(folder):
        if not there.is_file():
            raise UsageError.at(
                f"{field}.path", f": {there} is missing", "prepare the set again or copy all of it."
            )
        return there
    path = below(verified.cache() / "records", f"{shard.sha256[:16]}-{shard.file}")
    if not path.is_file():
        log.info("copying %s to %s ...", there, path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replaced(path) as new:
                if verified.copied(there, new) != shard.sha256:
                    raise UsageError.at(
                        f"{field}.path",
                        f": the SHA-256 of {there} is not the manifest's; {manifest.AGAIN}.",
                    )
        except OSError as error:
            raise UsageError.at(
                f"{field}.path",
                f": {there} cannot be copied to {path.parent} ({what_is_wrong(error)}).",
            ) from error
        verified.stamp(path, shard)
    return path


def _by_name(stored: tuple[str, ...], wanted: tuple[str, ...], field: str) -> np.ndarray:
    """u8[256] from stored train ids to the config's: classes are told apart by name."""
    lacking = [name for name in wanted if name not in stored]
    if lacking:
        raise UsageError.at(
            field,
            f": the prepared set has no class '{lacking[0]}'; it has {', '.join(stored)}.",
            "Name the classes alike, or prepare the set with the classes of this config.",
        )
    table = np.full(256, 255, np.uint8)
    for place, name in enumerate(stored):
        if name in wanted:
            table[place] = wanted.index(name)
    left = [name for name in stored if name not in wanted]
    if left:
        log.info("%s: %s of the prepared set count nowhere in this config.", field, ", ".join(left))
    return table


def _check_resize(split: manifest.PreparedSplit, domain: Domain, field: str) -> None:
    """Raises UsageError where pictures were resized to another box than the config asks for."""
    stored, wanted = split.resize, domain.resize
    if stored is None or (wanted is not None and sorted(stored) == sorted(wanted)):
        return
    how = "native" if wanted is None else f"{wanted[0]}x{wanted[1]}"
    raise UsageError.at(
        field,
        f": the prepared set holds pictures fitted into {stored[0]} x {stored[1]} px, "
        f"{field}.resize is {wanted}.",
        f"Prepare it with --resize {how} (or native, which suits every config).",
    )
