import io
import logging
import os
import re
import struct
import unicodedata
from dataclasses import replace

import cv2
import downloads
import numpy as np
import pytest
from PIL import Image
from refusals import refused

from mrm_jax.command import load_config
from mrm_jax.config import Domain
from mrm_jax.data import files, sources
from mrm_jax.errors import UsageError

FIELD = "config.data.source"


def _picture(path, size=(6, 9), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    cv2.imwrite(str(path), image[..., ::-1])
    return image


def _labelled(root, stems=("a/x", "b"), **options):
    for k, stem in enumerate(stems):
        _picture(root / "images" / f"{stem}.png", seed=k)
        path = root / "labels" / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((6, 9), k, np.uint8))
    return Domain(path=str(root), images="images", labels="labels", **options)


def test_pictures_and_labels_are_paired_by_stem_below_their_folders(tmp_path):
    pictures = sources.open_labelled(_labelled(tmp_path), downloads.table(2), field=FIELD)
    assert [pictures.name(i) for i in range(len(pictures))] == ["a/x", "b"]
    for k in range(2):
        image, label = sources.read_pair(pictures, k)
        assert image.shape == (6, 9, 3)
        np.testing.assert_array_equal(label, np.full((6, 9), k))


@pytest.mark.parametrize("stem", ["x", "town/x"])
def test_labels_that_lie_below_the_pictures_are_no_pictures(tmp_path, stem):
    image = _picture(tmp_path / f"{stem}.png")
    _picture(tmp_path / "labels" / f"{stem}.png")
    cv2.imwrite(str(tmp_path / "labels" / f"{stem}.png"), np.zeros((6, 9), np.uint8))
    domain = Domain(path=str(tmp_path), labels="labels")
    labelled = sources.open_labelled(domain, downloads.table(2), field=FIELD)
    assert [labelled.name(i) for i in range(len(labelled))] == [stem]
    np.testing.assert_array_equal(sources.read_pair(labelled, 0)[0], image)
    assert len(sources.open_pictures(domain, field=FIELD)) == 1


def test_suffixes_pair_files_as_cityscapes_names_them(tmp_path):
    _picture(tmp_path / "leftImg8bit/train/ulm/ulm_0_leftImg8bit.png")
    path = tmp_path / "gtFine/train/ulm/ulm_0_gtFine_labelTrainIds.png"
    path.parent.mkdir(parents=True)
    cv2.imwrite(str(path), np.zeros((6, 9), np.uint8))
    (path.parent / "ulm_0_gtFine_color.png").write_bytes(b"never read")
    domain = Domain(
        path=str(tmp_path),
        images="leftImg8bit/train",
        image_suffix="_leftImg8bit.png",
        labels="gtFine/train",
        label_suffix="_gtFine_labelTrainIds.png",
    )
    pictures = sources.open_labelled(domain, downloads.table(19), field=FIELD)
    assert pictures.name(0) == "ulm/ulm_0"
    assert sources.read_pair(pictures, 0)[1].max() == 0


def test_a_listing_chooses_pictures_and_their_order(tmp_path):
    domain = _labelled(tmp_path, ("a", "b", "c"), listing="list.txt")
    (tmp_path / "list.txt").write_text("c\n\na\n")
    pictures = sources.open_labelled(domain, downloads.table(3), field=FIELD)
    assert [pictures.name(i) for i in range(len(pictures))] == ["c", "a"]


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ("d\n", "'d' of .* has no picture; stems look like 'a'"),
        ("a\na\n", "'a' occurs twice"),
        ("\n", "names no"),
    ],
)
def test_a_listing_that_does_not_fit_is_refused(tmp_path, listing, message):
    domain = _labelled(tmp_path, ("a", "b"), listing="list.txt")
    (tmp_path / "list.txt").write_text(listing)
    with pytest.raises(UsageError, match=message):
        sources.open_pictures(domain, field=FIELD)


