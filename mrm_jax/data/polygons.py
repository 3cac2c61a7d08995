"""Cityscapes' polygon files: the outlines that an annotator drew, later ones over earlier ones.

Drawn with Pillow, as the data set's own tools draw `*_labelIds.png`, so that both give the same
pixels. Source: the layout of `*_gtFine_polygons.json` and its label definition (names, ids).
"""

from __future__ import annotations

import json

import numpy as np
from PIL import Image, ImageDraw

from mrm_jax.data.labels import CITYSCAPES_LABELS


def rendered(content: bytes) -> np.ndarray:
    """Label ids u8[H,W] of the file with this content; 0 where nothing is drawn.

    Raises ValueError for anything else than such a file, and for a label that Cityscapes lacks.
    """
    try:
        document = json.loads(content)
        size = int(document["imgWidth"]), int(document["imgHeight"])
        shapes = [(shape["label"], shape["polygon"]) for shape in _kept(document["objects"])]
    except (KeyError, TypeError) as error:
        raise ValueError(f"it lacks {error}") from error
    picture = Image.new("L", size, 0)
    pen = ImageDraw.Draw(picture)
    for label, polygon in shapes:
        number = _id(label)
        if number >= 0:  # a licence plate has none: what lies below it stays
            pen.polygon([tuple(point) for point in polygon], fill=number)
    return np.asarray(picture)


def _kept(shapes: list[dict]) -> list[dict]:
    return [shape for shape in shapes if not shape.get("deleted")]


def _id(label: str) -> int:
    # "cargroup" is several cars that the annotator could not part: cars all the same.
    name = label if label in CITYSCAPES_LABELS else label.removesuffix("group")
    if name not in CITYSCAPES_LABELS:
        raise ValueError(f"'{label}' is no label of Cityscapes")
    return CITYSCAPES_LABELS[name]
