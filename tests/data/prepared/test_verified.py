"""Every file of a prepared set is the one that was prepared, or a line says which is not."""

import json
import shutil
from dataclasses import replace

import downloads
import numpy as np
import pytest
from test_prepare import FIELD, made

from mrm_jax.config import Domain
from mrm_jax.data import labels, pipeline, sources
from mrm_jax.data.files import UnreadableError
from mrm_jax.data.prepared import manifest, reading, verified
from mrm_jax.errors import RunError, UsageError

NAME = "gta-train.array_record-0000{}-of-00003"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Flat pictures, so that all shards have one size; jpeg: pictures of which parts are read."""
    root = tmp_path_factory.mktemp("sets")
    for k in range(6):
        downloads.save_image(
            root / f"raw/images/{k}.png", np.full((48, 80, 3), 9 * k + 1, np.uint8)
        )
        downloads.save_palette(root / f"raw/labels/{k}.png", np.full((48, 80), 7 + k // 5))
    made("gta", root / "raw", root / "flat", resize="native", shards=3)
    downloads.gta(root / "rich", count=3, size=(96, 160))
    made("gta", root / "rich", root / "jpeg", resize="native", shards=3, codec="jpeg95")
    return root


@pytest.fixture
def folder(originals, tmp_path, monkeypatch):
    """A copy of the flat set, and a cache of one's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shutil.copytree(originals / "flat", tmp_path / "set")


def opened(folder, **options):
    domain = Domain(path=str(folder), **options)
    return sources.open_labelled(domain, labels.CITYSCAPES, field=FIELD)


def older(folder):
    """The set as it was prepared before shards had digests of their index."""
    path = folder / manifest.FILE
    values = json.loads(path.read_text())
    del values["files"]
    for split in values["splits"].values():
        for shard in split["shards"]:
            for key in ("size", "index", "places"):
                del shard[key]
    path.write_text(json.dumps(values))


def swapped(folder):
    first, second, spare = (folder / NAME.format(k) for k in (0, 1, 7))
    first.rename(spare)
    second.rename(first)
    spare.rename(second)


def copied(folder):
    shutil.copy(folder / NAME.format(2), folder / NAME.format(0))


def longer(folder):
    with (folder / NAME.format(0)).open("ab") as file:
        file.write(b"\0" * 65536)


def emptied(folder):
    path = folder / NAME.format(0)
    path.write_bytes(b"\0" * path.stat().st_size)


def renamed(folder):
    path = folder / "pictures-train.json"
    path.write_text(path.read_text().replace('"0"', '"6"'))


FAULTS = {
    swapped: "00000-of-00003 holds the content of .*00001-of-00003",
    copied: "00000-of-00003 holds the content of .*00002-of-00003",
    longer: "00000-of-00003 has 196608 bytes, the manifest says 131072",
    emptied: "00000-of-00003 holds other records than the manifest says",
    renamed: "pictures-train.json cannot be read .its SHA-256 is not the manifest's",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_not_the_prepared_one_is_named_when_the_set_is_opened(folder, fault):
    sizes = {path.stat().st_size for path in folder.glob("*record*")}
    assert len(sizes) == 1
    assert len(opened(folder)) == 6
    fault(folder)
    with pytest.raises(UsageError, match=f"{FIELD}.path: .*{FAULTS[fault]}"):
        opened(folder)


def test_an_older_set_opens_with_a_line_and_its_records_are_held_against_their_names(
    folder, caplog
):
    older(folder)
    pictures = opened(folder)
    assert "not verified" in caplog.text
    assert [int(pictures.image(k)[0, 0, 0]) for k in (0, 5)] == [1, 46]
    swapped(folder)
    with pytest.raises(UsageError, match=r"'0' \(record 0 of .*\) holds '2': a file was put in"):
        sources.read_pair(opened(folder), 0)
    emptied(folder)
    with pytest.raises(UsageError, match="00000-of-00003 cannot be read as records"):
        opened(folder)


def test_only_heads_of_chunks_are_read_of_a_shard(folder):
    shard = manifest.read_manifest(folder, field="").splits["train"].shards[0]
    path = folder / shard.file
    content = bytearray(path.read_bytes())
    kept = np.zeros(len(content), bool)
    for place in shard.places:
        kept[24 + place : 24 + place + verified.HEAD] = True
    content[64:] = (np.frombuffer(content, np.uint8) ^ ~kept).tobytes()[64:]
    path.write_bytes(content)
    assert verified.heads_digest(path, shard.places) == shard.index
    assert len(shard.places) == 3


def test_whole_files_are_hashed_once_on_a_machine_and_a_fault_stops_the_run(folder, monkeypatch):
    hashed, real = [], verified._slowly
    monkeypatch.setattr(verified, "_slowly", lambda path: hashed.append(path) or real(path))
    pictures = opened(folder)
    for _ in range(2):
        watch = verified.ShardWatch(pictures.shards)
        watch.join()
        watch.check()
    assert len(hashed) == 3
    path = folder / NAME.format(1)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 9] ^= 1
    path.write_bytes(content)  # its time of change tells
    config = downloads.config(Domain(path=str(folder)))
    monkeypatch.setattr(verified, "ShardWatch", Joined)
    examples = pipeline.evaluation_set(config)
    assert len(hashed) == 4
    with pytest.raises(RunError, match=r"00001-of-00003: its SHA-256 is not the manifest's"):
        examples[0]
    with pytest.raises(RunError, match="its SHA-256 is not"):
        next(pipeline.train_batches(config))