def test_a_target_has_no_way_to_labels_and_needs_none(tmp_path):
    _picture(tmp_path / "x.jpg")
    folder = sources.open_pictures(Domain(path=str(tmp_path)), field="config.data.target")
    drawn = sources.open_pictures(Domain(kind="drawn"), field="config.data.target")
    for pictures in (folder, drawn):
        assert not hasattr(pictures, "label")
        assert pictures.image(0).ndim == 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"path": None}, f"{FIELD}.path"),
        ({"path": "nowhere"}, f"{FIELD}.path"),
        ({"images": "empty"}, f"{FIELD}.path"),
        ({"image_suffix": "_rgb.png"}, f"{FIELD}.path"),
        ({"labels": None}, f"{FIELD}.labels"),
        ({"labels": "nowhere"}, f"{FIELD}.labels"),
        ({"label_suffix": "_gt.png"}, FIELD),
    ],
)
def test_a_set_that_is_not_there_is_named_with_its_field(tmp_path, monkeypatch, change, field):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    domain = replace(_labelled(tmp_path), **change)
    with refused(field):
        sources.open_labelled(domain, downloads.table(2), field=FIELD)


def test_two_pictures_of_one_stem_are_refused(tmp_path):
    _picture(tmp_path / "x.png")
    _picture(tmp_path / "x.jpg")
    with refused(f"{FIELD}.path", way_out="set image_suffix"):
        sources.open_pictures(Domain(path=str(tmp_path)), field=FIELD)


def test_a_picture_and_label_of_different_size_are_named_with_both_sizes(tmp_path):
    domain = _labelled(tmp_path)
    _picture(tmp_path / "images/b.png", (7, 9))
    pictures = sources.open_labelled(domain, downloads.table(2), field=FIELD)
    with refused("b", kind=files.SizesError):
        sources.read_pair(pictures, 1)


def test_a_label_id_outside_the_table_is_named_with_its_file(tmp_path):
    pictures = sources.open_labelled(_labelled(tmp_path), downloads.table(1), field=FIELD)
    with pytest.raises(UsageError, match=r"b\.png: label id 1 .*config\.data\.source\.raw_ids"):
        pictures.label(1)


def _break(path, how):
    content = path.read_bytes()
    broken = {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "text": b"not a picture",
        "gone": None,
    }
    if broken[how] is None:
        path.unlink()
    else:
        path.write_bytes(broken[how])


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("empty", "is empty"),
        ("cut", "is cut off"),
        ("text", "cannot be|can be decoded"),
        ("gone", "No such file"),
    ],
)
def test_an_unreadable_picture_is_named(tmp_path, suffix, how, message):
    path = tmp_path / f"x.{suffix}"
    _picture(path, (40, 60))
    pictures = sources.open_pictures(Domain(path=str(tmp_path)), field=FIELD)
    _break(path, how)
    with pytest.raises(files.UnreadableError, match=message) as caught:
        pictures.image(0)
    assert str(path) in str(caught.value)


def _reader(root, **options):
    pictures = sources.open_pictures(Domain(path=str(root)), field=FIELD)
    return sources.Reader(lambda i: (pictures.image(i),), len(pictures), field=FIELD, **options)


def test_training_stops_at_an_unreadable_picture_unless_told_to_skip_it(tmp_path, caplog):
    images = [_picture(tmp_path / f"{k}.png", seed=k) for k in range(4)]
    _break(tmp_path / "1.png", "cut")
    _break(tmp_path / "2.png", "text")
    with pytest.raises(files.UnreadableError, match=r"1\.png is cut off.*on_unreadable='skip'"):
        _reader(tmp_path)(1)
    skipping = _reader(tmp_path, on_unreadable="skip")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(skipping(1)[0], images[3])
    assert sorted(skipping.unreadable) == [1, 2]
    assert [record.getMessage().count("of 4 so far") for record in caplog.records] == [1, 1]
    assert "2 of 4" in caplog.records[1].getMessage()
    # What replaces a picture must not depend on what was read before: order is f(seed, step).
    fresh = _reader(tmp_path, on_unreadable="skip")
    np.testing.assert_array_equal(fresh(2)[0], images[3])


def test_skipping_ends_when_no_picture_is_left(tmp_path):
    _picture(tmp_path / "x.png")
    _break(tmp_path / "x.png", "cut")
    with refused(FIELD, kind=files.UnreadableError):
        _reader(tmp_path, on_unreadable="skip")(0)


