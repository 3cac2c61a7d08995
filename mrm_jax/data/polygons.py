"""Cityscapes' polygon files: the outlines that an annotator drew, later ones over earlier ones.

Drawn with Pillow, as the data set's own tools draw `*_labelIds.png`, so that both give the same
pixels. Source: the layout of `*_gtFine_polygons.json` and its label definition (names, ids).
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from mrm_jax.data.document import Node, parsed
from mrm_jax.data.labels import CITYSCAPES_LABELS

SIDE = 2**20  # px: what OpenCV takes of the sides of pictures


def rendered(content: bytes, megapixels: float) -> np.ndarray:
    """Label ids u8[H,W] of the file with this content; 0 where nothing is drawn.

    Raises ValueError for anything else than such a file, one of more than so many millions of
    pixels, and a label that Cityscapes lacks.
    """
    document = parsed(content)
    width, height = (document[key].whole(1, SIDE) for key in ("imgWidth", "imgHeight"))
    if width * height > megapixels * 1e6:
        raise ValueError(
            f"it promises {height} x {width} px, more than max_megapixels ({megapixels:g}) allows"
        )
    picture = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(picture)
    for shape in document["objects"].items():
        if (deleted := shape.get("deleted")) is not None and deleted.value:
            continue
        number = _id(shape["label"].text())
        points = [(x.number(), y.number()) for x, y in map(_point, shape["polygon"].items())]
        if len(points) < 2:
            raise shape["polygon"].wrong("a list of two or more points")
        if number >= 0:  # a licence plate has none: what lies below it stays
            pen.polygon(points, fill=number)
    return np.asarray(picture)


def _point(point: Node) -> list[Node]:
    return point.items(2)


def _id(label: str) -> int:
    # "cargroup" is several cars that the annotator could not part: cars all the same.
    name = label if label in CITYSCAPES_LABELS else label.removesuffix("group")
    if name not in CITYSCAPES_LABELS:
        raise ValueError(f"{label!r} is no label of Cityscapes")
    return CITYSCAPES_LABELS[name]
