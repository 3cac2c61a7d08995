"""The public data sets as their official downloads unpack: which splits there are, where pictures
and labels lie, how labels are stored, and under which terms the set is given.

Everything here is data; `locating` finds the files. Sources: each set's own pages, and for sizes
and category limits the released configs of DAFormer, HRDA and MIC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mrm_jax.config import Classes, Domain
from mrm_jax.data import labels

GTA = Domain(
    path="data/gta",
    images="images",
    labels="labels",  # the download's palette PNGs
    raw_ids=labels.CITYSCAPES_IDS,
    ignored_ids=labels.CITYSCAPES_IGNORED,
    resize=(1280, 720),
    category_limit=0.75,
)
SYNTHIA = Domain(
    path="data/synthia",
    images="RGB",
    labels="GT/LABELS",  # 16-bit colour PNGs, the class in the red channel
    raw_ids=labels.SYNTHIA_IDS,
    ignored_ids=labels.SYNTHIA_IGNORED,
    resize=(1280, 760),
    category_limit=0.75,
)
CITYSCAPES = Domain(
    path="data/cityscapes",
    images="leftImg8bit/train",
    image_suffix="_leftImg8bit.png",
    labels="gtFine/train",
    label_suffix="_gtFine_labelIds.png",
    raw_ids=labels.CITYSCAPES_IDS,
    ignored_ids=labels.CITYSCAPES_IGNORED,
    resize=(1024, 512),
)
CITYSCAPES_VAL = replace(CITYSCAPES, images="leftImg8bit/val", labels="gtFine/val", split="val")
ACDC = Domain(
    path="data/acdc",
    images="rgb_anon/**/train",  # a folder a condition and sequence, or all in one
    image_suffix="_rgb_anon.png",
    labels="gt/**/train",
    label_suffix="_gt_labelTrainIds.png",
    resize=(960, 540),
)
_HIDDEN = "val, where papers report the hidden test split"
ACDC_VAL = replace(ACDC, images="rgb_anon/**/val", labels="gt/**/val", split="val", remark=_HIDDEN)
DARK_ZURICH = replace(ACDC, path="data/dark_zurich", images="rgb_anon/train/night", labels=None)
DARK_ZURICH_VAL = replace(
    ACDC,
    path="data/dark_zurich",
    images="rgb_anon/val",
    labels="gt/val",
    split="val",
    remark=_HIDDEN,
)
CAMVID = Domain(
    path="data/camvid",
    images="images",
    image_suffix=".jpg",
    labels="labels",
)


@dataclass(frozen=True)
class Split:
    """A split of a data set.

    readings: the ways in which its labels may be stored, the preferred one first; a reading without
    labels is of an unlabelled split. otherwise: how it is read where none of them finds a picture.
    expected: pictures of the official download. native: never resized, because scores are computed
    at the size of its labels.
    """

    readings: tuple[Domain, ...]
    expected: int | None = None
    native: bool = False
    otherwise: Domain | None = None


@dataclass(frozen=True)
class DataSet:
    """A data set: `name` on the command line, what it is called and where and under which terms it
    is given; `odd` says of pictures of the official download what is known to be wrong with them;
    `field` is the config path that describes a data set of one's own.
    """

    name: str
    title: str
    homepage: str
    licence: str
    classes: Classes
    splits: Mapping[str, Split]
    odd: Mapping[str, str] = field(default_factory=dict)
    field: str = ""


def _cityscapes(split: str, domain: Domain) -> tuple[Domain, ...]:
    """Labels as label ids, as polygons, or as train ids that a script has written."""
    domain = replace(domain, images=f"leftImg8bit/{split}", labels=f"gtFine/{split}", split=split)
    train_ids = {"raw_ids": (), "ignored_ids": (255,)}
    return (
        domain,
        replace(domain, label_suffix="_gtFine_polygons.json"),
        replace(domain, label_suffix="_gtFine_labelTrainIds.png", **train_ids),
    )


def _camvid() -> dict[str, Split]:
    """In three layouts: lists of stems (docs/data.md), SegNet's folders, and the official one."""
    official = Domain(
        images="701_StillsRaw_full",
        image_suffix=".png",
        labels="LabeledApproved_full",
        label_suffix="_L.png",
        label_colours=labels.CAMVID_COLOURS,
        raw_ids=labels.CAMVID_COLOUR_IDS,
        ignored_ids=labels.CAMVID_COLOURS_IGNORED,
        split="all",
    )
    splits = {"all": Split((official,), 701)}
    for split, expected in (("train", 367), ("val", 101), ("test", 233)):
        segnet = Domain(
            images=split,
            image_suffix=".png",
            labels=f"{split}annot",
            raw_ids=labels.CAMVID_SEGNET_IDS,
            ignored_ids=(11, 255),
            split=split,
        )
        ours = replace(CAMVID, images=f"images/{split}", labels=f"labels/{split}", split=split)
        splits[split] = Split((ours, segnet), expected, native=split != "train")
    for name in ("day_train", "day_val", "day_test", "dusk_train", "dusk_test"):
        listed = replace(CAMVID, listing=f"splits/{name}.txt", split=name)
        splits[name] = Split((listed,), native=not name.endswith("_train"))
    return splits


