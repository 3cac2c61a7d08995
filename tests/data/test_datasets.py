import json
import os
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import downloads
import numpy as np
import pytest
from refusals import refused

from mrm_jax.config import Domain
from mrm_jax.data import datasets, files, labels, locating, sources
from mrm_jax.errors import UsageError

LAYOUTS = {
    "gta": (downloads.gta, {"train": 3}),
    "synthia": (downloads.synthia, {"train": 3}),
    "cityscapes": (downloads.cityscapes, {"train": 3, "val": 3, "test": 3}),
    "cityscapes polygons": (
        lambda root: downloads.cityscapes(root, labels="polygons"),
        {"train": 3, "val": 3, "test": 3},
    ),
    "cityscapes train ids": (
        lambda root: downloads.cityscapes(root, labels="trainIds"),
        {"train": 3, "val": 3, "test": 3},
    ),
    "acdc": (downloads.acdc, {"train": 4, "val": 4, "test": 4}),
    "acdc flattened": (
        lambda root: downloads.acdc(root, flattened=True),
        {"train": 4, "val": 4, "test": 4},
    ),
    "dark_zurich": (downloads.dark_zurich, {"train": 2, "val": 2, "test": 2}),
    "camvid": (
        downloads.camvid,
        {"train": 3, "val": 3, "test": 3, "day_train": 3, "dusk_train": 3, "dusk_test": 3},
    ),
    "camvid segnet": (
        lambda root: downloads.camvid(root, layout="segnet"),
        {"train": 3, "val": 3, "test": 3},
    ),
    "camvid official": (lambda root: downloads.camvid(root, layout="official"), {"all": 9}),
}


def train_ids(located: locating.Located, stem: str) -> np.ndarray:
    domain, file = located.domain, located.labels[stem]
    raw = files.read_raw_label(file, domain.label_colours)
    how = {"classes": 19, "name": str(file), "field": "x"}
    return labels.map_labels(raw, domain.raw_ids, domain.ignored_ids, **how)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_split_of_a_download_is_found_and_its_labels_become_train_ids(name, tmp_path):
    build, counts = LAYOUTS[name]
    build(tmp_path)
    found = locating.locate(datasets.DATA_SETS[name.split()[0]], tmp_path)
    assert {split: len(each.pictures) for split, each in found.items()} == counts
    for split, each in found.items():
        unlabelled = split == "test" and "camvid" not in name or name + split == "dark_zurichtrain"
        assert len(each.labels) == (0 if unlabelled else counts[split])
    located = next(each for each in found.values() if each.labels)
    label = train_ids(located, next(iter(located.pictures)))
    np.testing.assert_array_equal(label, downloads.scene(0)[1])
    assert not located.repeated


@pytest.mark.parametrize("leading", ["", "unpacked into/"])
def test_archives_are_read_where_they_lie(tmp_path, leading):
    downloads.cityscapes(tmp_path / "raw")
    downloads.zipped(tmp_path / "raw", tmp_path / "zips", ("leftImg8bit", "gtFine"), leading)
    data_set = datasets.DATA_SETS["cityscapes"]
    packed, plain = (locating.locate(data_set, tmp_path / part) for part in ("zips", "raw"))
    assert {s: list(each.pictures) for s, each in packed.items()} == {
        s: list(each.pictures) for s, each in plain.items()
    }
    for stem, file in plain["val"].labels.items():
        assert packed["val"].labels[stem].read_bytes() == file.read_bytes()
    assert sorted(os.listdir(tmp_path / "zips")) == ["gtFine_all.zip", "leftImg8bit_all.zip"]


