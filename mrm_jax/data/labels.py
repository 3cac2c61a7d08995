"""Class tables, raw label ids of public data sets, and the one function that turns raw ids into
train ids.

Everything here is data but for `map_labels`. A config copies the tables it needs into
`data.classes` and `data.<domain>.raw_ids`, so that a run says itself what it was trained on.
Sources: the Cityscapes label definition (ids, train ids, colours), Playing for Data (GTA5 uses
Cityscapes ids), SYNTHIA-RAND-CITYSCAPES' own list, CamVid as grouped by SegNet.
"""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Sequence

import cv2
import numpy as np

from mrm_jax.config import Classes
from mrm_jax.errors import UsageError
from mrm_jax.label_ids import IGNORE

RawIds = tuple[tuple[int, ...], ...]

CITYSCAPES = Classes(
    names=(
        *(
            "road",
            "sidewalk",
            "building",
            "wall",
            "fence",
            "pole",
            "light",
            "sign",
            "vegetation",
            "terrain",
            "sky",
        ),
        *("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    ),
    colours=(
        *(
            (128, 64, 128),
            (244, 35, 232),
            (70, 70, 70),
            (102, 102, 156),
            (190, 153, 153),
            (153, 153, 153),
        ),
        *(
            (250, 170, 30),
            (220, 220, 0),
            (107, 142, 35),
            (152, 251, 152),
            (70, 130, 180),
            (220, 20, 60),
        ),
        *(
            (255, 0, 0),
            (0, 0, 142),
            (0, 0, 70),
            (0, 60, 100),
            (0, 80, 100),
            (0, 0, 230),
            (119, 11, 32),
        ),
    ),
)
"""The 19 classes of Cityscapes, also of GTA5, ACDC and Dark Zurich."""


def class_table(
    rows: Sequence[tuple[str, tuple[int, ...]] | tuple[str, tuple[int, ...], tuple[int, int, int]]],
) -> tuple[Classes, RawIds]:
    """The class table and the raw ids of rows (name, raw label ids) or (name, raw label ids, RGB
    colour); a class's train id is its place. Colours that are left out are made up, far apart.
    """
    names = tuple(row[0] for row in rows)
    colours = tuple(row[2] if len(row) == 3 else _colour(i) for i, row in enumerate(rows))
    return Classes(names, colours), tuple(tuple(row[1]) for row in rows)


def _colour(number: int) -> tuple[int, int, int]:
    # Hues a golden section apart never come close to an earlier one soon; every tenth is darker.
    hue, value = (number * 0.618034) % 1, 0.95 - 0.13 * (number // 10 % 5)
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55 + 0.4 * (number % 3) / 2, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def subset(names: tuple[str, ...]) -> Classes:
    """Some of Cityscapes' classes, in the order given, with Cityscapes' colours."""
    at = [CITYSCAPES.names.index(name) for name in names]
    return Classes(names=names, colours=tuple(CITYSCAPES.colours[i] for i in at))


DRAWN = subset(tuple(name for name in CITYSCAPES.names if name not in ("train", "motorcycle")))
"""The 17 classes of the drawn scenes; their labels are stored as train ids of this table."""

CAMVID = subset(
    (
        *("road", "sidewalk", "building", "fence", "pole", "sign", "vegetation", "sky"),
        *("person", "car", "bicycle"),
    )
)
"""CamVid's 11 classes as SegNet groups them (car holds lorries and buses, bicycle its rider too).
"""

CAMVID_IDS: RawIds = ((0,), (1,), (2,), (4,), (5,), (7,), (8,), (10,), (11,), (13,), (18,))
"""CamVid labels stored as Cityscapes train ids."""

CITYSCAPES_IDS: RawIds = tuple(
    (i,) for i in (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
)
"""Ids of `*_labelIds.png` of Cityscapes and of GTA5's palette PNGs. Files named
`*_labelTrainIds.png` need no table.
"""

CITYSCAPES_IGNORED: tuple[int, ...] = (*range(7), 9, 10, 14, 15, 16, 18, 29, 30, 34, 255)

CAMVID_SEGNET_IDS: RawIds = (
    *((3,), (4,), (1,), (), (7,), (2,), (), (6,), (5,), (), (0,)),  # road .. sky
    *((9,), (), (8,), (), (), (), (), (10,)),  # person .. bicycle
)
"""CamVid labels stored as SegNet's 11 ids (11 is unlabelled), for Cityscapes' 19 classes."""

_CAMVID_COLOURS: dict[str, tuple[int, int, int]] = {
    **{"Animal": (64, 128, 64), "Archway": (192, 0, 128), "Bicyclist": (0, 128, 192)},
    **{"Bridge": (0, 128, 64), "Building": (128, 0, 0), "Car": (64, 0, 128)},
    **{"CartLuggagePram": (64, 0, 192), "Child": (192, 128, 64), "Column_Pole": (192, 192, 128)},
    **{"Fence": (64, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)},
    **{"Misc_Text": (128, 128, 64), "MotorcycleScooter": (192, 0, 192)},
    **{"OtherMoving": (128, 64, 64), "ParkingBlock": (64, 192, 128), "Pedestrian": (64, 64, 0)},
    **{"Road": (128, 64, 128), "RoadShoulder": (128, 128, 192), "Sidewalk": (0, 0, 192)},
    **{"SignSymbol": (192, 128, 128), "Sky": (128, 128, 128), "SUVPickupTruck": (64, 128, 192)},
    **{"TrafficCone": (0, 0, 64), "TrafficLight": (0, 64, 64), "Train": (192, 64, 128)},
    **{"Tree": (128, 128, 0), "Truck_Bus": (192, 128, 192), "Tunnel": (64, 0, 64)},
    **{"VegetationMisc": (192, 192, 0), "Void": (0, 0, 0), "Wall": (64, 192, 0)},
}
_CAMVID_GROUPS: dict[str, tuple[str, ...]] = {
    "road": ("Road", "LaneMkgsDriv", "LaneMkgsNonDriv"),
    "sidewalk": ("Sidewalk", "ParkingBlock", "RoadShoulder"),
    "building": ("Building", "Archway", "Bridge", "Tunnel", "Wall"),
    "fence": ("Fence",),
    "pole": ("Column_Pole", "TrafficCone"),
    "sign": ("SignSymbol", "Misc_Text", "TrafficLight"),
    "vegetation": ("Tree", "VegetationMisc"),
    "sky": ("Sky",),
    "person": ("Pedestrian", "Child", "CartLuggagePram", "Animal"),
    "car": ("Car", "SUVPickupTruck", "Truck_Bus", "Train", "OtherMoving"),
    "bicycle": ("Bicyclist", "MotorcycleScooter"),
}
CAMVID_COLOURS = tuple(_CAMVID_COLOURS.values())
"""The colours of CamVid's own 32 classes; a class's raw id is its place among them."""

CAMVID_COLOUR_IDS: RawIds = tuple(
    tuple(list(_CAMVID_COLOURS).index(name) for name in _CAMVID_GROUPS.get(each, ()))
    for each in CITYSCAPES.names
)
"""CamVid's own 32 classes in SegNet's groups, for Cityscapes' 19 classes."""

CAMVID_COLOURS_IGNORED = (list(_CAMVID_COLOURS).index("Void"),)

CITYSCAPES_LABELS: dict[str, int] = {
    name: number
    for number, name in enumerate(
        (
            *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static"),
            *("dynamic", "ground", "road", "sidewalk", "parking", "rail track", "building"),
            *("wall", "fence", "guard rail", "bridge", "tunnel", "pole", "polegroup"),
            *("traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider"),
            *("car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
        )
    )
} | {"license plate": -1}
"""Ids of the labels that Cityscapes' polygon files name."""

SYNTHIA_IDS: RawIds = tuple(
    (i,) for i in (3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11)
)
"""Ids of SYNTHIA-RAND-CITYSCAPES; terrain 16, truck 18 and train 20 never occur in it."""

SYNTHIA_IGNORED: tuple[int, ...] = (0, 13, 14, 22, 255)


@functools.lru_cache(maxsize=16)
def lookup(raw_ids: RawIds, ignored_ids: tuple[int, ...], classes: int) -> np.ndarray:
    """i16[65536] from raw id to train id: 255 for `ignored_ids`, -1 for an id that stands in
    neither list.

    `raw_ids` holds a row of raw ids for every class; empty: labels hold train ids 0..`classes`-1
    already. Raises UsageError for an id given twice or outside 0..65535.
    """
    rows = raw_ids or tuple((i,) for i in range(classes))
    table = np.full(65536, -1, np.int16)
    for train_id, row in enumerate((*rows, ignored_ids)):
        for raw in row:
            if not 0 <= raw <= 65535:
                raise UsageError(
                    f"raw label id {raw} cannot occur in a picture; ids lie in 0..65535.",
                    field="raw_ids",
                    value=raw,
                )
            if table[raw] != -1:
                raise UsageError(
                    f"raw label id {raw} occurs twice in raw_ids and ignored_ids",
                    "keep one.",
                    field="raw_ids",
                    value=raw,
                )
            table[raw] = IGNORE if train_id == len(rows) else train_id
    table.flags.writeable = False
    return table


def map_labels(
    raw: np.ndarray,
    raw_ids: RawIds,
    ignored_ids: tuple[int, ...],
    *,
    classes: int,
    name: str,
    field: str,
) -> np.ndarray:
    """Train ids u8[H,W] of raw ids u8 or u16 [H,W].

    Raises UsageError naming the file (`name`), the ids that stand in neither list and the config
    `field` to change.
    """
    table = lookup(raw_ids, ignored_ids, classes)
    if raw.dtype == np.uint8:
        unknown = (table[:256] < 0).astype(np.uint8)
        if not cv2.LUT(raw, unknown).any():
            return cv2.LUT(raw, table[:256].astype(np.uint8))
    mapped = table[raw]
    if mapped.min(initial=0) < 0:
        unknown = np.unique(raw[mapped < 0])
        shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        share = float(np.mean(mapped < 0))
        raise UsageError.at(
            name,
            f": label id {shown} ({share:.1%} of the pixels) is in neither {field}.raw_ids "
            f"nor {field}.ignored_ids",
            "add it to one of them, or correct the file.",
        )
    return mapped.astype(np.uint8)


def colourise(label: np.ndarray, classes: Classes) -> np.ndarray:
    """The picture u8[H,W,3] of train ids u8[H,W] in the table's colours; other ids are black."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(classes.colours)] = classes.colours
    return palette[label]
