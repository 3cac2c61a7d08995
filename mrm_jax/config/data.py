"""What is read: classes, domains, rare class sampling, crops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mrm_jax.options import option


@dataclass(frozen=True)
class Classes:
    """The classes that the network tells apart, by train id. Ready tables: `data/labels.py`."""

    names: tuple[str, ...] = option((), "Class names; their number is the number of logits.")
    colours: tuple[tuple[int, int, int], ...] = option(
        (), "RGB colour of each class, 0..255.", low=0, high=255
    )


@dataclass(frozen=True)
class Domain:
    """A set of pictures, with labels where it is a source or is evaluated on."""

    kind: Literal["drawn", "folder"] = option("folder", "Where the pictures come from.")
    path: str | None = option(
        None,
        "Root folder, or a set that `prepare` wrote. For `evaluation`, empty means the target's.",
    )
    images: str = option(
        "",
        "Folder of the pictures below `path`, searched recursively; ** matches any number of "
        "folders.",
    )
    image_suffix: str = option(
        "", "How a picture's name ends; the rest is its stem. Empty: any picture file."
    )
    labels: str | None = option(None, "Folder of the labels below `path`. Never read for a target.")
    label_suffix: str = option(
        ".png", "A picture's label is labels/<stem><label_suffix>; .json: Cityscapes polygons."
    )
    label_colours: tuple[tuple[int, int, int], ...] = option(
        (),
        "For labels stored as RGB colours: a colour's raw id is its place in this list.",
        low=0,
        high=255,
    )
    lossy_labels: bool = option(
        False,
        "Take labels stored in a way that changes values, such as JPEG, as they are.",
        runtime=True,
    )
    listing: str | None = option(
        None,
        "Text file below `path` with one stem a line: only these are used. A prepared set has "
        "splits instead.",
    )
    raw_ids: tuple[tuple[int, ...], ...] = option(
        (), "Raw label ids of every class; empty: train ids are stored."
    )
    ignored_ids: tuple[int, ...] = option(
        (255,), "Raw label ids that are ignored. Any other id is an error."
    )
    resize: tuple[int, int] | None = option(
        None,
        "Box (long, short) that a picture is fitted into; empty: native size.",
        source="peer: mmseg pipelines",
        unit="px",
        low=1,
    )
    category_limit: float = option(
        1.0,
        "A crop is drawn again while one class covers this share of it; 1: off.",
        source="DAFormer, 0.75",
        low=0,
        high=1,
    )
    margins: tuple[int, int, int, int] = option(
        (0, 0, 0, 0),
        "Rows/columns (top, bottom, left, right) without pseudo-labels.",
        source="peer: uda/dacs.py",
        unit="px",
        low=0,
    )
    remark: str = option("", "A remark that is printed with every score on these pictures.")
    on_unreadable: Literal["error", "skip"] = option(
        "error", "What to do with a picture that cannot be read."
    )
    max_megapixels: float = option(
        100.0,
        "A picture whose header promises more millions of pixels is unreadable.",
        unit="Mpx",
        low=1e-6,
        runtime=True,
    )
    split: str = option(
        "train", "Which split of a prepared set; drawn scenes: which stream, train or val."
    )
    look: Literal["rendered", "camera"] = option(
        "rendered", "Drawn scenes: which of the two looks."
    )
    count: int = option(600, "Drawn scenes: how many different ones.", low=1)
    size: tuple[int, int] = option((96, 192), "Drawn scenes: height and width.", unit="px", low=1)


@dataclass(frozen=True)
class RareClass:
    """Rare class sampling: a source picture is drawn for a class in it (DAFormer sec. 3.3)."""

    enabled: bool = option(False, "Draw source pictures by class; False: each once an epoch.")
    temperature: float = option(
        0.01,
        "Of the softmax over 1 - frequency; small: rare classes only.",
        source="DAFormer",
        low=1e-6,
    )
    min_pixels: int = option(
        3000,
        "A picture is drawn for a class of which its stored label holds more pixels than this.",
        source="DAFormer",
        unit="px",
        low=0,
    )
    crop_share: float = option(
        0.5,
        "A crop should hold more than this times `min_pixels` of the class; 0: any crop does.",
        source="DAFormer 0.5; 1024 px crops: HRDA 2",
        low=0,
    )
    min_share: float | None = option(
        None,
        "Instead of both: share of the crop's area that the class has to exceed, in the picture "
        "as it is resized for training and in the crop.",
        low=0,
        high=1,
    )
    tries: int = option(
        10, "Crops drawn again at most; the last is taken.", source="DAFormer", low=0
    )
    on_missing: Literal["error", "warn"] = option(
        "error", "What to do with a class without any such picture; warn: leave it out of the draw."
    )


@dataclass(frozen=True)
class Data:
    """What is read."""

    classes: Classes = option(Classes(), "The class table.")
    source: Domain = option(Domain(), "Labelled source domain.", step="absent")
    target: Domain = option(
        Domain(), "Target domain; its labels are never read in training.", step="absent"
    )
    evaluation: Domain = option(
        Domain(), "Labelled pictures that scores are computed on.", step="absent"
    )
    crop: tuple[int, int] = option(
        (512, 512), "Height and width of a training crop.", unit="px", low=1
    )
    scale: tuple[float, float] = option(
        (1.0, 1.0),
        "Range of the factor, drawn for each training picture, by which it is larger than `resize` "
        "makes it before it is cropped.",
        source="VFM-UDA: 0.9 to 1.1",
        low=0.1,
        high=10,
        step="absent",
    )
    flip: float = option(
        0.5,
        "Probability of a horizontal flip.",
        source="peer: mmseg pipelines",
        low=0,
        high=1,
        step="absent",
    )
    rare_class: RareClass = option(RareClass(), "Rare class sampling of the source.", step="absent")
    workers: int = option(
        0, "Loader processes; 0: threads of this one.", runtime=True, low=0, step="absent"
    )
    cache: bool = option(False, "Keep decoded pictures in memory.", runtime=True, step="absent")