def test_the_cache_keeps_what_fits_reads_the_rest_again_and_says_so_once(caplog):
    calls = []

    def read(index):
        calls.append(index)
        return (np.full(100, index, np.uint8),)

    reader = sources.Reader(read, 3, field=FIELD, limit_bytes=200)
    for index in (0, 1, 2, 0, 1, 2):
        assert reader(index)[0][0] == index
    assert calls == [0, 1, 2, 2]
    assert [record.getMessage()[:44] for record in caplog.records] == [
        "config.data.source: 2 of 3 pictures fill the"
    ]


def test_odd_pictures_become_rgb(tmp_path):
    grey = np.arange(54, dtype=np.uint8).reshape(6, 9)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    cv2.imwrite(str(tmp_path / "deep.png"), grey.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "clear.png"), np.dstack([grey, grey, grey, grey * 0]))
    palette = Image.fromarray(grey)
    palette = palette.convert("P")
    palette.save(tmp_path / "palette.png")
    Image.fromarray(grey > 20).save(tmp_path / "bits.png")
    expected = np.repeat(grey[..., None], 3, -1)
    for name in ("grey", "deep", "clear", "palette"):
        np.testing.assert_array_equal(files.read_image(tmp_path / f"{name}.png"), expected)
    bits = files.read_image(tmp_path / "bits.png")
    np.testing.assert_array_equal(bits, np.where(expected > 20, 255, 0))


def test_a_rotation_note_in_a_photo_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 6), (10, 200, 30)).save(tmp_path / "x.jpg", exif=exif)
    assert files.read_image(tmp_path / "x.jpg").shape == (6, 9, 3)


