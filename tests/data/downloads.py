"""Small data sets in the layouts of the official downloads: names, encodings, palettes, as the
publishers store them.
"""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mrm_jax.config import Classes, Config, Data, Domain, Model, Train
from mrm_jax.data import labels as tables

CITYSCAPES_ID = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
SYNTHIA_ID = (3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11)
CLASSES = (0, 2, 8, 10, 13)  # road, building, vegetation, sky, car: all sets have them


def scene(seed: int, size=(48, 80)) -> tuple[np.ndarray, np.ndarray]:
    """A picture u8[H,W,3] and its train ids u8[H,W]: blocks of a few classes, some ignored."""
    rng = np.random.default_rng(seed)
    cells = rng.choice((*CLASSES, 255), size=(size[0] // 8, size[1] // 8), p=(0.18,) * 5 + (0.1,))
    label = np.kron(cells, np.ones((8, 8))).astype(np.uint8)
    image = (label[..., None] * np.array([9, 5, 3]) % 200).astype(np.uint8)
    image += rng.integers(0, 56, image.shape, np.uint8)
    return image, label


def save_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[..., ::-1])


def ids(label: np.ndarray, table) -> np.ndarray:
    """Raw ids of train ids; 0, which every table ignores, where they are 255."""
    lookup = np.zeros(256, np.uint16)
    lookup[: len(table)] = table
    return lookup[label]


def save_grey(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), array)


def save_palette(path: Path, array: np.ndarray) -> None:
    """GTA5: a palette PNG; its colours say nothing about the ids to a reader that expands them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array.astype(np.uint8), "L").convert("P")
    picture.putpalette([255 - i for i in range(256) for _ in range(3)])
    picture.save(path)


def save_synthia(path: Path, array: np.ndarray) -> None:
    """SYNTHIA: 16-bit colour, the class in the red channel, an instance number in the green one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.zeros((*array.shape, 3), np.uint16)
    stored[..., 2], stored[..., 1] = array, 300 + array
    cv2.imwrite(str(path), stored)