_ACDC_SPLITS = {
    split: replace(
        ACDC,
        images=f"rgb_anon/**/{split}",
        labels=f"gt/**/{split}" if split != "test" else None,
        split=split,
    )
    for split in ("train", "val", "test")
}

DATA_SETS: dict[str, DataSet] = {
    each.name: each
    for each in (
        DataSet(
            "gta",
            "GTA5 (Playing for Data)",
            "https://download.visinf.tu-darmstadt.de/data/from_games/",
            "for research and educational use in a non-commercial setting",
            labels.CITYSCAPES,
            {"train": Split((GTA,), 24966)},
            {stem: "its label has another size" for stem in ("15188", "17705")},
        ),
        DataSet(
            "synthia",
            "SYNTHIA-RAND-CITYSCAPES",
            "https://synthia-dataset.net/",
            "CC BY-NC-SA 3.0",
            labels.CITYSCAPES,
            {"train": Split((SYNTHIA,), 9400)},
        ),
        DataSet(
            "cityscapes",
            "Cityscapes",
            "https://www.cityscapes-dataset.com/",
            "for non-commercial use; no redistribution (its own terms)",
            labels.CITYSCAPES,
            {
                "train": Split(_cityscapes("train", CITYSCAPES), 2975),
                "val": Split(_cityscapes("val", CITYSCAPES), 500, native=True),
                "test": Split(
                    (replace(CITYSCAPES, images="leftImg8bit/test", labels=None, split="test"),),
                    1525,
                    native=True,
                ),
            },
        ),
        DataSet(
            "acdc",
            "ACDC",
            "https://acdc.vision.ee.ethz.ch/",
            "for non-commercial use; no redistribution (its own terms)",
            labels.CITYSCAPES,
            {
                "train": Split((_ACDC_SPLITS["train"],), 1600),
                "val": Split((_ACDC_SPLITS["val"],), 406, native=True),
                "test": Split((_ACDC_SPLITS["test"],), 2000, native=True),
            },
        ),
        DataSet(
            "dark_zurich",
            "Dark Zurich",
            "https://www.trace.ethz.ch/publications/2019/GCMA_UIoU/",
            "for non-commercial use (its own terms)",
            labels.CITYSCAPES,
            {
                "train": Split((DARK_ZURICH,), 2416),
                "val": Split((DARK_ZURICH_VAL,), 50, native=True),
                "test": Split(
                    (replace(DARK_ZURICH, images="rgb_anon/test", split="test"),), 151, native=True
                ),
            },
        ),
        DataSet(
            "camvid",
            "CamVid",
            "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
            "for research and personal use",
            labels.CITYSCAPES,
            _camvid(),
        ),
    )
}
"""The public data sets by the name that `prepare` and `check` take."""


def folder(
    classes: Classes, domain: Domain, split: str = "train", field: str = "config.data.source"
) -> DataSet:
    """A data set of one's own, as `domain` describes it; pictures alone may lie at any depth.
    `field`: the config path of the domain."""
    readings = (replace(domain, split=split), replace(domain, labels=None, split=split))
    alone = replace(readings[1], images="", image_suffix="", listing=None)
    splits = {split: Split(readings, otherwise=alone if domain.images else None)}
    return DataSet("folder", "A folder", "", "its owner's", classes, splits, field=field)


def limited(data_set: DataSet, megapixels: float | None) -> DataSet:
    """The data set with pictures of at most so many millions of pixels; None: as it is."""
    if megapixels is None:
        return data_set
    splits = {
        name: replace(
            split,
            readings=tuple(replace(d, max_megapixels=megapixels) for d in split.readings),
            otherwise=split.otherwise and replace(split.otherwise, max_megapixels=megapixels),
        )
        for name, split in data_set.splits.items()
    }
    return replace(data_set, splits=splits)
