"""How many training crops a second one core makes: from prepared sets, from folders, and in the way
of the published code, which decodes the full picture, resizes all of it and then crops.

Pictures are drawn scenes of the size of GTA5's and Cityscapes', enlarged and with the noise of a
camera, so that PNG compresses them about as it does photographs; or a user's own.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mrm_jax.config import Domain
from mrm_jax.data import datasets, labels, sources, transforms
from mrm_jax.data.drawn import scenes
from mrm_jax.data.locate import locate
from mrm_jax.data.prepared import prepare, reading

NOISE = 2.0
"""Standard deviation of the noise on drawn pictures, grey levels."""


@dataclass(frozen=True)
class Case:
    """Pictures of a size (height, width) px, and how they are trained on."""

    name: str
    data_set: str
    size: tuple[int, int]
    box: tuple[int, int]
    crop: tuple[int, int]


CASES = (
    Case("GTA5, 512 px crops", "gta", (1052, 1914), (1280, 720), (512, 512)),
    Case("GTA5, 1024 px crops", "gta", (1052, 1914), (2560, 1440), (1024, 1024)),
    Case("Cityscapes, 512 px crops", "cityscapes", (1024, 2048), (1024, 512), (512, 512)),
    Case("Cityscapes, 1024 px crops", "cityscapes", (1024, 2048), (2048, 1024), (1024, 1024)),
)
MAX_RATIO, FLIP = 0.75, 0.5


def measure_reading(
    folder: Path, codecs: Sequence[str], *, pictures: int, rounds: int, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """A report for every case and way, JSON as it is: `what` "data", `case`, `way`, `seconds` a
    crop {median, min, max, count}, `images_per_second`, `ratio` to the published way in the same
    rounds, and for a codec that loses something `pixels`, what it does to them.

    Sets are written below `folder`. One thread; the ways take turns, picture by picture.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for name in dict.fromkeys(case.data_set for case in CASES):
            mine = [case for case in CASES if case.data_set == name]
            say(f"drawing {pictures} pictures of the size of {name}'s ...")
            raw = folder / name
            scenes = [_draw(raw, name, mine[0].size, number) for number in range(pictures)]
            for case in mine:
                say(f"{case.name}: {rounds} rounds ...")
                yield from _measure(folder, raw, case, codecs, rounds, scenes)
    finally:
        cv2.setNumThreads(threads)


def _draw(root: Path, name: str, size: tuple[int, int], number: int) -> np.ndarray:
    """Writes a picture and its label as the data set stores them; returns the picture."""
    image, label = scenes.draw_scene(
        0, "train", number, size=(size[0] // 4, size[1] // 4), look="camera"
    )
    large = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(number).normal(0, NOISE, large.shape)
    whole = np.clip(np.rint(large + noise), 0, 255).astype(np.uint8)
    ids = np.zeros(256, np.uint8)
    ids[: len(labels.CITYSCAPES_IDS)] = [row[0] for row in labels.CITYSCAPES_IDS]
    raw = ids[transforms.resize_label(label, size)]
    if name == "gta":
        picture, path = root / f"images/{number:05d}.png", root / f"labels/{number:05d}.png"
    else:
        stem = f"train/ulm/ulm_{number:06d}_000019"
        picture = root / f"leftImg8bit/{stem}_leftImg8bit.png"
        path = root / f"gtFine/{stem}_gtFine_labelIds.png"
    for file in (picture, path):
        file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(picture), whole[..., ::-1])
    stored = Image.fromarray(raw)
    if name == "gta":
        stored = stored.convert("P")
    stored.save(path)
    return whole


