"""Picture sheets: what a training step looked at, and predictions beside the ground truth.

Sheets are arrays until they are saved, so that a test can read a colour out of them. Pictures and
class maps are scaled by whole factors: no colours mix, and what has a class's colour is that class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mrm_jax.config import Classes, Domain
from mrm_jax.data.labels import colourise
from mrm_jax.paths import replaced, shown

if TYPE_CHECKING:
    from mrm_jax.data.pipeline import Example

COLUMNS = 6
MAX_IMAGES = 4
"""Images of a batch that a training sheet shows: more would be too small to read."""

_MARGIN, _GAP, _CELL_PX = 20, 8, 208
_BACKGROUND, _INK, _FAINT = (24, 26, 31), (236, 238, 242), (150, 156, 168)
_WRONG, _IGNORED = (230, 57, 70), (0, 0, 0)
_HIDDEN = (98, 104, 116)
# Dark to light in one direction of brightness: readable in grey and with any colour vision.
_RAMP = np.array([(12, 14, 40), (58, 40, 130), (160, 50, 130), (240, 120, 80), (252, 240, 180)])

VIEWS = {
    "source_image": "source",
    "source_label": "source label",
    "source_detail_image": "detail of the source",
    "augmented_image": "augmented source",
    "target_image": "target",
    "pseudo_label": "pseudo-label",
    "pseudo_weight": "pseudo-label weight",
    "mixed_image": "mixed",
    "mixed_label": "mixed label",
    "mixed_weight": "mixed weight",
    "masked_image": "masked",
    "masked_mask": "tokens",
    "masked_label": "masked label",
    "augmented_target_image": "augmented target",
    "inpainted_mask": "mask of the picture",
    "token_mask": "mask",
    "reconstructed_prediction": "rebuilt prediction",
    "reconstructed_target_mask": "mask of the target",
    "reconstructed_target_prediction": "rebuilt target",
    "reconstructed_source_mask": "mask of the source",
    "reconstructed_source_prediction": "rebuilt source",
    "prediction": "prediction",
    "ground_truth": "ground truth",
}
"""Views that a sheet shows, in this order, and their captions."""
_UNDER = {"reconstructed_source_mask": "source_image", "masked_mask": "masked_image"}
"""The picture that a mask is shown on, where it is not the target."""


@dataclass(frozen=True)
class Cell:
    """One picture u8[h,w,3] of a sheet, the caption above it and a short note behind that."""

    caption: str
    picture: np.ndarray
    note: str = ""


def sheet_title(text: str, *domains: Domain) -> str:
    """The title of a picture made from `domains`; says so where they are drawn."""
    return f"{text} · drawn data" if any(domain.kind == "drawn" for domain in domains) else text


def compose(
    views: Mapping[str, np.ndarray],
    classes: Classes,
    *,
    title: str = "",
    columns: int = COLUMNS,
) -> np.ndarray:
    """The sheet u8[H,W,3] of a batch: a block for every image, with those of `VIEWS` that exist.

    `*_image` are RGB u8[B,H,W,3]; `*_label`, `*prediction`, `ground_truth` ids [B,H,W]; `*_weight`
    floats in 0..1 of shape [B,H,W], [B] or []; `*_mask` [B,gh,gw] of any grid is nonzero where
    features are hidden. At most `MAX_IMAGES` images.
    Raises ValueError when no view is known or a view's shape is none of these.
    """
    known = [name for name in VIEWS if name in views]
    if not known:
        raise ValueError(f"views has {sorted(views)}; a sheet shows {', '.join(VIEWS)}.")
    arrays = {name: np.asarray(views[name]) for name in known}
    sides = next((a.shape[:3] for a in arrays.values() if a.ndim >= 3), None)
    if sides is None:
        raise ValueError("views has weights only; a sheet needs a picture or a class map.")
    blocks = []
    for index in range(min(sides[0], MAX_IMAGES)):
        cells = [_view_cell(name, arrays, index, sides[1:], classes) for name in known]
        blocks.append((f"image {index + 1}", cells))
    return sheet(blocks, classes, title, columns)


def save_panels(
    views: Mapping[str, np.ndarray], classes: Classes, path: str | Path, *, title: str
) -> Path:
    """Writes `compose`'s sheet as a PNG, making the folder where needed; returns its path."""
    return _save(compose(views, classes, title=title), path)


