"""Sets of pictures behind one interface: drawn scenes, folders and prepared sets, with labels or,
for a target, without any way to them.

`open_pictures` returns `Pictures`, which has no method that reads a label: training cannot look at
a target's labels even by mistake, and they need not exist. `open_labelled` adds `label`. Everything
is addressed by index and keeps no position.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np

from mrm_jax.config import Classes, Domain
from mrm_jax.data import files, finding, labels
from mrm_jax.data.prepared.reading import Records, RecordsLabelled, reads_prepared
from mrm_jax.data.prepared.verified import Held
from mrm_jax.data.transforms import Picture
from mrm_jax.errors import UsageError
from mrm_jax.paths import as_path, located

Sample = TypeVar("Sample", bound=tuple[Picture, ...])
log = logging.getLogger(__name__)

DRAWN_SEED = 0
"""Of the drawn sets, not of the run: runs of several seeds are compared on the same pictures."""


class Pictures(Protocol):
    """Pictures by index."""

    shards: tuple[Held, ...] = ()
    """The files of a prepared set that they lie in; of other sets none."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What identifies the picture: its stem, with forward slashes."""
        ...

    def native_size(self, index: int) -> tuple[int, int] | None:
        """(height, width) px that the picture had before `prepare` resized it; None: it is read at
        its own size."""

    def size(self, index: int) -> tuple[int, int] | None:
        """(height, width) px of `image`, without decoding it; None where that does not say."""
        ...

    def image(self, index: int) -> np.ndarray:
        """RGB u8[H,W,3]; raises `files.UnreadableError`."""
        ...

    def picture(self, index: int) -> Picture:
        """`image`; parts may be decoded when asked for, and raise then what `image` raises."""
        return self.image(index)