@pytest.mark.parametrize("member", ["../evil.png", "/etc/evil.png", "a/../../evil.png"])
def test_an_archive_with_members_outside_of_it_is_refused(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("images/00001.png", b"x")
        archive.writestr(member, b"x")
    with refused("gta --from", way_out="official source"):
        locating.locate(datasets.DATA_SETS["gta"], tmp_path)


def test_what_is_no_archive_is_named(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"half a download")
    with refused("gta --from", way_out="fetch it again"):
        locating.locate(datasets.DATA_SETS["gta"], tmp_path)


def test_a_folder_of_something_else_is_told_what_should_be_there(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UsageError, match=r"no picture of GTA5.*images/\*"):
        locating.locate(datasets.DATA_SETS["gta"], tmp_path)
    with pytest.raises(UsageError, match="there is no folder"):
        locating.locate(datasets.DATA_SETS["gta"], tmp_path / "nowhere")


def test_a_flattened_copy_beside_the_tree_is_not_counted_twice(tmp_path):
    downloads.acdc(tmp_path)
    downloads.acdc(tmp_path, flattened=True)
    found = locating.locate(datasets.DATA_SETS["acdc"], tmp_path)
    assert [len(each.pictures) for each in found.values()] == [4, 4, 4]


def test_links_out_of_the_tree_are_followed_and_a_loop_is_walked_once(tmp_path):
    downloads.gta(tmp_path / "disk è 2")
    root = tmp_path / "data set"
    root.mkdir()
    for part in ("images", "labels"):
        (root / part).symlink_to(tmp_path / "disk è 2" / part, target_is_directory=True)
    (root / "loop").symlink_to(root, target_is_directory=True)
    found = locating.locate(datasets.DATA_SETS["gta"], root)
    assert list(found["train"].pictures) == ["00001", "00002", "00003"]
    assert not found["train"].repeated


def test_a_picture_that_occurs_twice_is_reported(tmp_path):
    for part in ("a", "b"):
        downloads.gta(tmp_path / part, count=1)
    found = locating.locate(datasets.DATA_SETS["gta"], tmp_path)
    assert len(found["train"].repeated["00001"]) == 2


@pytest.mark.parametrize("name", ["ACDC", "ACDC_VAL"])
@pytest.mark.parametrize("flattened", [False, True])
def test_training_reads_acdc_as_it_unpacks_or_flattened(tmp_path, name, flattened):
    downloads.acdc(tmp_path, flattened=flattened)
    domain = replace(getattr(datasets, name), path=str(tmp_path))
    pictures = sources.open_labelled(domain, downloads.table(19), field="config.data.source")
    assert len(pictures) == 4
    number = 0 if name == "ACDC" else 4
    for k in range(4):
        image, label = downloads.scene(number + k)
        at = next(i for i in range(4) if pictures.name(i).endswith(f"{number + k + 1:06d}"))
        np.testing.assert_array_equal(pictures.image(at), image)
        np.testing.assert_array_equal(pictures.label(at), label)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("GTA", downloads.gta),
        ("SYNTHIA", downloads.synthia),
        ("CITYSCAPES", downloads.cityscapes),
        ("CITYSCAPES_VAL", downloads.cityscapes),
        ("DARK_ZURICH_VAL", downloads.dark_zurich),
    ],
)
def test_training_reads_a_download_as_it_unpacks(tmp_path, name, build):
    build(tmp_path)
    domain = replace(getattr(datasets, name), path=str(tmp_path))
    pictures = sources.open_labelled(domain, downloads.table(19), field="config.data.source")
    image, label = downloads.scene(0)
    np.testing.assert_array_equal(pictures.image(0), image)
    np.testing.assert_array_equal(pictures.label(0), label)


def test_polygons_with_an_unknown_label_or_damage_are_named(tmp_path):
    path = Path(tmp_path / "x_gtFine_polygons.json")
    shape = {"label": "unicorn", "polygon": [[0, 0], [1, 0], [1, 1]]}
    odd = json.dumps({"imgWidth": 4, "imgHeight": 3, "objects": [shape]})
    for content, message in (
        (odd, "unicorn"),
        ("{", "is no file of polygons"),
        ("{}", "lacks"),
        ("[]", "is no file of polygons"),
    ):
        path.write_text(content)
        with pytest.raises(files.UnreadableError, match=message):
            files.read_raw_label(path)