def test_labels_are_read_as_stored_whatever_their_format(tmp_path):
    ids = np.array([[0, 7, 11], [33, 26, 3]], np.uint8)
    palette = Image.new("P", (3, 2))
    palette.putpalette([(7 * k) % 256 for k in range(768)])
    palette.putdata(ids.ravel().tolist())
    palette.save(tmp_path / "gta.png")
    # SYNTHIA: class in the red channel of a 16-bit picture, an instance number in the green one.
    synthia = np.zeros((2, 3, 3), np.uint16)
    synthia[..., 2], synthia[..., 1] = ids, 4000
    cv2.imwrite(str(tmp_path / "synthia.png"), synthia)
    cv2.imwrite(str(tmp_path / "grey.png"), ids)
    cv2.imwrite(str(tmp_path / "wide.png"), ids.astype(np.uint16))
    cv2.imwrite(str(tmp_path / "copies.png"), np.dstack([ids] * 3))
    for name in ("gta", "synthia", "grey", "wide", "copies"):
        np.testing.assert_array_equal(files.read_raw_label(tmp_path / f"{name}.png"), ids)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "pbm"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_labels_of_few_bits_are_not_stretched(tmp_path, bits, ending):
    if bits > 1 and ending != "png":
        ending = "tif"  # Pillow writes none; OpenCV neither
    ids = (np.arange(16, dtype=np.uint8).reshape(4, 4)) % 2**bits
    picture = Image.fromarray(ids * (255 // (2**bits - 1)))
    path = tmp_path / f"x.{ending}"
    if bits == 1:
        picture = picture.convert("1")
    if ending == "tif" and bits > 1:
        path.write_bytes(tiff(ids, bits))
    else:
        picture.save(path, bits=bits)
    np.testing.assert_array_equal(files.read_raw_label(path), ids)


def tiff(ids, bits):
    """A grey TIFF of `bits` a pixel, four pixels a row; Pillow reads such files and writes none."""
    rows = [sum(int(v) << bits * (3 - k) for k, v in enumerate(row)) for row in ids]
    strip = b"".join(row.to_bytes(bits // 2, "big") for row in rows)
    tags = {256: 4, 257: 4, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: len(strip)}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + len(strip))
    return head + strip + struct.pack("<H", len(tags)) + table + bytes(4)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "gif"])
def test_a_palette_gives_its_indices_in_every_format(tmp_path, ending):
    ids = np.array([[0, 2, 1], [1, 2, 0]], np.uint8)
    picture = Image.new("P", (3, 2))
    picture.putpalette([200, 0, 0, 0, 200, 0, 9, 9, 200])
    picture.putdata(ids.ravel().tolist())
    picture.save(tmp_path / f"x.{ending}")
    np.testing.assert_array_equal(files.read_raw_label(tmp_path / f"x.{ending}"), ids)


def test_a_grey_gif_holds_its_greys_for_the_format_has_palettes_alone(tmp_path):
    ids = np.array([[0, 18, 7], [255, 18, 0]], np.uint8)
    Image.fromarray(ids).save(tmp_path / "x.gif")
    with Image.open(tmp_path / "x.gif") as picture:
        assert picture.mode == "P"
    np.testing.assert_array_equal(files.read_raw_label(tmp_path / "x.gif"), ids)


def test_a_palette_label_may_be_larger_than_pillow_opens_by_itself(tmp_path):
    height = width = 13_400  # 179.6 million pixels
    assert height * width > 178_956_970
    Image.new("P", (width, height), 1).save(tmp_path / "x.png", compress_level=1)
    found = files.read_raw_label(tmp_path / "x.png", megapixels=200)
    assert found.shape == (height, width)
    assert found[-1, -1] == 1


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint32", "float32"])
def test_whole_ids_of_any_integer_are_a_label_and_others_are_named(tmp_path, dtype):
    ids = np.array([[0, 7], [300, 33]])
    path = tmp_path / "x.tif"
    cv2.imwrite(str(path), ids.astype(dtype))
    if dtype == "float32":
        with refused(path, kind=files.UnreadableError, way_out="8 or 16 bits"):
            files.read_raw_label(path)
        with refused(path, kind=files.UnreadableError, way_out="scale them"):
            files.read_image(path)
        return
    np.testing.assert_array_equal(files.read_raw_label(path), ids)
    cv2.imwrite(str(path), (ids - 1 if dtype[0] == "i" else ids + 65_500).astype(dtype))
    with refused(path, kind=files.UnreadableError):
        files.read_raw_label(path)


@pytest.mark.parametrize("how", ["jpeg", "jpeg named png", "webp", "jpeg in tiff"])
def test_a_lossy_label_is_refused_unless_an_option_takes_it(tmp_path, how):
    picture = Image.new("L", (16, 16), 3)
    path = tmp_path / {"webp": "x.webp", "jpeg in tiff": "x.tif"}.get(how, "x.jpg")
    picture.save(path, **({"compression": "jpeg"} if how == "jpeg in tiff" else {}))
    if how == "jpeg named png":
        path = path.rename(tmp_path / "x.png")
    domain = Domain()
    flag = "--config.data.source.lossy_labels=true"
    with refused(path, kind=files.UnreadableError, way_out=flag):
        files.read_label(path, domain=domain, field=FIELD)
    taken = files.read_label(path, domain=replace(domain, lossy_labels=True), field=FIELD)
    assert taken.shape == (16, 16)
    picture.save(tmp_path / "kept.webp", lossless=True)
    np.testing.assert_array_equal(files.read_raw_label(tmp_path / "kept.webp"), 3)


def test_a_colour_label_is_refused_with_its_colours_as_the_option_that_takes_it(tmp_path):
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[0], picture[1:3] = (128, 64, 128), (0, 0, 142)
    path = tmp_path / "x.png"
    downloads.save_image(path, picture)
    with refused(path, kind=files.UnreadableError) as caught:
        files.read_label(path, domain=Domain(), field=FIELD)
    line = re.search(r'--(config\.data\.source\.label_colours)="(.*?)" ', caught.value.way_out)
    words = ["--config=configs/folder.py", f"--{line[1]}={line[2]}"]
    domain = load_config(words).data.source
    assert domain.label_colours == ((0, 0, 142), (0, 0, 0), (128, 64, 128))
    found = files.read_label(path, domain=domain, field=FIELD)
    np.testing.assert_array_equal(found[:, 0], [2, 0, 0, 1])


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_what_lies_behind_a_picture_does_no_harm_and_does_not_hide_that_it_is_cut(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    thumb = io.BytesIO()
    Image.new("RGB", (16, 12)).save(thumb, "JPEG")
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumb.getvalue()
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(path, **({"exif": exif} if suffix == "jpg" else {}))
    content, image = path.read_bytes(), files.read_image(path)
    video = b"\0\0\0\x20ftypmp42" + bytes(3_000_000)
    path.write_bytes(content + video)  # a phone's motion photo
    np.testing.assert_array_equal(files.read_image(path), image)
    for tail in (b"", bytes(200_000)):  # as where a download reserves its room
        path.write_bytes(content[: len(content) * 2 // 3] + tail)
        with refused(path, kind=files.UnreadableError, way_out="fetch it again"):
            files.read_image(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\0\0\0\x20ftypisom\0\0\2\0", "a video"),
        (b"\x1aE\xdf\xa3" + bytes(40), "a video"),
        (b"RIFF\0\0\0\0AVI LIST", "a video"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC photograph"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"%PDF-1.7", "a PDF"),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(tmp_path, content, what):
    (tmp_path / "x.png").write_bytes(content)
    with refused(tmp_path / "x.png", kind=files.UnreadableError) as caught:
        files.read_image(tmp_path / "x.png")
    assert f"is {what}, no picture" in str(caught.value)


def test_accents_pair_in_whatever_form_they_were_written(tmp_path):
    nfc, nfd = (unicodedata.normalize(form, "Zürich/é") for form in ("NFC", "NFD"))
    _picture(tmp_path / f"images/{nfd}.png")
    path = tmp_path / f"labels/{nfc}.png"
    path.parent.mkdir(parents=True)
    cv2.imwrite(str(path), np.zeros((6, 9), np.uint8))
    (tmp_path / "list.txt").write_text(nfd)
    for listing in (None, "list.txt"):
        domain = Domain(path=str(tmp_path), images="images", labels="labels", listing=listing)
        pictures = sources.open_labelled(domain, downloads.table(2), field=FIELD)
        assert [pictures.name(k) for k in range(len(pictures))] == [nfc]
        assert sources.read_pair(pictures, 0)[1].shape == (6, 9)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_listing_is_read_in_the_encoding_that_its_mark_says(tmp_path, encoding):
    _picture(tmp_path / "ü.png")
    (tmp_path / "list.txt").write_bytes("ü\r\n".encode(encoding))
    domain = Domain(path=str(tmp_path), listing="list.txt")
    assert sources.open_pictures(domain, field=FIELD).name(0) == "ü"


@pytest.mark.parametrize(
    ("encoding", "looks"),
    [("latin-1", "Latin-1"), ("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16"), ("cut", "UTF-8")],
)
def test_a_listing_in_another_encoding_is_named_with_it(tmp_path, encoding, looks):
    _picture(tmp_path / "ü.png")
    content = "ü\n".encode("utf-16" if encoding == "cut" else encoding)
    (tmp_path / "list.txt").write_bytes(content[:-1] if encoding == "cut" else content)
    domain = Domain(path=str(tmp_path), listing="list.txt")
    with refused(tmp_path / "list.txt", way_out=looks):
        sources.open_pictures(domain, field=FIELD)


def test_a_name_that_is_no_text_may_stand_in_a_listing_with_its_bytes(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    _picture(tmp_path / "plain.png")
    os.rename(tmp_path / "plain.png", tmp_path / f"{name}.png")
    (tmp_path / "list.txt").write_bytes(b"caf\xe9\n")
    domain = Domain(path=str(tmp_path), listing="list.txt")
    assert len(sources.open_pictures(domain, field=FIELD)) == 1


def test_hidden_files_and_what_macos_leaves_beside_an_archive_are_no_pictures(tmp_path):
    for name in ("a.png", ".b.png", ".trash/c.png", "__MACOSX/._a.png", "__MACOSX/d.png"):
        _picture(tmp_path / name)
    pictures = sources.open_pictures(Domain(path=str(tmp_path)), field=FIELD)
    assert [pictures.name(k) for k in range(len(pictures))] == ["a"]


def test_a_colour_picture_is_no_label(tmp_path):
    _picture(tmp_path / "x.png")
    with pytest.raises(files.UnreadableError, match="is a colour picture"):
        files.read_raw_label(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("images", "given"),
    [("images", "images"), ("rgb/train", "rgb"), ("rgb/train", "rgb/train"), ("a/**/b", "a")],
)
def test_a_path_that_is_the_folder_of_the_pictures_is_told_to_go_up(tmp_path, images, given):
    (tmp_path / images.partition("/**")[0]).mkdir(parents=True)
    domain = Domain(path=str(tmp_path / given), images=images)
    with refused(f"{FIELD}.path", way_out=f"one level up, {tmp_path}, which"):
        sources.open_pictures(domain, field=FIELD)