class Joined(verified.ShardWatch):
    """It is over when it was begun."""

    def __init__(self, shards):
        super().__init__(shards)
        self.join()


def test_what_is_copied_from_a_bucket_is_verified_on_the_way(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "is_remote", lambda path: True)
    pictures = opened(folder)
    assert all(verified._stamped(held.path, held.shard) for held in pictures.shards)
    shutil.rmtree(tmp_path / "cache")
    copied(folder)
    with pytest.raises(UsageError, match="the SHA-256 of .*00000-of-00003 is not the manifest's"):
        opened(folder)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def damaged(folder, index, name, spoil):
    """Puts another `name` into a record, with hashes that fit, as a fault of the writer would."""
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    older(folder)
    path = folder / NAME.format(index)
    reader = array_record_module.ArrayRecordReader(str(path))
    example = tf_example_pb2.Example.FromString(reader.read_all()[0])
    reader.close()
    values = example.features.feature[name].bytes_list.value
    values[0] = spoil(values[0])
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    writer.write(example.SerializeToString(deterministic=True))
    writer.close()


def without_tables(content):
    """A JPEG whose Huffman tables are no tables."""
    at = content.index(b"\xff\xc4")
    return content[: at + 5] + b"\xff" * 16 + content[at + 21 :]


def without_a_restart(content):
    """A JPEG that lacks a restart marker; decoders fill the gap with grey and say nothing."""
    at = content.index(b"\xff\xd3")
    return content[:at] + content[at + 2 :]


def of_another_size(content):
    return labels_png(np.zeros((8, 8), np.uint8))


def labels_png(array):
    from mrm_jax.data.prepared import records

    return records.encode_label(array)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize(
    ("part", "spoil"),
    [
        ("image", without_tables),
        ("image", without_a_restart),
        ("image", lambda content: content[:40]),
        ("label", lambda content: content[:60]),
        ("label", of_another_size),
    ],
)
def test_a_damaged_record_is_named_or_left_out(
    originals, tmp_path, monkeypatch, caplog, part, spoil, cache
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = shutil.copytree(originals / "jpeg", tmp_path / "set")
    damaged(folder, 1, part, spoil)
    where = r"'00002' \(record 0 of .*00001-of-00003\) cannot be read"
    config = downloads.config(Domain(path=str(folder)), cache=cache)
    with monkeypatch.context() as patch:
        # Records alone are meant here.
        patch.setattr(verified.ShardWatch, "check", lambda watch: None)
        with pytest.raises(UnreadableError, match=f"(?s){where}.*on_unreadable='skip'"):
            list(pipeline.train_batches(config))
        with pytest.raises(UnreadableError, match=where):
            pipeline.evaluation_set(config)[1]
    source = replace(config.data.source, on_unreadable="skip")
    data = replace(config.data, source=source, target=source)
    batches = list(pipeline.train_batches(replace(config, data=data)))
    assert len(batches) == 4
    assert caplog.text.count("Left out; 1 of 3 so far.") == (1 if part == "label" else 2)