class LabelledPictures(Pictures, Protocol):
    """Pictures with ground truth."""

    label_files: tuple[Path, ...] = ()
    """The label of every picture, in their order; () where labels are no files of their own."""

    def label(self, index: int) -> np.ndarray:
        """Train ids u8[H,W], 255 = ignore; raises `files.UnreadableError`, or UsageError for an id
        outside the table.
        """
        ...

    def pair(self, index: int) -> tuple[Picture, np.ndarray]:
        """`picture` and `label`, of one size; raises SizesError where theirs differ."""
        image, label = self.image(index), self.label(index)
        if image.shape[:2] != label.shape:
            (h, w), (rows, columns) = image.shape[:2], label.shape
            raise files.SizesError.at(
                self.name(index),
                f": the picture is {h} x {w} px, its label {rows} x {columns} px (rows x columns); "
                "they must be equal.",
            )
        return image, label

    def counted(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(pixels i64[N,K] of each class in every label, sizes i64[N,2]) where the set knows."""


DRAWN_CACHE_BYTES = 2**29
"""Drawn scenes are kept by the process up to this size: 512 MiB, 7000 of 96 x 192 with labels."""


@functools.lru_cache(maxsize=16)  # a picture and its label are asked for one after the other
def _drawn(look: str, split: str, size: tuple[int, int], index: int) -> tuple[np.ndarray, ...]:
    from mrm_jax.data.drawn import scenes

    scene = scenes.draw_scene(DRAWN_SEED, split, index, size=size, look=look)  # type: ignore[arg-type]
    for array in scene:
        array.flags.writeable = False
    return scene


class _Scenes:
    """Scenes by look, split, size and index: kept while there is room, drawn again otherwise."""

    def __init__(self) -> None:
        self._kept: dict[tuple, tuple[np.ndarray, ...]] = {}
        self._held = 0

    def __call__(self, domain: Domain, index: int) -> tuple[np.ndarray, ...]:
        key = (domain.look, domain.split, domain.size, index)
        scene = self._kept.get(key) or _drawn(*key)
        size = sum(array.nbytes for array in scene)
        if key not in self._kept and self._held + size <= DRAWN_CACHE_BYTES:
            self._kept[key] = scene
            self._held += size
        return scene


_scene = _Scenes()


class Drawn(Pictures):
    """Drawn scenes without their labels."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain

    def __len__(self) -> int:
        return self._domain.count

    def name(self, index: int) -> str:
        """Look, split and index, as in "camera_val_00017"."""
        return f"{self._domain.look}_{self._domain.split}_{index:05d}"

    def size(self, index: int) -> tuple[int, int]:
        """See `Pictures`."""
        return self._domain.size

    def image(self, index: int) -> np.ndarray:
        """See `Pictures`."""
        return self._scene(index)[0]

    def _scene(self, index: int) -> tuple[np.ndarray, ...]:
        return _scene(self._domain, index)


class DrawnLabelled(Drawn, LabelledPictures):
    """Drawn scenes with their exact labels."""

    def __init__(self, domain: Domain, classes: int, field: str) -> None:
        super().__init__(domain)
        self._map = functools.partial(_train_ids, domain=domain, classes=classes, field=field)

    def label(self, index: int) -> np.ndarray:
        """See `LabelledPictures`."""
        return self._map(self._scene(index)[1], name=self.name(index))


class Folder(Pictures):
    """The pictures below a folder, without labels."""

    def __init__(self, domain: Domain, field: str) -> None:
        if not domain.path:
            way_out = "set it to the folder of the data set."
            raise UsageError.at(f"{field}.path", " is empty", way_out)
        root = located(domain.path)
        found = finding.find_pictures(
            root, domain.images, domain.image_suffix, field=field, without=domain.labels
        )
        if domain.listing:
            found = finding.chosen(found, root / as_path(domain.listing), field=field)
        self._names, self.files = tuple(found), tuple(found.values())
        self._megapixels = domain.max_megapixels

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The stem, see `finding.find_pictures`."""
        return self._names[index]

    def size(self, index: int) -> tuple[int, int] | None:
        """See `Pictures`."""
        return files.promised_size(self.files[index])

    def image(self, index: int) -> np.ndarray:
        """See `Pictures`."""
        return files.read_image(self.files[index], megapixels=self._megapixels)


class FolderLabelled(Folder, LabelledPictures):
    """The pictures below a folder with labels beside them, paired by stem."""

    def __init__(self, domain: Domain, classes: int, field: str) -> None:
        super().__init__(domain, field)
        if domain.labels is None:
            way_out = f"set it to the folder of the labels below {domain.path}."
            raise UsageError.at(f"{field}.labels", " is empty", way_out)
        root, suffix = located(domain.path or ""), domain.label_suffix
        found = finding.listed(root, domain.labels, suffix, field=f"{field}.labels")
        missing = [stem for stem in self._names if stem not in found]
        if missing:
            raise UsageError.at(
                field,
                f": {len(missing)} of {len(self)} pictures have no label; the first is "
                f"{root}/{domain.labels}/{missing[0]}{suffix}",
                f"{finding.endings(root, domain.labels, suffix, field)}correct image_suffix, or "
                "name the pictures to use in listing.",
            )
        # Archives are for `prepare`.
        self.label_files = cast("tuple[Path, ...]", tuple(found[n] for n in self._names))
        self._read = functools.partial(files.read_label, domain=domain, field=field)
        self._map = functools.partial(_train_ids, domain=domain, classes=classes, field=field)

    def label(self, index: int) -> np.ndarray:
        """See `LabelledPictures`."""
        path = self.label_files[index]
        return self._map(self._read(path), name=str(path))


def _train_ids(
    raw: np.ndarray, *, name: str, domain: Domain, classes: int, field: str
) -> np.ndarray:
    return labels.map_labels(
        raw, domain.raw_ids, domain.ignored_ids, classes=classes, name=name, field=field
    )


def open_pictures(domain: Domain, *, field: str) -> Pictures:
    """The pictures of a domain, with no way to its labels. `field` is the config path that errors
    name.

    Raises UsageError for a missing or empty folder, two files of one stem, or a bad listing.
    """
    if domain.kind == "drawn":
        return Drawn(domain)
    return Records(domain, field) if reads_prepared(domain) else Folder(domain, field)


def open_labelled(domain: Domain, classes: Classes, *, field: str) -> LabelledPictures:
    """The pictures of a domain with labels as train ids of the table `classes`.

    Raises UsageError as `open_pictures` does, and for pictures without a label.
    """
    if domain.kind == "drawn":
        return DrawnLabelled(domain, len(classes.names), field)
    if reads_prepared(domain):
        return RecordsLabelled(domain, classes, field)
    return FolderLabelled(domain, len(classes.names), field)


def read_pair(pictures: LabelledPictures, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image u8[H,W,3] and label u8[H,W] of one size; raises what `LabelledPictures.pair` does."""
    image, label = pictures.pair(index)
    return np.asarray(image), label


class Reader(Generic[Sample]):
    """Reads samples, replaces unusable ones if allowed, and keeps decoded ones in memory if told
    to.

    `on_unreadable` "skip": the next usable index takes the place, whatever was read before, so
    order stays a pure function of (seed, step). Every unusable picture is logged once, with the
    count so far. `limit_bytes` bounds what is kept; 0: nothing.
    """

    def __init__(
        self,
        read: Callable[[int], Sample],
        count: int,
        *,
        field: str,
        on_unreadable: str = "error",
        limit_bytes: int = 0,
    ) -> None:
        self._read, self._count, self._field = read, count, field
        self._skip = on_unreadable == "skip"
        self._limit, self._held, self._full = limit_bytes, 0, False
        self._kept: dict[int, Sample] = {}
        self.unreadable: dict[int, str] = {}
        self._said: set[int] = set()

    def __len__(self) -> int:
        return self._count

    def __call__(self, index: int, take: Callable[..., Any] = lambda *sample: sample) -> Any:
        """`take(*sample)` of the sample at `index`, or of what replaces it. Raises UnreadableError
        when nothing may or can.

        `take` may decode parts of a picture. Where that fails it is called again with the sample
        that replaces it, so it has to give the same at every call.
        """
        for offset in range(self._count):
            at = (index + offset) % self._count
            if at in self._kept:
                return take(*self._kept[at])
            if at in self.unreadable:
                continue
            try:
                sample = self._read(at)
            except files.UnreadableError as error:
                self._refuse(at, error)
                self.unreadable[at] = str(error)
                continue
            try:
                return take(*self._keep(at, sample))
            except files.UnreadableError as error:
                # Its other parts stay in use: which were read before must not matter.
                self._refuse(at, error)
        fault = f": none of its {self._count} pictures can be read."
        raise files.UnreadableError.at(self._field, fault)

    def _refuse(self, index: int, error: files.UnreadableError) -> None:
        if not self._skip:
            hint = f"Set {self._field}.on_unreadable='skip' to train without such pictures."
            raise files.UnreadableError.at(self._field, f": {error} {hint}") from error
        if index not in self._said:
            self._said.add(index)
            log.warning(
                "%s: %s Left out; %d of %d so far.",
                self._field,
                error,
                len(self._said),
                self._count,
            )

    def _keep(self, index: int, sample: Sample) -> Sample:
        size = sum(array.nbytes for array in sample)
        if self._held + size <= self._limit:
            try:
                whole = cast("Sample", tuple(np.asarray(array) for array in sample))
            except files.UnreadableError:
                return sample  # such as it would be read without a cache: parts of it may be good
            self._held += size
            self._kept[index] = sample = whole
        elif self._limit and not self._full:
            self._full = True
            log.warning(
                "%s: %d of %d pictures fill the %.1f GiB that data.cache may take; the others are "
                "read again each time.",
                self._field,
                len(self._kept),
                self._count,
                self._limit / 2**30,
            )
        return sample