def compose_evaluation(
    examples: Sequence[Example],
    student: Sequence[np.ndarray],
    classes: Classes,
    *,
    teacher: Sequence[np.ndarray] | None = None,
    title: str = "",
) -> np.ndarray:
    """The sheet u8[H,W,3] of pictures, predictions (ids [H,W]), ground truth and errors.

    In the error map the wrong pixels are red, right ones the picture in grey, ignored ones
    black; its note is the share of counted pixels that are right.
    """
    blocks = []
    for index, example in enumerate(examples):
        image, label = np.asarray(example.image), np.asarray(example.label)
        prediction = np.asarray(student[index])
        counted = label < len(classes.names)
        right = float(np.mean(prediction[counted] == label[counted])) if counted.any() else None
        cells = [
            Cell("picture", image),
            Cell("student", colourise(prediction, classes)),
            Cell("ground truth", colourise(label, classes)),
            Cell(
                "student's errors",
                error_map(image, prediction, label, classes),
                "" if right is None else f"{right:.1%} right",
            ),
        ]
        if teacher is not None:
            cells.insert(2, Cell("teacher", colourise(np.asarray(teacher[index]), classes)))
        blocks.append((example.name, cells))
    return sheet(blocks, classes, title, columns=5 if teacher is not None else 4)


def evaluation_panel(
    examples: Sequence[Example],
    student: Sequence[np.ndarray],
    classes: Classes,
    path: str | Path,
    *,
    teacher: Sequence[np.ndarray] | None = None,
    title: str,
) -> Path:
    """Writes `compose_evaluation`'s sheet as a PNG; returns its path."""
    sheet = compose_evaluation(examples, student, classes, teacher=teacher, title=title)
    return _save(sheet, path)


