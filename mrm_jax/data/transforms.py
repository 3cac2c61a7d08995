"""Resize, crop, flip and pad of one picture with its label and validity map, as the UDA recipes of
the DAFormer family train.

Order: keep-ratio resize, by a random factor where one is asked for, random crop, horizontal flip,
pad. A picture that is to be enlarged stays
as it is until its crop is known, of which alone the resized pixels are then made. Pure functions of
arrays and a numpy generator: no state, no global seed, OpenCV's resize conventions. Normalisation
happens on the device, so pictures stay uint8 here. Source: DAFormer training pipelines (mmseg 0.16
`Resize`, `RandomCrop`, `RandomFlip`, `Pad`).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from mrm_jax.label_ids import IGNORE
from mrm_jax.registry import IMAGENET

CROP_CHECKS = 10  # mmseg `RandomCrop`: boxes checked before one is taken unchecked.


class Box(NamedTuple):
    """A rectangle of pixels: its first row and column, its height and width."""

    top: int
    left: int
    height: int
    width: int


class Picture(Protocol):
    """Pixels RGB u8[H,W,3] of which `[rows, columns]`, slices, are made when they are asked for; of
    an array they are there already.
    """

    @property
    def shape(self) -> Any:
        """(height, width, 3)."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        ...

    def __getitem__(self, part: tuple[slice, slice], /) -> np.ndarray: ...

    def __array__(self) -> np.ndarray: ...


