"""Classes in colour over a picture, with a legend of those that are seen."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mrm_jax.config import Classes
from mrm_jax.data.labels import colourise

_PANEL, _INK, _EDGE = (24, 26, 31), (236, 238, 242), (90, 96, 108)
_SHADE = 0.75
"""How much of what lies under the legend is covered."""
LINES = 32
"""Lines of a legend that would fill the picture's height: sets the size of its letters."""


def overlay(
    image: np.ndarray,
    ids: np.ndarray,
    classes: Classes,
    opacity: float = 0.5,
    legend: bool = False,
) -> np.ndarray:
    """The picture u8[H,W,3] with train ids u8[H,W] in colour over it, `opacity` 0..1 of them. With
    a legend, in the lower left corner, of the classes seen, by size, as many as there is room for.
    """
    mixed = cv2.addWeighted(image, 1 - opacity, colourise(ids, classes), opacity, 0)
    return with_legend(mixed, ids, classes) if legend else mixed


def with_legend(picture: np.ndarray, ids: np.ndarray, classes: Classes) -> np.ndarray:
    """The picture u8[H,W,3] with the legend of `ids` u8[H,W]; a picture too small for a line of it
    stays as it is."""
    counts = np.bincount(ids.ravel(), minlength=len(classes.names))[: len(classes.names)]
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    height, width = ids.shape
    line = max(12, min(height, width) // LINES)
    font, gap = _font(round(line * 0.75)), line // 3
    room = (height - 4 * gap) // line
    entries = order[:room]
    if not entries:
        return picture
    long = max(font.getlength(classes.names[i]) for i in entries)
    panel = (line * len(entries) + 2 * gap, int(long) + line + 3 * gap)
    if panel[1] + gap > width:
        return picture
    top, left = height - gap - panel[0], gap
    under = picture[top : top + panel[0], left : left + panel[1]]
    shade = np.full_like(under, _PANEL)
    drawn = Image.fromarray(cv2.addWeighted(under, 1 - _SHADE, shade, _SHADE, 0))
    draw = ImageDraw.Draw(drawn)
    for place, index in enumerate(entries):
        y = gap + place * line
        box = (gap, y + line // 8, gap + line - line // 4, y + line - line // 8 - 1)
        draw.rectangle(box, fill=tuple(classes.colours[index]), outline=_EDGE)
        middle = (2 * gap + line, y + line / 2)
        draw.text(middle, classes.names[index], fill=_INK, font=font, anchor="lm")
    result = picture.copy()
    result[top : top + panel[0], left : left + panel[1]] = np.asarray(drawn)
    return result


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