def test_a_colour_outside_the_list_is_named_with_the_longer_list(tmp_path):
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[0], picture[1:3] = 7, (0, 9, 200)
    downloads.save_image(tmp_path / "x.png", picture)
    domain = Domain(label_colours=((0, 0, 0),))
    added = "((0, 0, 0), (0, 9, 200), (7, 7, 7))"
    with refused(tmp_path / "x.png", way_out=f'--config.data.source.label_colours="{added}"'):
        files.read_label(tmp_path / "x.png", domain=domain, field="config.data.source")


def acdc_like(root, names):
    for k, name in enumerate(names):
        image, label = downloads.scene(k)
        downloads.save_image(root / f"images/{name}.png", image)
        downloads.save_grey(root / f"labels/{name}.png", label)


def opened(root, pattern, field="config.data.source"):
    domain = Domain(path=str(root), images=f"images/{pattern}", labels=f"labels/{pattern}")
    return sources.open_labelled(domain, downloads.table(19), field=field)


@pytest.mark.parametrize("pattern", ["**/train/**", "**/**/train/**", "**/train/**/**"])
def test_a_pattern_may_have_several_parts_that_stand_for_any_folders(tmp_path, pattern):
    names = ["fog/train/a", "fog/train/deep/er/b", "train/c", "x/y/train/z/d"]
    acdc_like(tmp_path, [*names, "fog/val/e"])
    found = opened(tmp_path, pattern)
    stems = ["c", "fog/a", "fog/deep/er/b", "x/y/z/d"]
    assert [found.name(i) for i in range(len(found))] == stems
    for i, k in enumerate((2, 0, 1, 3)):
        np.testing.assert_array_equal(found.image(i), downloads.scene(k)[0])
        np.testing.assert_array_equal(found.label(i), downloads.scene(k)[1])


def test_a_stray_flat_file_hides_no_picture_and_what_is_left_out_is_said(tmp_path, caplog):
    acdc_like(tmp_path, ["fog/train/a", "night/train/b", "train/stray"])
    caplog.set_level("WARNING")
    found = opened(tmp_path, "**/train")
    assert [found.name(i) for i in range(len(found))] == ["fog/a", "night/b", "stray"]
    assert not caplog.messages
    shutil.copy(tmp_path / "images/fog/train/a.png", tmp_path / "images/train/a.png")
    downloads.save_image(tmp_path / "images/fog/val/c.png", downloads.scene(7)[0])
    found = opened(tmp_path, "**/train")
    assert [found.name(i) for i in range(len(found))] == ["fog/a", "night/b", "stray"]
    twice, others = caplog.messages
    assert re.search("1 pictures are there twice.* a is one that is left out", twice)
    assert re.search("1 other pictures are left out.* images/fog/val/c.png", others)
    # Flattened as a whole, with the labels or without them.
    for kind in ("images", "labels"):
        for name in ("fog/train/a", "night/train/b"):
            shutil.copy(tmp_path / f"{kind}/{name}.png", tmp_path / f"{kind}/train")
        found = opened(tmp_path, "**/train") if kind == "labels" else found
    assert [found.name(i) for i in range(len(found))] == ["a", "b", "stray"]
    np.testing.assert_array_equal(found.label(1), downloads.scene(1)[1])


def test_what_no_split_takes_is_counted_and_is_no_orphan(tmp_path):
    downloads.acdc(tmp_path)
    downloads.acdc(tmp_path, flattened=True)
    found = locating.locate(datasets.DATA_SETS["acdc"], tmp_path)
    assert [len(each.copies) for each in found.values()] == [4, 4, 4]
    assert not any(each.orphans for each in found.values())
    others = [each.others for each in found.values()]
    assert others == [("rgb_anon/fog/train_ref/GOPR040/GOPR040_frame_1_rgb_ref_anon.png",), (), ()]
    assert "1 other pictures are left out" in found["train"].left_out()[1]
