"""A picture takes no more room than its header promises and the user allows."""

import json
import struct
import zipfile
import zlib

import cv2
import downloads
import numpy as np
import pytest
from mrm_jax.data.locate import locate
from PIL import Image
from refusals import refused

from mrm_jax import main
from mrm_jax.config import Domain
from mrm_jax.data import datasets, files, labels, promise, tree
from mrm_jax.errors import UsageError

SUFFIXES = (".png", ".jpg", ".bmp", ".tif", ".webp", ".ppm", ".pgm")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_header_of_every_format_is_understood(tmp_path, suffix):
    array = np.random.default_rng(0).integers(0, 256, (37, 61, 3), np.uint8)
    content = cv2.imencode(suffix, array if suffix != ".pgm" else array[..., 0])[1].tobytes()
    assert promise.size(content) == (37, 61)
    for cut in range(1, 60):  # no error of its own for a damaged one
        promise.size(content[:cut])


@pytest.mark.parametrize("how", ["lossless", "lossy", "alpha", "gif", "big", "motorola"])
def test_so_are_the_variants_of_a_format_and_what_is_no_picture_promises_nothing(tmp_path, how):
    image = Image.new("RGBA" if how == "alpha" else "RGB", (61, 37))
    path = tmp_path / f"x.{'webp' if how in ('lossless', 'lossy', 'alpha') else 'tif'}"
    if how == "gif":
        path = tmp_path / "x.gif"
        image.save(path)
        assert promise.size(path.read_bytes()) is None
        return
    if how == "motorola":
        table = struct.pack(">HHHIIHHII", 2, 256, 4, 1, 61, 257, 3, 1, 37 << 16)
        path.write_bytes(b"MM\0*\0\0\0\x08" + table)
    elif how == "big":
        image.save(path, big_tiff=True)
    else:
        image.save(path, lossless=how == "lossless", exif=Image.Exif())
    assert promise.size(path.read_bytes()) == (37, 61)


