"""A prepared set holds what the folder holds, whatever happened while it was made."""

import contextlib
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace

import downloads
import numpy as np
import pytest
from mrm_jax.data.locate import locate
from refusals import refused
from test_datasets import LAYOUTS

from mrm_jax import main
from mrm_jax.config import Config, Data, Domain, Model, RareClass, Train
from mrm_jax.data import datasets, labels, pipeline, sources
from mrm_jax.data.class_statistics import class_statistics
from mrm_jax.data.prepared import jpeg, manifest, prepare, records, room, shards
from mrm_jax.errors import RunError, UsageError

FIELD = "config.data.source"


@contextlib.contextmanager
def silent(total):
    yield lambda done: None


def made(name, root, to, **options):
    """The manifest of the set in `root`, prepared into `to` without processes."""
    chosen = datasets.DATA_SETS[name] if isinstance(name, str) else name
    how = prepare.Options(**options)
    return prepare.prepare(chosen, root, to, how, say=lambda line: None, progress=silent)


def content(folder):
    """Name to a hash of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_prepared_set_has_the_pictures_labels_and_counts_of_its_download(name, tmp_path):
    build, counts = LAYOUTS[name]
    build(tmp_path / "raw")
    data_set = datasets.DATA_SETS[name.split()[0]]
    found = locate(data_set, tmp_path / "raw")
    stored = made(data_set.name, tmp_path / "raw", tmp_path / "to", resize="native", shards=2)
    assert {split: each.count for split, each in stored.splits.items()} == counts
    for split, located in found.items():
        domain = Domain(path=str(tmp_path / "to"), split=split)
        pictures = sources.open_pictures(domain, field=FIELD)
        assert [pictures.name(i) for i in range(len(pictures))] == list(located.pictures)
        assert stored.splits[split].labelled == bool(located.labels)
        if not located.labels:
            with pytest.raises(UsageError, match=f"split {split} of the prepared set .* no labels"):
                sources.open_labelled(domain, labels.CITYSCAPES, field=FIELD)
            continue
        labelled = sources.open_labelled(domain, labels.CITYSCAPES, field=FIELD)
        for i, stem in enumerate(located.pictures):
            image, label = sources.read_pair(labelled, i)
            np.testing.assert_array_equal(image, sources.files.read_image(located.pictures[stem]))
            domain_ = located.domain
            raw = sources.files.read_raw_label(located.labels[stem], domain_.label_colours)
            expected = labels.map_labels(
                raw, domain_.raw_ids, domain_.ignored_ids, classes=19, name="", field=""
            )
            np.testing.assert_array_equal(label, expected)


def _config(source, target, **data):
    rare = RareClass(enabled=True, min_pixels=60, crop_share=0.2, on_missing="warn")
    return Config(
        seed=3,
        data=Data(
            classes=labels.CITYSCAPES,
            source=replace(source, category_limit=0.75),
            target=target,
            evaluation=Domain(split="val"),
            crop=(24, 32),
            rare_class=rare,
            **data,
        ),
        model=Model(),
        train=Train(steps=4, batch=3),
    )


@pytest.mark.parametrize("stored", ["resized", "native"])
def test_a_folder_and_its_prepared_set_give_identical_batches(tmp_path, stored):
    downloads.gta(tmp_path / "gta", count=5, size=(56, 102))
    downloads.cityscapes(tmp_path / "city", count=4, size=(64, 128))
    source = replace(datasets.GTA, path=str(tmp_path / "gta"), resize=(64, 36))
    target = replace(
        datasets.CITYSCAPES, path=str(tmp_path / "city"), resize=(64, 32), margins=(3, 9, 2, 1)
    )
    resize = {"gta": (64, 36), "cityscapes": (64, 32)}
    for name, root in (("gta", "gta"), ("cityscapes", "city")):
        box = resize[name] if stored == "resized" else "native"
        made(name, tmp_path / root, tmp_path / f"{root}_set", resize=box, shards=2)
    folders = _config(source, target)
    sets = _config(
        replace(source, path=str(tmp_path / "gta_set")),
        replace(target, path=str(tmp_path / "city_set")),
    )
    for one, other in zip(
        pipeline.train_batches(folders), pipeline.train_batches(sets), strict=True
    ):
        for a, b in (
            (one.source.image, other.source.image),
            (one.source.label, other.source.label),
            (one.target.image, other.target.image),
            (one.target.valid, other.target.valid),
            (one.index, other.index),
        ):
            np.testing.assert_array_equal(a, b)
    assert 0 < one.target.valid.mean() < 1
    # Scores are computed at the size of the labels, which is never changed.
    for one, other in zip(
        pipeline.evaluation_set(_with_val(folders, tmp_path / "city")),
        pipeline.evaluation_set(_with_val(sets, tmp_path / "city_set")),
        strict=True,
    ):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.label, other.label)


@pytest.mark.parametrize("stored", ["resized", "native"])
def test_parts_of_jpegs_and_cached_ones_give_the_batches_of_whole_pictures(
    tmp_path, monkeypatch, stored
):
    downloads.gta(tmp_path / "gta", count=3, size=(140, 256))
    downloads.cityscapes(tmp_path / "city", count=3, size=(128, 256))
    boxes = {"gta": (384, 216), "city": (128, 64)}
    for name, data_set in (("gta", "gta"), ("city", "cityscapes")):
        box = boxes[name] if stored == "resized" else "native"
        made(data_set, tmp_path / name, tmp_path / f"{name}_set", resize=box, codec="jpeg95")
    config = _config(
        replace(datasets.GTA, path=str(tmp_path / "gta_set"), resize=boxes["gta"]),
        replace(datasets.CITYSCAPES, path=str(tmp_path / "city_set"), resize=boxes["city"]),
    )
    sizes, real = [], jpeg._decoded
    monkeypatch.setattr(jpeg, "_decoded", lambda file: sizes.append(len(file)) or real(file))
    parts = list(pipeline.train_batches(config))
    assert len(sizes) >= 4 * 3
    assert min(sizes) < max(sizes)
    data = replace(config.data, cache=True)
    cached = list(pipeline.train_batches(replace(config, data=data)))
    monkeypatch.setattr(jpeg, "parts", lambda content: None)
    for batches in (parts, cached):
        for one, whole in zip(batches, pipeline.train_batches(config), strict=True):
            np.testing.assert_array_equal(one.source.image, whole.source.image)
            np.testing.assert_array_equal(one.source.label, whole.source.label)
            np.testing.assert_array_equal(one.target.image, whole.target.image)
            np.testing.assert_array_equal(one.target.valid, whole.target.valid)


def _with_val(config, path):
    evaluation = replace(datasets.CITYSCAPES_VAL, path=str(path))
    return replace(config, data=replace(config.data, evaluation=evaluation))


def test_class_counts_are_those_of_the_labels_before_they_were_resized(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    downloads.synthia(tmp_path / "raw", size=(56, 80))
    made("synthia", tmp_path / "raw", tmp_path / "to", resize=(40, 30))
    domain = replace(datasets.SYNTHIA, path=str(tmp_path / "raw"), resize=(40, 30))
    found = []
    for path in ("raw", "to"):
        one = replace(domain, path=str(tmp_path / path))
        pictures = sources.open_labelled(one, labels.CITYSCAPES, field=FIELD)
        found.append(class_statistics(pictures, one, 19, field=FIELD, say=lambda line: None))
    np.testing.assert_array_equal(found[0].counts, found[1].counts)
    np.testing.assert_array_equal(found[0].sizes, found[1].sizes)
    assert found[0].sizes.tolist() == [[56, 80]] * 3


def test_tensorflow_datasets_reads_the_set_without_tensorflow(tmp_path):
    import tensorflow_datasets as tfds

    downloads.cityscapes(tmp_path / "raw")
    for codec in records.CODECS:
        to = tmp_path / codec
        made("cityscapes", tmp_path / "raw", to, resize=(40, 24), codec=codec, shards=2)
        read = tfds.builder_from_directory(to).as_data_source("train")
        domain = Domain(path=str(to), resize=(40, 24))
        ours = sources.open_labelled(domain, labels.CITYSCAPES, field=FIELD)
        assert len(read) == len(ours) == 3
        for i in range(3):
            image, label = sources.read_pair(ours, i)
            assert read[i]["name"].decode() == ours.name(i)
            assert (read[i]["height"], read[i]["width"]) == (48, 80)
            # Two JPEG decoders may round differently by a few grey levels.
            bound = 0 if codec == "png" else 4
            assert np.abs(read[i]["image"].astype(int) - image).max() <= bound
            np.testing.assert_array_equal(read[i]["label"][..., 0], label)
    assert "tensorflow" not in sys.modules


def test_archives_and_folders_give_the_same_bytes(tmp_path):
    downloads.cityscapes(tmp_path / "raw")
    downloads.zipped(tmp_path / "raw", tmp_path / "zips", ("leftImg8bit", "gtFine"))
    for part in ("raw", "zips"):
        made("cityscapes", tmp_path / part, tmp_path / f"{part}_set")
    assert content(tmp_path / "raw_set") == content(tmp_path / "zips_set")


def test_parts_of_several_hosts_make_the_set_that_one_makes(tmp_path):
    downloads.gta(tmp_path / "raw", count=7)
    whole = made("gta", tmp_path / "raw", tmp_path / "one", shards=3)
    for number in (2, 1):
        assert not manifest.is_prepared(tmp_path / "many")
        made("gta", tmp_path / "raw", tmp_path / "many", shards=3, part=(number, 2))
    assert content(tmp_path / "one") == content(tmp_path / "many")
    assert [shard.count for shard in whole.splits["train"].shards] == [2, 2, 3]


COMMAND = """
import sys, time
from mrm_jax.data.prepared import shards
real = shards.encoded
def slow(job, pair):
    time.sleep(0.03)
    return real(job, pair)