def save_polygons(path: Path, label: np.ndarray) -> None:
    """Cityscapes' polygons: one rectangle a block of 8 x 8 px, drawn over an unlabelled ground."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = dict(zip(CLASSES, ("road", "building", "vegetation", "sky", "cargroup"), strict=True))
    shapes = []
    for top in range(0, label.shape[0], 8):
        for left in range(0, label.shape[1], 8):
            train_id = int(label[top, left])
            box = [[left, top], [left + 7, top], [left + 7, top + 7], [left, top + 7]]
            shapes.append({"label": names.get(train_id, "out of roi"), "polygon": box})
    whole = [[0, 0], [label.shape[1], 0], [label.shape[1], label.shape[0]]]
    shapes.append({"label": "car", "polygon": whole, "deleted": 1})
    shapes.append({"label": "license plate", "polygon": whole})
    height, width = label.shape
    path.write_text(json.dumps({"imgHeight": height, "imgWidth": width, "objects": shapes}))


def gta(root: Path, count=3, size=(48, 80)) -> None:
    for k in range(count):
        image, label = scene(k, size)
        save_image(root / f"images/{k + 1:05d}.png", image)
        save_palette(root / f"labels/{k + 1:05d}.png", ids(label, CITYSCAPES_ID))


def synthia(root: Path, count=3, size=(48, 80)) -> None:
    for k in range(count):
        image, label = scene(k, size)
        save_image(root / f"RGB/{k:07d}.png", image)
        save_synthia(root / f"GT/LABELS/{k:07d}.png", ids(label, SYNTHIA_ID))


def cityscapes(root: Path, count=3, size=(48, 80), labels="labelIds") -> None:
    for split, city in (("train", "ulm"), ("val", "lindau"), ("test", "berlin")):
        for k in range(count):
            image, label = scene(k, size)
            stem = f"{split}/{city}/{city}_{k:06d}_000019"
            save_image(root / f"leftImg8bit/{stem}_leftImg8bit.png", image)
            base = root / f"gtFine/{stem}_gtFine"
            if split == "test":
                continue
            if labels == "labelIds":
                save_grey(Path(f"{base}_labelIds.png"), ids(label, CITYSCAPES_ID).astype(np.uint8))
                save_image(Path(f"{base}_color.png"), image)
            elif labels == "polygons":
                save_polygons(Path(f"{base}_polygons.json"), label)
            else:
                save_grey(Path(f"{base}_labelTrainIds.png"), label)


def acdc(root: Path, count=2, size=(48, 80), flattened=False) -> None:
    number = 0
    for split in ("train", "val", "test"):
        for condition in ("fog", "night"):
            for k in range(count):
                image, label = scene(number, size)
                number += 1
                below = split if flattened else f"{condition}/{split}/GOPR04{k}"
                stem = f"GOPR04{k}_frame_{number:06d}"
                save_image(root / f"rgb_anon/{below}/{stem}_rgb_anon.png", image)
                if split != "test":
                    save_grey(root / f"gt/{below}/{stem}_gt_labelTrainIds.png", label)
    if not flattened:  # pictures of the same places in good weather, which are no part of a split
        save_image(root / "rgb_anon/fog/train_ref/GOPR040/GOPR040_frame_1_rgb_ref_anon.png", image)


def dark_zurich(root: Path, count=2, size=(48, 80)) -> None:
    for split, kind in (("train", "night"), ("train", "day"), ("val", "night"), ("test", "night")):
        for k in range(count):
            image, label = scene(k, size)
            stem = f"{split}/{kind}/GOPR0356/GOPR0356_frame_{k:06d}"
            save_image(root / f"rgb_anon/{stem}_rgb_anon.png", image)
            if split == "val":
                save_grey(root / f"gt/{stem}_gt_labelTrainIds.png", label)


def camvid(root: Path, count=3, size=(48, 80), layout="lists") -> None:
    segnet = np.full(256, 11, np.uint8)
    segnet[list(CLASSES)] = (3, 1, 5, 0, 8)
    colours = np.zeros((256, 3), np.uint8)
    shown = ((128, 64, 128), (128, 0, 0), (128, 128, 0), (128, 128, 128), (64, 0, 128))
    colours[list(CLASSES)] = shown
    for number, split in enumerate(("train", "val", "test")):
        stems = [f"0001TP_{6690 + 30 * (number * count + k):06d}" for k in range(count)]
        for k, stem in enumerate(stems):
            image, label = scene(10 * number + k, size)
            if layout == "lists":
                save_image(root / f"images/{split}/{stem}.jpg", image)
                save_grey(root / f"labels/{split}/{stem}.png", label)
            elif layout == "segnet":
                save_image(root / f"{split}/{stem}.png", image)
                save_grey(root / f"{split}annot/{stem}.png", segnet[label])
            else:
                save_image(root / f"701_StillsRaw_full/{stem}.png", image)
                save_image(root / f"LabeledApproved_full/{stem}_L.png", colours[label])
        if layout == "lists":
            name = {"train": "day_train", "val": "dusk_train", "test": "dusk_test"}[split]
            (root / "splits").mkdir(exist_ok=True)
            lines = "".join(f"{split}/{stem}\n" for stem in stems)
            (root / f"splits/{name}.txt").write_text(lines)


def zipped(root: Path, to: Path, parts: tuple[str, ...], leading: str = "") -> None:
    """The folders `parts` of `root` as an archive each in `to`, stored below `leading`."""
    to.mkdir(parents=True, exist_ok=True)
    for part in parts:
        with zipfile.ZipFile(to / f"{part}_all.zip", "w") as archive:
            archive.writestr(f"{leading}README", "read me")
            for path in sorted((root / part).rglob("*")):
                if path.is_file():
                    archive.write(path, f"{leading}{path.relative_to(root).as_posix()}")


def table(count: int) -> Classes:
    """A class table of `count` names."""
    return Classes(tuple(f"class{i}" for i in range(count)), ((0, 0, 0),) * count)


def config(domain: Domain, **data) -> Config:
    """Two pictures a step, four steps; all three domains are `domain`."""
    data |= {"source": domain, "target": domain, "evaluation": replace(domain, labels="labels")}
    data |= {"classes": tables.CITYSCAPES, "crop": (16, 24)}
    return Config(seed=1, data=Data(**data), model=Model(), train=Train(steps=4, batch=2))