def keep_ratio_size(height: int, width: int, box: tuple[float, float]) -> tuple[int, int]:
    """The (height, width) of a picture scaled to the largest size that fits `box` = (long side,
    short side).

    The box has no orientation: a portrait picture is measured against it the same way. Enlarges as
    well as shrinks. 1052 x 1914 in (1280, 720) becomes 704 x 1280, not 720 (the long side binds).
    """
    factor = min(max(box) / max(height, width), min(box) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def fitted_size(
    height: int, width: int, box: tuple[int, int] | None, factor: float = 1.0
) -> tuple[int, int]:
    """The (height, width) of a picture in `box` (None: its own), times `factor`; at least 1."""
    if box is not None:
        return keep_ratio_size(height, width, (box[0] * factor, box[1] * factor))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_image(image: Picture, size: tuple[int, int]) -> np.ndarray:
    """The picture u8[H,W,3] at `size` = (height, width): bilinear, half-pixel centres, no
    antialiasing (OpenCV).
    """
    image = np.asarray(image)
    if image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The label or validity map u8[H,W] at `size`: row i is taken from row floor(i * H / height)
    (OpenCV nearest).
    """
    if label.shape[:2] == tuple(size):
        return label
    return cv2.resize(label, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)


def draw_box(rng: np.random.Generator, size: tuple[int, int], crop: tuple[int, int]) -> Box:
    """A crop position, each offset uniform in [0, size - crop]; where the picture is smaller, all
    of that axis.
    """
    height, width = min(size[0], crop[0]), min(size[1], crop[1])
    top = int(rng.integers(0, size[0] - height + 1))
    left = int(rng.integers(0, size[1] - width + 1))
    return Box(top, left, height, width)


def cut(array: Picture, box: Box) -> np.ndarray:
    """The part of `array` [H,W,...] inside `box`; of an array, as a view."""
    return array[box.top : box.top + box.height, box.left : box.left + box.width]


def cut_resized(image: Picture, size: tuple[int, int], box: Box) -> np.ndarray:
    """`cut(resize_image(image, size), box)`, bit for bit, of the picture's part from its corner to
    the end of the box: of 1024 px crops of GTA5 at 1407 x 2560 px that takes two thirds of the
    time.
    """
    height, width = image.shape[:2]
    if (height, width) == tuple(size):
        return cut(image, box)
    # A pixel is made of at most two rows and columns, the last at most 1.5 behind the box.
    rows = min(height, (box.top + box.height) * height // size[0] + 3)
    columns = min(width, (box.left + box.width) * width // size[1] + 3)
    down, across = size[0] / height, size[1] / width
    if (round(rows * down), round(columns * across)) == (rows, columns):
        # OpenCV would copy it, whatever the factors.
        return cut(resize_image(image, size), box)
    top = max(0, box.top * height // size[0] - 2)
    left = max(0, box.left * width // size[1] - 2)
    corner = _corner(image, Box(top, left, rows - top, columns - left))
    # With factors instead of a size OpenCV maps pixels as it does for the whole picture.
    part = cv2.resize(corner, None, fx=across, fy=down, interpolation=cv2.INTER_LINEAR)
    return cut(part, box)


def _corner(image: Picture, box: Box) -> np.ndarray:
    """`image` from its corner to the end of `box`; pixels outside the box may be anything."""
    rows, columns = box.top + box.height, box.left + box.width
    if isinstance(image, np.ndarray):
        return image[:rows, :columns]
    corner = np.empty((rows, columns, 3), np.uint8)
    corner[box.top :, box.left :] = cut(image, box)
    return corner


def is_varied(label: np.ndarray, max_ratio: float) -> bool:
    """Whether more than one class occurs and the largest covers less than `max_ratio` of the pixels
    that count.
    """
    # Some of the pixels tell which class is likely the largest. Counting that one decides nearly
    # every crop, five times as fast as counting all.
    some = np.bincount(label[::8, ::8].ravel(), minlength=IGNORE + 1)[:IGNORE]
    counted = label.size - np.count_nonzero(label == IGNORE)
    held = np.count_nonzero(label == some.argmax())
    if held >= max_ratio * counted:
        return False
    if counted - held < max_ratio * counted:  # no other class can be as large as that
        return bool(held < counted)
    counts = cv2.calcHist([np.ascontiguousarray(label)], [0], None, [IGNORE], [0, IGNORE])
    return bool(np.count_nonzero(counts) > 1 and counts.max() < max_ratio * counts.sum())


def varied_box(
    rng: np.random.Generator, label: np.ndarray, crop: tuple[int, int], max_ratio: float
) -> Box:
    """A crop position whose label `is_varied`; the eleventh box is taken as it comes. `max_ratio` 1
    switches checks off.
    """
    box = draw_box(rng, label.shape[:2], crop)
    if max_ratio >= 1:
        return box
    for _ in range(CROP_CHECKS):
        if is_varied(cut(label, box), max_ratio):
            return box
        box = draw_box(rng, label.shape[:2], crop)
    return box


def pad_to(
    array: np.ndarray, size: tuple[int, int], value: int | tuple[int, int, int]
) -> np.ndarray:
    """`array` [H,W] or [H,W,3] extended at the bottom and right to at least `size` with `value`;
    contiguous.
    """
    down, right = max(0, size[0] - array.shape[0]), max(0, size[1] - array.shape[1])
    if down == 0 and right == 0:
        return np.ascontiguousarray(array)
    out = np.empty((array.shape[0] + down, array.shape[1] + right, *array.shape[2:]), array.dtype)
    out[...] = value
    out[: array.shape[0], : array.shape[1]] = array
    return out


def margin_map(size: tuple[int, int], margins: tuple[int, int, int, int]) -> np.ndarray:
    """Validity u8[H,W] of a picture: 0 within `margins` = (top, bottom, left, right) pixels of its
    border, else 1.
    """
    top, bottom, left, right = margins
    valid = np.zeros(size, np.uint8)
    valid[top : max(0, size[0] - bottom), left : max(0, size[1] - right)] = 1
    return valid


PAD_RGB = IMAGENET.grey
"""The colour that pictures are padded with where no other is given."""


def fit_source(
    image: Picture, label: np.ndarray, box: tuple[int, int] | None, factor: float = 1.0
) -> tuple[Picture, np.ndarray]:
    """The part without chance: label u8[h,w] at the size that `box` = (long, short), None: the
    picture's own, times `factor` gives the picture; image u8[H,W,3] likewise, unless that would
    enlarge it. A target's validity map takes the label's place.
    """
    size = fitted_size(image.shape[0], image.shape[1], box, factor)
    stays = size[0] > image.shape[0] or size == tuple(image.shape[:2])
    return image if stays else resize_image(image, size), resize_label(label, size)


def fit_target(
    image: Picture,
    box: tuple[int, int] | None,
    margins: tuple[int, int, int, int],
    native: tuple[int, int] | None = None,
) -> tuple[Picture, np.ndarray]:
    """Validity u8[h,w] of a picture fitted into `box`, whose `margins` count pixels of the picture
    at its `native` (height, width), None: as read; image u8[H,W,3] as in `fit_source`.
    """
    return fit_source(image, margin_map(native or image.shape[:2], margins), box)


class Place(NamedTuple):
    """Where a crop is taken from, and whether it is flipped."""

    box: Box
    flipped: bool


def choose_place(
    label: np.ndarray,
    rng: np.random.Generator,
    *,
    crop: tuple[int, int],
    max_ratio: float,
    flip: float,
) -> Place:
    """A crop of a label u8[H,W], and a flip with probability `flip`; `max_ratio`: `varied_box`."""
    return Place(varied_box(rng, label, crop, max_ratio), bool(rng.random() < flip))


def augment_source(
    image: Picture,
    label: np.ndarray,
    rng: np.random.Generator,
    *,
    crop: tuple[int, int],
    max_ratio: float,
    flip: float,
    fill: tuple[int, int, int] = PAD_RGB,
) -> tuple[np.ndarray, np.ndarray]:
    """One training sample at exactly `crop` = (height, width) of what `fit_source` gives: image
    u8[h,w,3], label u8[h,w], 255 in the padding, whose colour is `fill`. See `choose_place`.
    """
    where = choose_place(label, rng, crop=crop, max_ratio=max_ratio, flip=flip)
    return _taken(image, label, where, crop, (fill, IGNORE))


def augment_source_with(
    image: Picture,
    label: np.ndarray,
    rng: np.random.Generator,
    *,
    class_id: int,
    more_than: float,
    tries: int,
    crop: tuple[int, int],
    max_ratio: float,
    flip: float,
    fill: tuple[int, int, int] = PAD_RGB,
) -> tuple[np.ndarray, np.ndarray]:
    """`augment_source`, with `choose_place` made again at most `tries` times while the crop holds
    no `more_than` so many pixels of the class; the last one is taken as it comes.

    Peer: mmseg datasets/uda_dataset.py, whose first sample is followed by up to ten more.
    """
    where = choose_place(label, rng, crop=crop, max_ratio=max_ratio, flip=flip)
    for _ in range(tries):
        if np.count_nonzero(cut(label, where.box) == class_id) > more_than:
            break
        where = choose_place(label, rng, crop=crop, max_ratio=max_ratio, flip=flip)
    return _taken(image, label, where, crop, (fill, IGNORE))


def augment_target(
    image: Picture,
    valid: np.ndarray,
    rng: np.random.Generator,
    *,
    crop: tuple[int, int],
    flip: float,
    fill: tuple[int, int, int] = PAD_RGB,
) -> tuple[np.ndarray, np.ndarray]:
    """One unlabelled sample at exactly `crop` of what `fit_source` gives: image u8[h,w,3], validity
    u8[h,w], 0 in the padding and in the margins.
    """
    where = Place(draw_box(rng, valid.shape, crop), bool(rng.random() < flip))
    return _taken(image, valid, where, crop, (fill, 0))


def _taken(
    image: Picture,
    plane: np.ndarray,
    where: Place,
    crop: tuple[int, int],
    padding: tuple[tuple[int, int, int], int],
) -> tuple[np.ndarray, np.ndarray]:
    """The crop of a picture and of its label or validity map, padded to `crop`."""
    pixels, plane = cut_resized(image, plane.shape, where.box), cut(plane, where.box)
    if where.flipped:
        pixels, plane = cv2.flip(pixels, 1), cv2.flip(plane, 1)
    return pad_to(pixels, crop, padding[0]), pad_to(plane, crop, padding[1])
