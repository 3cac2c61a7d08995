"""The public data sets as their official downloads unpack: which splits there are, where pictures
and labels lie, how labels are stored, and under which terms the set is given.

Everything here is data but for `locate`. Sources: each set's own pages, and for sizes and category
limits the released configs of DAFormer, HRDA and MIC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mrm_jax.config import Classes, Domain
from mrm_jax.data import finding, labels
from mrm_jax.data.tree import File, walk, walk_archives
from mrm_jax.errors import UsageError

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
    labels is of an unlabelled split. expected: pictures of the official download. native: never
    resized, because scores are computed at the size of its labels.
    """

    readings: tuple[Domain, ...]
    expected: int | None = None
    native: bool = False


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


def folder(classes: Classes, domain: Domain, split: str = "train") -> DataSet:
    """A data set of one's own, as `domain` describes it."""
    readings = (replace(domain, split=split), replace(domain, labels=None, split=split))
    return DataSet("folder", "A folder", "", "its owner's", classes, {split: Split(readings)})


def limited(data_set: DataSet, megapixels: float | None) -> DataSet:
    """The data set with pictures of at most so many millions of pixels; None: as it is."""
    if megapixels is None:
        return data_set
    splits = {
        name: replace(
            split,
            readings=tuple(replace(d, max_megapixels=megapixels) for d in split.readings),
        )
        for name, split in data_set.splits.items()
    }
    return replace(data_set, splits=splits)


@dataclass(frozen=True)
class Located:
    """The files of a split: stem to picture and stem to label, and stems that occur twice.

    domain: the reading that fits, which says how labels are stored. `labels` is empty for an
    unlabelled split; where it is not, it may lack some. `orphans`: labels that have no picture.
    `copies`: stems of pictures that lie there twice and count once. `lacking`: stems that the
    split's list names and that have none. `others`: names of pictures in the folder where the
    pattern starts that no split takes.
    """

    split: str
    domain: Domain
    pictures: dict[str, File]
    labels: dict[str, File]
    repeated: dict[str, list[File]]
    orphans: dict[str, File]
    copies: list[str]
    taken: frozenset[File]
    lacking: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def left_out(self) -> list[str]:
        """A line for each kind of picture that is there and not used."""
        return finding.left_out(self.copies, self.others)


def locate(data_set: DataSet, root: Path) -> dict[str, Located]:
    """The splits of a download that lies in `root`: a folder as it unpacks, possibly below other
    folders, a folder with zip archives, or an archive.

    Raises UsageError where no split is found, or an archive is refused.
    """
    field = f"{data_set.name} --from"
    if not root.exists():
        raise UsageError.at(field, f": there is no folder {root}.")
    names = [*(walk(root) if root.is_dir() else ()), *walk_archives(root, field=field)]
    names.sort(key=lambda pair: pair[0])
    found = {}
    for split, what in data_set.splits.items():
        candidates = [_read_as(domain, split, names) for domain in what.readings]
        best = max(candidates, key=lambda c: (len(c.labels), len(c.pictures)))
        if best.pictures:
            found[split] = best
    if not found:
        first = next(iter(data_set.splits.values())).readings[0]
        where = "/".join(part for part in (first.images, f"*{first.image_suffix}") if part)
        raise UsageError.at(
            field,
            f": {root} holds no picture of {data_set.title}; it should hold files such as "
            f"{where}, as the download unpacks, or its zip archives.",
        )
    return _with_others(found, names)


def _with_others(found: dict[str, Located], names: list[tuple[str, File]]) -> dict[str, Located]:
    """`found`, each picture that no split takes in the first split whose pattern starts above."""
    taken = frozenset().union(*(each.taken for each in found.values()))
    rest = [name for name, file in finding.pictures(names) if file not in taken]
    told = {}
    for split, each in found.items():
        start = finding.fixed_part(each.domain.images)
        mine = [name for name in rest if not start or f"/{start}/" in f"/{name}"]
        rest = [name for name in rest if name not in set(mine)] if mine else rest
        told[split] = replace(each, others=tuple(mine))
    return told


def _read_as(domain: Domain, split: str, names: list[tuple[str, File]]) -> Located:
    all_names, lacking = names, list[str]()
    if domain.labels and not domain.images:  # labels below the pictures are no pictures
        inside = f"{domain.labels}/"
        names = [pair for pair in names if not pair[0].startswith(inside)]
    matched = finding.by_stem(names, domain.images, domain.image_suffix, leading=True)
    pictures, copies = matched.once()
    if domain.listing:
        lists = [file for name, file in names if f"/{name}".endswith(f"/{domain.listing}")]
        wanted = finding.stems(lists[0], pictures) if lists else []
        lacking = [stem for stem in wanted if stem not in pictures]
        pictures = {stem: pictures[stem] for stem in wanted if stem in pictures}
    given: dict[str, list[File]] = {}
    if domain.labels and pictures:
        labelled = finding.by_stem(all_names, domain.labels, domain.label_suffix, leading=True)
        given = labelled.every()
    return Located(
        split=split,
        domain=domain,
        pictures={stem: found[0] for stem, found in pictures.items()},
        labels={stem: given[stem][0] for stem in pictures if stem in given},
        repeated={stem: found for stem, found in pictures.items() if len(found) > 1},
        orphans={} if domain.listing else _orphans(given, {*pictures, *copies}),
        copies=[] if domain.listing else copies,
        lacking=tuple(lacking) if pictures else (),
        taken=frozenset(
            file for stems in (*matched, given) for found in stems.values() for file in found
        ),
    )


def _orphans(given: dict[str, list[File]], pictures: set[str]) -> dict[str, File]:
    """Labels without a picture; "00001_labelTrainIds" beside "00001" is another form of one."""
    return {
        stem: found[0]
        for stem, found in given.items()
        if stem not in pictures and stem.rpartition("_")[0] not in pictures
    }