shards.encoded = slow
from mrm_jax.main import entry
entry()
"""


def test_a_killed_run_goes_on_and_ends_with_the_bytes_of_an_undisturbed_one(tmp_path):
    downloads.gta(tmp_path / "raw", count=12)
    made("gta", tmp_path / "raw", tmp_path / "calm", shards=4)
    to = tmp_path / "killed"
    words = ["prepare", "gta", "--from", str(tmp_path / "raw"), "--to", str(to)]
    command = [sys.executable, "-c", COMMAND, *words, "--shards", "4", "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(to.glob(".*00001-of*"))) == 0 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = to / "gta-train.array_record-00000-of-00004"
    before = first.stat().st_mtime_ns
    assert not manifest.is_prepared(to)
    said = []
    how = prepare.Options(shards=4)
    data_set = datasets.DATA_SETS["gta"]
    prepare.prepare(data_set, tmp_path / "raw", to, how, say=said.append, progress=silent)
    assert first.stat().st_mtime_ns == before
    assert said[0] == "3 pictures are stored already."
    assert content(to) == content(tmp_path / "calm")


def test_what_a_kill_behind_the_manifest_left_is_removed_by_the_next_run(tmp_path, monkeypatch):
    downloads.gta(tmp_path / "raw", count=2)
    made("gta", tmp_path / "raw", tmp_path / "calm", shards=2)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_clean", lambda to, jobs: None)
        made("gta", tmp_path / "raw", tmp_path / "to", shards=2)
    left = sorted((tmp_path / "to").glob(".*"))
    assert [path.name.endswith(".json") for path in left] == [True] * 3
    for name in ("gta-train.array_record-00001-of-00002", "pictures-train.json", "manifest.json"):
        (tmp_path / f"to/.{name}.4194305").write_text("half")
    made("gta", tmp_path / "raw", tmp_path / "to", shards=2)
    assert content(tmp_path / "to") == content(tmp_path / "calm")


def test_half_a_shard_takes_no_room_while_its_run_goes_on(tmp_path, monkeypatch):
    downloads.gta(tmp_path / "raw", count=2)
    made("gta", tmp_path / "raw", tmp_path / "to", shards=2, part=(1, 2))
    # A process that is no more: the largest number that Linux gives is 4194304.
    half = tmp_path / "to/.gta-train.array_record-00001-of-00002.4194305"
    half.write_text("half")
    seen = []
    monkeypatch.setattr(prepare.room, "check_room", lambda to, jobs: seen.append(half.exists()))
    note = tmp_path / "to/.gta-train.array_record-00000-of-00002.json"
    for text in ("[]", "{}", "[" * 100_000, '{"source": {"bytes": []}}', "\xff"):
        note.write_text(text)  # notes that are none: the shard is written again
    made("gta", tmp_path / "raw", tmp_path / "to", shards=2)
    assert seen == [False]
    assert manifest.is_prepared(tmp_path / "to")


def test_processes_write_the_bytes_that_one_process_writes(tmp_path):
    downloads.gta(tmp_path / "raw", count=4)
    for workers in (1, 2):
        made("gta", tmp_path / "raw", tmp_path / f"by{workers}", shards=2, workers=workers)
    assert content(tmp_path / "by1") == content(tmp_path / "by2")


def _odd_size(root):
    image, _ = downloads.scene(0, (40, 80))
    downloads.save_image(root / "images/00002.png", image)


def _cut(root):
    path = root / "images/00002.png"
    path.write_bytes(path.read_bytes()[:200])


def _unknown(root):
    downloads.save_palette(root / "labels/00002.png", np.full((48, 80), 77))


def _unlabelled(root):
    (root / "labels/00002.png").unlink()


def _twice(root):
    image, _ = downloads.scene(5)
    downloads.save_image(root / "images/00002.jpg", image)


@pytest.mark.parametrize(
    ("spoil", "message", "why"),
    [
        (
            _odd_size,
            r"00002\.png is 40 x 80 px, its label .* 48 x 80 px",
            "its label has another size",
        ),
        (_cut, r"00002\.png is cut off", "cannot be read"),
        (_unknown, r"00002\.png: label id 77", "its label holds an unknown id"),
        (_unlabelled, r"'00002' has no label", "has no label"),
        (_twice, r"'00002' occurs twice", "occurs twice"),
    ],
)
def test_a_broken_picture_stops_it_by_name_or_is_left_out_and_listed(tmp_path, spoil, message, why):
    downloads.gta(tmp_path / "raw")
    spoil(tmp_path / "raw")
    with pytest.raises(UsageError, match=f"(?s){message}.*--skip_broken"):
        made("gta", tmp_path / "raw", tmp_path / "to")
    assert not manifest.is_prepared(tmp_path / "to")
    stored = made("gta", tmp_path / "raw", tmp_path / "other", skip_broken=True)
    assert stored.splits["train"].count == 2
    assert dict(stored.splits["train"].skipped) == {"00002": why}
    pictures = sources.open_pictures(
        Domain(path=str(tmp_path / "other"), resize=(1280, 720)), field=FIELD
    )
    assert [pictures.name(i) for i in range(2)] == ["00001", "00003"]


def test_the_known_odd_pictures_of_gta_are_left_out_by_themselves_where_they_are_odd(tmp_path):
    downloads.gta(tmp_path / "raw", count=1)
    for stem, size in (("15188", (48, 80)), ("17705", (40, 80))):
        image, label = downloads.scene(0)
        downloads.save_image(tmp_path / f"raw/images/{stem}.png", downloads.scene(0, size)[0])
        downloads.save_palette(
            tmp_path / f"raw/labels/{stem}.png", downloads.ids(label, downloads.CITYSCAPES_ID)
        )
    split = made("gta", tmp_path / "raw", tmp_path / "to").splits["train"]
    assert (split.count, dict(split.skipped)) == (2, {"17705": "its label has another size"})


def test_other_options_and_other_folders_are_refused_and_nothing_is_lost(tmp_path):
    downloads.gta(tmp_path / "raw")
    made("gta", tmp_path / "raw", tmp_path / "to")
    before = content(tmp_path / "to")
    with refused("--to", tmp_path / "to", way_out="new folder"):
        made("gta", tmp_path / "raw", tmp_path / "to", codec="jpeg95")
    downloads.save_palette(tmp_path / "raw/labels/00001.png", np.full((48, 80), 7))
    with refused("--to", tmp_path / "to", way_out="new folder"):
        made("gta", tmp_path / "raw", tmp_path / "to")
    with refused("--to", tmp_path / "raw", way_out="empty folder"):
        made("gta", tmp_path / "raw", tmp_path / "raw")
    assert content(tmp_path / "to") == before


def test_too_little_room_is_said_with_numbers_before_anything_is_written(tmp_path, monkeypatch):
    downloads.gta(tmp_path / "raw")
    usage = room.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UsageError, match=r"about 2\.\d MiB are needed and 1000 bytes are free"):
        made("gta", tmp_path / "raw", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_disk_that_is_full_on_the_way_loses_no_finished_shard(tmp_path, monkeypatch):
    downloads.gta(tmp_path / "raw", count=4)
    made("gta", tmp_path / "raw", tmp_path / "calm", shards=2)
    real = shards.verified.sha256

    def full(path):
        if "00001-of" in path.name:
            raise OSError(28, "No space left on device", str(path))
        return real(path)

    monkeypatch.setattr(shards.verified, "sha256", full)
    with pytest.raises(OSError, match="No space left"):
        made("gta", tmp_path / "raw", tmp_path / "to", shards=2)
    monkeypatch.undo()
    left = sorted(path.name for path in (tmp_path / "to").iterdir() if path.name[0] != ".")
    assert left == ["gta-train.array_record-00000-of-00002"]
    made("gta", tmp_path / "raw", tmp_path / "to", shards=2)
    assert content(tmp_path / "to") == content(tmp_path / "calm")


def test_a_set_of_ones_own_is_stored_with_its_classes(tmp_path):
    classes = downloads.table(3)
    rng = np.random.default_rng(0)
    for k in range(3):
        downloads.save_image(
            tmp_path / f"raw/images/è {k}.png", rng.integers(0, 9, (8, 8, 3), np.uint8)
        )
        downloads.save_grey(tmp_path / f"raw/labels/è {k}.png", np.full((8, 8), 10 * k, np.uint8))
    domain = Domain(images="images", labels="labels", raw_ids=((10,), (0,), (20,)))
    stored = made(datasets.folder(classes, domain), tmp_path / "raw", tmp_path / "to")
    assert stored.classes == classes
    turned = replace(classes, names=classes.names[::-1])
    pictures = sources.open_labelled(Domain(path=str(tmp_path / "to")), turned, field=FIELD)
    assert [int(pictures.label(i)[0, 0]) for i in range(3)] == [1, 2, 0]
    fewer = replace(classes, names=classes.names[:2], colours=classes.colours[:2])
    pictures = sources.open_labelled(Domain(path=str(tmp_path / "to")), fewer, field=FIELD)
    assert [int(pictures.label(i)[0, 0]) for i in range(3)] == [1, 0, 255]
    with refused(FIELD, way_out="Name the classes alike"):
        sources.open_labelled(Domain(path=str(tmp_path / "to")), labels.CITYSCAPES, field=FIELD)


def test_what_does_not_fit_the_config_is_named_with_the_way_out(tmp_path):
    downloads.gta(tmp_path / "raw")
    made("gta", tmp_path / "raw", tmp_path / "to", resize=(64, 40))
    domain = Domain(path=str(tmp_path / "to"))
    for change, message in (
        ({"split": "val"}, "split is 'val'; the prepared set of GTA5 .* holds train"),
        ({"resize": (128, 80)}, "fitted into 64 x 40 px.*--resize 128x80"),
        ({}, "--resize native"),
    ):
        with pytest.raises(UsageError, match=message):
            sources.open_pictures(replace(domain, **change), field=FIELD)
    path = tmp_path / "to/manifest.json"
    text = path.read_text()
    path.write_text(text[:40])
    with pytest.raises(UsageError, match=r"manifest\.json cannot be read"):
        sources.open_pictures(domain, field=FIELD)
    path.write_text(json.dumps({**json.loads(text), "format": 99}))
    with refused(f"{FIELD}.path", way_out="prepare the set again"):
        sources.open_pictures(domain, field=FIELD)


def test_a_damaged_record_is_named_and_can_be_skipped(tmp_path):
    downloads.gta(tmp_path / "raw")
    made("gta", tmp_path / "raw", tmp_path / "to", resize="native", shards=3)
    path = tmp_path / "to/gta-train.array_record-00001-of-00003"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 9] ^= 1
    path.write_bytes(content)
    pictures = sources.open_pictures(Domain(path=str(tmp_path / "to")), field=FIELD)
    with pytest.raises(
        sources.files.UnreadableError,
        match=r"'00002' \(record 0 of .*00001-of-00003\) cannot be read .*; prepare the set again",
    ):
        pictures.image(1)
    pictures.image(2)
    os.unlink(path)
    with refused(f"{FIELD}.path", way_out="prepare the set again"):
        sources.open_pictures(Domain(path=str(tmp_path / "to")), field=FIELD)


def test_prepared_pictures_travel_to_loader_processes(tmp_path):
    downloads.gta(tmp_path / "raw")
    made("gta", tmp_path / "raw", tmp_path / "to", resize="native")
    pictures = sources.open_labelled(
        Domain(path=str(tmp_path / "to")), labels.CITYSCAPES, field=FIELD
    )
    image = pictures.image(2)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(pictures)).image(2), image)


def test_jpeg_changes_pixels_by_little_and_labels_by_nothing():
    image, label = downloads.scene(0, (96, 160))
    record = records.PictureRecord("x", image, label, (96, 160))
    png, jpeg = (
        records.StoredPicture(records.encode_record(record, codec)) for codec in records.CODECS
    )
    np.testing.assert_array_equal(png.image(), image)
    np.testing.assert_array_equal(jpeg.label(), label)
    assert not np.array_equal(jpeg.image(), image)


def test_the_download_is_left_as_it_is_and_a_place_that_cannot_be_written_is_one_line(tmp_path):
    downloads.synthia(tmp_path / "raw", count=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "raw").rglob("*")}
    words = ["prepare", "synthia", "--from", str(tmp_path / "raw"), "--workers", "1", "--to"]
    assert main.run([*words, str(tmp_path / "to")]) == 0
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/x cannot be written: Not a directory"):
        main.run([*words, str(tmp_path / "file/x")])
    with refused("--to", tmp_path / "file", way_out="give a folder"):
        main.run([*words, str(tmp_path / "file")])
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "raw").rglob("*")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resize", "big"], "--resize is 'big'; give LONGxSHORT in px"),
        (["--part", "3/2"], "--part is '3/2'; give i/n"),
        (["--shards", "0"], "--shards is 0; it must be at least 1"),
        (["--splits", "night"], "--splits names 'night'; this copy of GTA5 .* holds train"),
    ],
)
def test_a_wrong_word_is_one_line(tmp_path, words, message):
    downloads.gta(tmp_path / "raw", count=1)
    start = ["prepare", "gta", "--from", str(tmp_path / "raw"), "--to", str(tmp_path / "to")]
    with pytest.raises(UsageError, match=message):
        main.run([*start, *words])
