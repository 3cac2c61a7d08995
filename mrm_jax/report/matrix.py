"""A confusion matrix as a picture: rows are true classes, columns predicted ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mrm_jax.paths import replaced

_BACKGROUND, _INK, _FAINT = (255, 255, 255), (28, 30, 36), (128, 134, 146)
_RIGHT, _WRONG = (38, 120, 178), (206, 62, 52)
CELL, GAP, TOP = 34, 2, 64
"""Side of a cell, space between two, and height of the lines above the matrix, px."""


def compose_matrix(confusion: np.ndarray, names: Sequence[str], title: str) -> np.ndarray:
    """The picture u8[H,W,3] of a confusion int[K,K], rows truth and columns prediction: each cell
    has its share of the row in percent, and the stronger its colour, the larger that is. Rows of
    classes that no label has stay empty."""
    confusion = np.asarray(confusion, np.float64)
    total = confusion.sum(1, keepdims=True)
    share = np.divide(confusion, total, out=np.zeros_like(confusion), where=total > 0)
    font, small = ImageFont.load_default(13), ImageFont.load_default(11)
    text = max(int(font.getlength(name)) for name in names) + 16
    side = CELL * len(names)
    size = (max(text + side + 16, 8 + int(font.getlength(title)) + 16), TOP + side + text)
    canvas = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((8, 10), title, fill=_INK, font=font)
    draw.text((8, 32), "rows: truth; columns: prediction; % of the row", fill=_FAINT, font=small)
    for i, name in enumerate(names):
        y = TOP + i * CELL
        draw.text((text - 8, y + CELL / 2), name, fill=_INK, font=font, anchor="rm")
        for j in range(len(names)):
            x, full = text + j * CELL, _RIGHT if i == j else _WRONG
            strength = float(share[i, j]) ** 0.6  # small confusions are what one looks for
            colour = tuple(round(255 + (c - 255) * strength) for c in full)
            draw.rectangle((x, y, x + CELL - GAP - 1, y + CELL - GAP - 1), fill=colour)
            if round(100 * share[i, j]) > 0:
                ink = _BACKGROUND if strength > 0.6 else _INK
                middle = (x + CELL / 2 - 1, y + CELL / 2 - 1)
                draw.text(middle, f"{100 * share[i, j]:.0f}", fill=ink, font=small, anchor="mm")
    for j, name in enumerate(names):
        turned = _turned(name, font)
        canvas.paste(turned, (text + j * CELL + (CELL - turned.width) // 2, TOP + side + 6))
    return np.asarray(canvas)


def _turned(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    """A text that is read from the top down."""
    line = Image.new("RGB", (int(font.getlength(text)) + 2, 18), _BACKGROUND)
    ImageDraw.Draw(line).text((0, 9), text, fill=_INK, font=font, anchor="lm")
    return line.transpose(Image.Transpose.ROTATE_270)


def save_matrix(confusion: np.ndarray, names: Sequence[str], title: str, path: Path) -> Path:
    """Writes `compose_matrix`'s picture as a PNG; returns its path. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as new, new.open("wb") as file:
        Image.fromarray(compose_matrix(confusion, names, title)).save(file, "PNG")
    return path