def _measure(
    folder: Path,
    raw: Path,
    case: Case,
    codecs: Sequence[str],
    rounds: int,
    scenes: Sequence[np.ndarray],
) -> Iterator[dict[str, Any]]:
    located = locate(datasets.DATA_SETS[case.data_set], raw)["train"]
    domain = replace(located.domain, path=str(raw), resize=case.box)
    ways: dict[str, Callable[[int, np.random.Generator], Any]] = {
        "published": lambda i, rng: _published(domain, files_of, i, case, rng),
        "folder": lambda i, rng: _ours(folders, i, case, rng),
    }
    files_of = list(zip(located.pictures.values(), located.labels.values(), strict=True))
    folders = sources.open_labelled(domain, labels.CITYSCAPES, field="bench")
    sets = {}
    for codec in codecs:
        sets[codec] = _prepared(folder, raw, case, codec)
        ways[f"prepared, {codec}"] = lambda i, rng, codec=codec: _ours(sets[codec], i, case, rng)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number, (way, make) in itertools.product(range(-1, rounds), ways.items()):
        rng = np.random.default_rng(max(number, 0))
        began = time.perf_counter()
        make(number % len(scenes), rng)
        if number >= 0:  # the first call opens files
            seconds[way].append(time.perf_counter() - began)
    for way, times in seconds.items():
        median = statistics.median(times)
        report = {
            "what": "data",
            "device": "one CPU core",
            "case": f"{case.name}, drawn data",
            "way": way,
            "seconds": {
                "median": median,
                "min": min(times),
                "max": max(times),
                "count": len(times),
            },
            "images_per_second": 1 / median,
            "ratio": statistics.median(seconds["published"]) / median,
        }
        if way == "prepared, jpeg95":
            report["pixels"] = _pixels(sets["jpeg95"], folders)
        yield report


def _native(case: Case, codec: str) -> bool:
    """Whether the set keeps its own size, because the one it is trained at is larger. Not with
    jpeg95: of a picture that is stored enlarged, too, no more than a crop is decoded.
    """
    height, width = case.size
    larger = transforms.keep_ratio_size(height, width, case.box)[0] >= height
    return larger and codec != "jpeg95"


def _prepared(folder: Path, raw: Path, case: Case, codec: str) -> reading.RecordsLabelled:
    to = folder / f"{case.data_set}_{case.box[0]}_{codec}"
    resize = "native" if _native(case, codec) else case.box
    options = prepare.Options(resize=resize, codec=codec)
    data_set = datasets.DATA_SETS[case.data_set]
    prepare.prepare(data_set, raw, to, options, say=lambda line: None, progress=_silent)
    domain = Domain(path=str(to), resize=case.box)
    return reading.RecordsLabelled(domain, labels.CITYSCAPES, "bench")


@contextmanager
def _silent(total: int) -> Iterator[Callable[[int], None]]:
    del total
    yield lambda done: None


def _ours(pictures: sources.LabelledPictures, index: int, case: Case, rng: Any) -> Any:
    image, label = transforms.fit_source(*pictures.pair(index), case.box)
    return transforms.augment_source(
        image, label, rng, crop=case.crop, max_ratio=MAX_RATIO, flip=FLIP
    )


def _published(domain: Domain, paths: Sequence[Any], index: int, case: Case, rng: Any) -> Any:
    """Decode, resize all, crop where the label is varied, flip, as mmseg 0.16 does: with numpy's
    `unique` for the check of a crop, and labels, which hold train ids there, read by Pillow.
    """
    picture, label_file = paths[index]
    stored: Any = cv2.imdecode(np.frombuffer(picture.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    label = np.asarray(Image.open(str(label_file)))
    size = transforms.keep_ratio_size(label.shape[0], label.shape[1], case.box)
    image = transforms.resize_image(cv2.cvtColor(stored, cv2.COLOR_BGR2RGB), size)
    label = transforms.resize_label(label, size)
    box = transforms.Box(0, 0, 0, 0)
    for _ in range(transforms.CROP_CHECKS):
        box = transforms.draw_box(rng, size, case.crop)
        ids, counts = np.unique(transforms.cut(label, box), return_counts=True)
        counts = counts[ids != transforms.IGNORE]
        if len(counts) > 1 and counts.max() < MAX_RATIO * counts.sum():
            break
    image, label = transforms.cut(image, box), transforms.cut(label, box)
    if rng.random() < FLIP:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    return transforms.pad_to(image, case.crop, 0), transforms.pad_to(label, case.crop, 255)


def _pixels(stored: reading.RecordsLabelled, folders: sources.LabelledPictures) -> dict[str, float]:
    """What a codec does to pixels: mean and largest absolute difference, grey levels, and PSNR."""
    differences = []
    for i in range(len(stored)):
        image, original = stored.image(i), folders.image(i)
        original = transforms.resize_image(original, image.shape[:2])
        differences.append(image.astype(np.int16) - original)
    error = np.abs(np.stack(differences)).astype(np.float64)
    return {
        "mean_difference": float(error.mean()),
        "largest_difference": float(error.max()),
        "psnr": float(20 * np.log10(255) - 10 * np.log10(np.square(error).mean())),
    }