def contact_sheet(
    shown: Sequence[tuple[str, np.ndarray, np.ndarray | None]], classes: Classes, title: str
) -> np.ndarray:
    """The sheet u8[H,W,3] of pictures RGB u8[H,W,3] with their labels u8[H,W] (None: unlabelled),
    two a line: the picture, the label in its classes' colours, and both over each other.
    """
    cells = []
    for name, image, label in shown:
        cells.append(Cell(name.rpartition("/")[2][-24:], image))
        if label is not None:
            colour = colourise(label, classes)
            blended = (image // 2 + colour // 2).astype(np.uint8)
            counted = f"{np.mean(label < len(classes.names)):.0%} labelled"
            cells += [Cell("label", colour, counted), Cell("overlay", blended)]
    return sheet([("", cells)], classes, title, columns=6)


def error_map(
    image: np.ndarray, prediction: np.ndarray, label: np.ndarray, classes: Classes
) -> np.ndarray:
    """u8[H,W,3]: the picture in pale grey, red where `prediction` is wrong, black where ignored."""
    grey = 110 + np.asarray(image, np.float32).mean(-1, keepdims=True) * 0.5
    result = np.repeat(grey, 3, axis=-1).astype(np.uint8)
    result[prediction != label] = _WRONG
    result[label >= len(classes.names)] = _IGNORED
    return result


def heat(weight: np.ndarray) -> np.ndarray:
    """u8[...,3] of weights in 0..1: dark is 0, pale yellow is 1. The rest is clipped, NaN is 0."""
    place = np.clip(np.nan_to_num(np.asarray(weight, np.float32)), 0, 1) * (len(_RAMP) - 1)
    low = np.minimum(place.astype(np.int64), len(_RAMP) - 2)
    share = (place - low)[..., None]
    return np.rint(_RAMP[low] * (1 - share) + _RAMP[low + 1] * share).astype(np.uint8)


def cover(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """u8[H,W,3]: `image` with the tokens of `hidden` [gh,gw] covered in grey."""
    height, width = image.shape[:2]
    rows = np.arange(height) * hidden.shape[0] // height
    columns = np.arange(width) * hidden.shape[1] // width
    covered = hidden.astype(bool)[rows][:, columns]
    return np.where(covered[..., None], np.array(_HIDDEN, np.uint8), image)


def _view_cell(
    name: str,
    arrays: Mapping[str, np.ndarray],
    index: int,
    size: tuple[int, int],
    classes: Classes,
) -> Cell:
    array, caption = arrays[name], VIEWS[name]
    if name.endswith("_weight"):
        weight = array if array.ndim == 0 else array[index]
        return Cell(caption, heat(np.broadcast_to(weight, size)), f"{np.mean(weight):.0%}")
    if array.ndim != (4 if name.endswith("_image") else 3):
        raise ValueError(f"views[{name!r}] has shape {array.shape}; see compose for what it takes.")
    if name.endswith("_image"):
        return Cell(caption, _as_u8(array[index], name))
    if name.endswith("_mask"):
        under = _UNDER.get(name, "target_image")
        picture = arrays.get(under)
        ground = (
            np.full((*size, 3), 230, np.uint8) if picture is None else _as_u8(picture[index], under)
        )
        return Cell(
            caption, cover(ground, array[index]), f"{np.mean(array[index] != 0):.0%} hidden"
        )
    return Cell(caption, colourise(array[index], classes))


def _as_u8(image: np.ndarray, name: str) -> np.ndarray:
    if image.dtype != np.uint8:
        raise ValueError(f"views[{name!r}] is {image.dtype}; give RGB pictures as uint8, 0..255.")
    return image


def _fit(picture: np.ndarray, px: int) -> np.ndarray:
    """The picture enlarged or thinned by a whole factor towards a width of `px`."""
    width = picture.shape[1]
    if width * 2 <= px:
        factor = px // width
        return picture.repeat(factor, axis=0).repeat(factor, axis=1)
    step = max(1, round(width / px))
    return picture[step // 2 :: step, step // 2 :: step]


def sheet(
    blocks: Sequence[tuple[str, Sequence[Cell]]],
    classes: Classes | None,
    title: str,
    columns: int,
    *,
    cell_px: int = _CELL_PX,
) -> np.ndarray:
    """The sheet u8[H,W,3] of blocks (heading, captioned pictures) under each other, `columns` a
    line, the legend of `classes` below. cell_px: about the width of a picture on it.
    """
    lines = []
    for name, cells in blocks:
        fitted = [Cell(shown(c.caption), _fit(c.picture, cell_px), c.note) for c in cells]
        parts = [fitted[i : i + columns] for i in range(0, len(fitted), columns)]
        lines += [(shown(name) if i == 0 else "", part) for i, part in enumerate(parts)]
    cell = max((c.picture.shape[1] for _, part in lines for c in part), default=cell_px)
    cell = max(cell, 150)
    across = max((len(part) for _, part in lines), default=1)
    width = 2 * _MARGIN + across * cell + (across - 1) * _GAP
    legend = Image.new("RGB", (width, 0)) if classes is None else _legend(classes, width)
    tall = [max(c.picture.shape[0] for c in part) for _, part in lines]
    top = _MARGIN + (34 if title else 0)
    height = top + sum(
        h + 24 + _GAP + (28 if name else 0) for h, (name, _) in zip(tall, lines, strict=True)
    )
    canvas = Image.new("RGB", (width, height + legend.height + _MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((_MARGIN, _MARGIN - 4), title, fill=_INK, font=ImageFont.load_default(18))
    y = top
    for line_height, (name, part) in zip(tall, lines, strict=True):
        if name:
            y += 8
            draw.text((_MARGIN, y), name, fill=_FAINT, font=ImageFont.load_default(12))
            y += 20
        for column, c in enumerate(part):
            _draw_cell(canvas, draw, (_MARGIN + column * (cell + _GAP), y), c)
        y += 24 + line_height + _GAP
    canvas.paste(legend, (0, height))
    return np.asarray(canvas)


def _draw_cell(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], cell: Cell
) -> None:
    font = ImageFont.load_default(13)
    x, y = corner
    draw.text((x, y + 3), cell.caption, fill=_INK, font=font)
    behind = x + draw.textlength(cell.caption, font=font) + 7
    draw.text((behind, y + 3), cell.note, fill=_FAINT, font=font)
    canvas.paste(Image.fromarray(np.ascontiguousarray(cell.picture)), (x, y + 24))


def _legend(classes: Classes, width: int) -> Image.Image:
    """Swatches and names of all classes and of ignored pixels, wrapped to `width`."""
    font = ImageFont.load_default(13)
    entries = [*zip(classes.names, classes.colours, strict=True), ("ignored", _IGNORED)]
    places, x, y = [], _MARGIN, 8
    for name, colour in entries:
        extent = 20 + int(font.getlength(name)) + 16
        if x > _MARGIN and x + extent > width - _MARGIN:
            x, y = _MARGIN, y + 22
        places.append((x, y, name, tuple(colour)))
        x += extent
    picture = Image.new("RGB", (width, y + 24), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for x, y, name, colour in places:
        draw.rectangle((x, y + 1, x + 13, y + 14), fill=colour, outline=_FAINT)
        draw.text((x + 20, y), name, fill=_INK, font=font)
    return picture


def _save(sheet: np.ndarray, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as new:
        Image.fromarray(sheet).save(new, "PNG")
    return path