def png(height, width, pixels=b""):
    """A PNG that promises a size, whatever it holds."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(pixels, 9)), (b"IEND", b"")]
    parts = (
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def spoilt(archive, member):
    """Damages the compressed stream of a member."""
    with zipfile.ZipFile(archive) as opened:
        info = opened.getinfo(member)
    content = bytearray(archive.read_bytes())
    at = info.header_offset + 30 + len(member)
    content[at] = content[at + 20] = 0xFF  # deflate knows no such block; LZMA skips the first byte
    archive.write_bytes(content)


@pytest.mark.parametrize("kind", ["STORED", "DEFLATED", "BZIP2", "LZMA"])
def test_a_damaged_member_of_an_archive_is_a_finding_that_names_it(tmp_path, kind, capsys):
    downloads.gta(tmp_path / "raw")
    archive = tmp_path / "gta.zip"
    with zipfile.ZipFile(archive, "w", getattr(zipfile, f"ZIP_{kind}")) as opened:
        for path in sorted((tmp_path / "raw").rglob("*.png")):
            opened.write(path, path.relative_to(tmp_path / "raw").as_posix())
    spoilt(archive, "images/00002.png")
    spoilt(archive, "labels/00003.png")
    words = ["check", "gta", "--from", str(archive), "--to", str(tmp_path / "to"), "--json"]
    assert main.run(words) == 1
    found = json.loads(capsys.readouterr().out)["splits"]["train"]["findings"]
    assert [f["example"].split(" cannot")[0] for f in found if f["severity"] == "error"] == [
        f"{archive}/images/00002.png",
        f"{archive}/labels/00003.png",
    ]


def test_a_member_is_unpacked_no_further_than_its_header_promises(tmp_path, monkeypatch):
    archive = tmp_path / "x.zip"
    grown = {"large.png": png(48, 80) + bytes(2**25), "plain.json": bytes(2**25)}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in (*grown.items(), ("wide.png", png(30_000, 30_000))):
            opened.writestr(name, content)
    monkeypatch.setattr(tree.Member, "read_bytes", lambda member: pytest.fail("unpacked"))
    with refused(tree.Member(archive, "large.png"), kind=files.UnreadableError):
        files.read_image(tree.Member(archive, "large.png"))
    with refused(tree.Member(archive, "plain.json"), kind=files.UnreadableError):
        files.read_raw_label(tree.Member(archive, "plain.json"), megapixels=0.1)
    with refused(tree.Member(archive, "wide.png"), kind=files.UnreadableError):
        files.read_image(tree.Member(archive, "wide.png"))


def test_a_picture_of_more_pixels_than_allowed_is_unreadable_by_every_way(tmp_path, capsys):
    downloads.gta(tmp_path / "raw", count=2, size=(64, 96))
    words = ["--from", str(tmp_path / "raw"), "--max_megapixels", "0.005", "--to"]
    assert main.run(["check", "gta", *words, str(tmp_path / "report")]) == 1
    assert "2 pictures that cannot be read" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"00001.png promises a picture of 64 x 96 px, more than"):
        main.run(["prepare", "gta", *words, str(tmp_path / "to"), "--workers", "1"])
    raw = Domain(path=str(tmp_path / "raw"), images="images", labels="labels", max_megapixels=0.005)
    pictures = files_of(raw)
    for read in (pictures.image, pictures.label):
        with pytest.raises(files.UnreadableError, match=r"max_megapixels \(0.005\)"):
            read(0)


def files_of(domain):
    from mrm_jax.data import sources

    return sources.open_labelled(domain, labels.CITYSCAPES, field="config.data.source")


POLYGONS = {"imgHeight": 8, "imgWidth": 9, "objects": []}
SHAPE = {"label": "road", "polygon": [[0, 0], [4, 0], [4, 4]]}


@pytest.mark.parametrize(
    "document",
    [
        *("[" * 100_000, "{}", "[]", "7", '{"imgHeight": 1', "\x00"),
        POLYGONS | {"imgHeight": 10**9, "imgWidth": 10**9},
        POLYGONS | {"imgHeight": 10**6, "imgWidth": 10**6},
        POLYGONS | {"imgHeight": 0},
        POLYGONS | {"imgHeight": "8"},
        *(POLYGONS | {"objects": value} for value in (None, 3, {}, [3], [[]], [{}])),
        *(
            POLYGONS | {"objects": [SHAPE | change]}
            for change in (
                {"label": 3},
                {"label": "dragon"},
                {"polygon": 3},
                {"polygon": [[1]]},
                {"polygon": [[0, "x"], [1, 1]]},
                {"polygon": [[0, 1e999], [1, 1], [2, 2]]},
                {"polygon": [[0, 1]]},
                {"polygon": []},
            )
        ),
    ],
)
def test_polygons_of_any_other_shape_are_one_line_that_names_the_file(tmp_path, document):
    path = tmp_path / "x_polygons.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(files.UnreadableError, match=r"x_polygons.json is no file of polygons: "):
        files.read_raw_label(path)


def test_a_newline_in_a_name_leaves_nothing_out_and_a_nul_is_refused(tmp_path):
    downloads.gta(tmp_path / "raw")
    for part in ("images", "labels"):
        (tmp_path / f"raw/{part}/00002.png").rename(tmp_path / f"raw/{part}/a\nb.png")
    found = locate(datasets.DATA_SETS["gta"], tmp_path / "raw")["train"]
    assert list(found.pictures) == list(found.labels) == ["00001", "00003", "a\nb"]
    archive = tmp_path / "raw/more.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("images/00001.pngX.png", b"")
    archive.write_bytes(archive.read_bytes().replace(b"pngX", b"png\0"))
    with pytest.raises(UsageError, match=r"'images/00001.png\\x00.png' .* a name with a NUL byte"):
        locate(datasets.DATA_SETS["gta"], tmp_path / "raw")


def test_a_stem_of_a_list_without_a_picture_is_said(tmp_path, capsys):
    downloads.camvid(tmp_path / "raw")
    next((tmp_path / "raw/images/train").iterdir()).unlink()
    words = ["camvid", "--from", str(tmp_path / "raw"), "--to", str(tmp_path / "to")]
    assert main.run(["check", *words]) == 1
    assert "error: 1 stems of its list without a picture" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"has no picture \(splits/day_train.txt\)"):
        main.run(["prepare", *words, "--splits", "day_train"])
    (tmp_path / "raw/splits/day_train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"day_train.txt is no text in UTF-8"):
        main.run(["check", *words])
