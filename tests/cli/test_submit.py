"""`submit` writes what a server takes, and says of any other zip why it would be refused."""

import io
import itertools
import os
import re
import shutil
import stat
import struct
import sys
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from refusals import refused

sys.path.insert(0, str(Path(__file__).parent))

import conftest as runs  # noqa: E402

import mrm_jax  # noqa: E402
from mrm_jax.cli import segment  # noqa: E402
from mrm_jax.data import labels  # noqa: E402
from mrm_jax.errors import RunError  # noqa: E402
from mrm_jax.evaluation.submission import BENCHMARKS  # noqa: E402
from mrm_jax.evaluation.submitted import KINDS, check_zip  # noqa: E402
from mrm_jax.main import run  # noqa: E402

SIZE = (24, 40)
CITIES = ("berlin_000000_000019", "bonn_000001_000019", "munich_000397_000019")
FRAMES = ("GOPR0364_frame_000001", "GOPR0364_frame_000010", "GP010364_frame_000123")
PAGE = (Path(__file__).parents[2] / "docs" / "submit.md").read_text()


def png(array) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


def picture(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32(path.name.encode())
    path.write_bytes(png(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)))


@pytest.fixture(scope="module")
def run_of_19(tmp_path_factory):
    """A run of Cityscapes' 19 classes."""
    cfg = replace(runs.CONFIG, data=replace(runs.CONFIG.data, classes=labels.CITYSCAPES))
    return runs.saved_run(tmp_path_factory.mktemp("run19"), cfg)


@pytest.fixture
def cityscapes(tmp_path):
    for key in CITIES:
        city = key.partition("_")[0]
        picture(tmp_path / f"data/leftImg8bit/test/{city}/{key}_leftImg8bit.png")
    picture(tmp_path / "data/leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png")
    return tmp_path / "data"


def write(run_of_19, name, data, to, *more):
    words = ["submit", name, "--from", str(data), "--checkpoint", str(run_of_19), "--to", str(to)]
    return run([*words, *more])


def test_cityscapes_own_script_finds_and_scores_what_is_written(
    run_of_19, cityscapes, tmp_path, capsys, monkeypatch
):
    scripts = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    to = tmp_path / "out" / "mine.zip"
    assert write(run_of_19, "cityscapes", cityscapes, to) == 0
    said = capsys.readouterr()
    assert "3 pictures of test" in said.out
    assert "3 pictures of test are here, of 1525" in said.err
    assert not (tmp_path / "out" / "mine.zip.parts").exists()
    with zipfile.ZipFile(to) as archive:
        archive.extractall(tmp_path / "results")
    monkeypatch.setattr(scripts.args, "predictionPath", str(tmp_path / "results"))
    monkeypatch.setattr(scripts.args, "predictionWalk", None)
    net = mrm_jax.load(run_of_19)
    for key in CITIES:
        found = scripts.getPrediction(scripts.args, f"{key}_gtFine_labelIds.png")
        image = Image.open(found)
        assert image.mode == "L"
        source = next((cityscapes / "leftImg8bit" / "test").rglob(f"{key}*.png"))
        expected = net.predict(cv2.imread(str(source))[..., ::-1]).ids
        # The script's own table says which train id a label id is.
        table = scripts.id2label
        back = np.vectorize(lambda i, table=table: table[i].trainId)(np.array(image))
        assert np.array_equal(back, expected)
    assert run(["submit", "cityscapes", "--check", str(to), "--from", str(cityscapes)]) == 0
    assert run(["submit", "cityscapes", "--check", str(to)]) == 1
    assert "3 of berlin" not in (out := capsys.readouterr().out)
    assert "berlin: 1 are there, of 544" in out
    assert "1522 images that are missing" in out


@pytest.mark.parametrize(("name", "folders"), [("acdc", 1), ("dark_zurich", 3)])
def test_folders_hold_train_ids_and_confidences(run_of_19, tmp_path, name, folders):
    where = "rgb_anon/{}test/{}/{}_rgb_anon.png"
    for key in FRAMES:
        condition = "night/" if name == "acdc" else ""
        picture(tmp_path / "data" / where.format(condition, key.partition("_")[0], key))
    to = tmp_path / "mine.zip"
    assert write(run_of_19, name, tmp_path / "data", to) == 0
    before = to.read_bytes()
    with zipfile.ZipFile(to) as archive:
        names = archive.namelist()
        assert len(names) == folders * len(FRAMES)
        net = mrm_jax.load(run_of_19)
        for key in FRAMES:
            source = next((tmp_path / "data").rglob(f"{key}*.png"))
            expected = net.predict(cv2.imread(str(source))[..., ::-1])
            for folder in ("labelTrainIds", "labelTrainIds_invalid", "confidence")[:folders]:
                content = np.frombuffer(archive.read(f"{folder}/{key}_rgb_anon.png"), np.uint8)
                image = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
                if folder == "confidence":
                    assert image.dtype == np.uint16
                    # Half a step of 16 bits, and what is left of float32.
                    assert np.abs(image / 65535 - expected.confidence).max() < 1e-5
                else:
                    assert np.array_equal(image, expected.ids)
    assert write(run_of_19, name, tmp_path / "data", to) == 0
    assert to.read_bytes() == before  # the same predictions, the same zip


def test_a_call_that_was_ended_goes_on_and_leaves_no_half_of_a_zip(
    run_of_19, cityscapes, tmp_path, monkeypatch, capsys
):
    seen, whole = [], segment._seen

    def ends(net, group):
        seen.append([each.job.name for each in group])
        if len(seen) == 2:
            raise KeyboardInterrupt
        return whole(net, group)

    monkeypatch.setattr(segment, "_seen", ends)
    to = tmp_path / "mine.zip"
    with pytest.raises(KeyboardInterrupt):
        write(run_of_19, "cityscapes", cityscapes, to, "--batch", "1")
    assert not to.exists()
    assert write(run_of_19, "cityscapes", cityscapes, to, "--batch", "1") == 0
    assert "1 of 3 are there already" in capsys.readouterr().out
    assert len(seen) == 4  # one done, one ended, and the two that were left
    assert sorted(os.listdir(tmp_path)) == ["data", "mine.zip"]


def test_other_classes_and_flags_that_lack_are_refused(workdir, run_of_19, cityscapes, tmp_path):
    to = tmp_path / "mine.zip"
    with refused("config.data.classes", way_out="trained with them") as caught:
        write(workdir, "cityscapes", cityscapes, to)
    assert "3 classes" in str(caught.value)
    with refused("--to", way_out=".zip"):
        write(run_of_19, "cityscapes", cityscapes, tmp_path / "folder")
    with refused("dark_zurich --from"):
        write(run_of_19, "dark_zurich", cityscapes, to)
    shutil.copytree(cityscapes / "leftImg8bit/val", tmp_path / "val/leftImg8bit/val")
    with refused("cityscapes --from", tmp_path / "val", way_out="--split val"):
        write(run_of_19, "cityscapes", tmp_path / "val", to)
    with refused("--from", way_out="--check"):
        run(["submit", "cityscapes"])
    with refused("--to"):
        run(["submit", "cityscapes", "--check", str(to), "--to", str(to)])
    with refused("--check"):
        run(["submit", "cityscapes", "--check", str(to)])
    with refused("submit", "gta"):
        run(["submit", "gta", "--check", str(to)])


def test_pictures_that_cannot_be_read_or_told_apart_leave_no_zip(run_of_19, cityscapes, tmp_path):
    to, berlin = tmp_path / "mine.zip", next(cityscapes.rglob("berlin*.png"))
    whole = berlin.read_bytes()
    berlin.write_bytes(whole[:100])  # its header is there
    with refused(berlin, way_out="goes on", kind=RunError):
        write(run_of_19, "cityscapes", cityscapes, to)
    berlin.write_bytes(whole[:20])
    with refused(berlin, way_out="again"):
        write(run_of_19, "cityscapes", cityscapes, to)
    berlin.write_bytes(whole)
    twin = berlin.with_name("berlin_000000_000019_b_leftImg8bit.png")
    twin.write_bytes(whole)
    with refused(twin, way_out="empty folder"):
        write(run_of_19, "cityscapes", cityscapes, to)
    assert not to.exists()


def test_a_download_may_lie_in_its_archives(run_of_19, cityscapes, tmp_path):
    assert write(run_of_19, "cityscapes", cityscapes, tmp_path / "a.zip") == 0
    (tmp_path / "packed").mkdir()
    shutil.make_archive(str(tmp_path / "packed/leftImg8bit_trainvaltest"), "zip", cityscapes)
    assert write(run_of_19, "cityscapes", tmp_path / "packed", tmp_path / "b.zip") == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


# Small stand-ins for the benchmarks: the same rules, of few and small pictures.
SMALL = {
    "cityscapes": replace(
        BENCHMARKS["cityscapes"],
        size=SIZE,
        counts={"test": {"berlin": 2, "bonn": 1}, "val": {"lindau": 2}},
        largest=None,
    ),
    "dark_zurich": replace(
        BENCHMARKS["dark_zurich"], size=SIZE, counts={"test": {"": 3}, "val": {"": 2}}
    ),
    "acdc": replace(
        BENCHMARKS["acdc"], size=SIZE, counts={"test": {"": 4}, "val": {"": 3}}, part=2
    ),
}
LABELS = (
    np.random.default_rng(0)
    .choice(sorted(i for row in labels.CITYSCAPES_IDS for i in row), SIZE)
    .astype(np.uint8)
)
TRAINED = np.random.default_rng(0).integers(0, 19, SIZE).astype(np.uint8)
SURE = np.random.default_rng(0).integers(0, 65536, SIZE).astype(np.uint16)


def good(name) -> dict[str, bytes]:
    """The members of a zip that is right."""
    if name == "cityscapes":
        keys = ("berlin_000000_000019", "berlin_000001_000019", "bonn_000000_000019")
        return {f"{key}_leftImg8bit.png": png(LABELS) for key in keys}
    keys = (*FRAMES, "GP010364_frame_000124")[: 4 if name == "acdc" else 3]
    content = {"labelTrainIds": png(TRAINED)}
    if name == "dark_zurich":
        content |= {"labelTrainIds_invalid": png(TRAINED), "confidence": png(SURE)}
    return {f"{folder}/{key}.png": data for folder, data in content.items() for key in keys}


def zipped(path, members, **how) -> Path:
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content)
    return path


def kinds(path, name, split="test"):
    """The kinds of what is found."""
    by_what = {what: kind for kind, (_, what, _) in KINDS.items()}
    return {by_what[found.what]: found for found in check_zip(path, SMALL[name], split)}


@pytest.mark.parametrize("name", SMALL)
def test_a_zip_that_is_right_is_taken_whichever_way_it_was_packed(name, tmp_path):
    members = good(name)
    assert not kinds(zipped(tmp_path / "a.zip", members), name)
    assert not kinds(zipped(tmp_path / "b.zip", members, compression=zipfile.ZIP_DEFLATED), name)
    named = {key.replace(".png", "_rgb_anon.png"): data for key, data in members.items()}
    assert not kinds(zipped(tmp_path / "c.zip", named), name)
    if name == "cityscapes":  # its script searches every folder
        deep = {f"results/berlin/{key}": data for key, data in members.items()}
        assert not kinds(zipped(tmp_path / "d.zip", deep), name)


def palette(array) -> bytes:
    image = Image.fromarray(array, "P")
    image.putpalette([value for value in range(256) for _ in range(3)])
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def saved(mode, bits=None) -> bytes:
    stream = io.BytesIO()
    options = {} if bits is None else {"bits": bits}
    Image.new(mode, SIZE[::-1], None).save(stream, "PNG", **options)
    return stream.getvalue()


def huge_png() -> bytes:
    """A PNG whose header promises 60000 x 60000 px."""
    content = bytearray(png(LABELS))
    content[16:24] = struct.pack(">II", 60000, 60000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def first(members):
    return next(iter(members))


def but(members, content, at=0):
    """The members with another content of one."""
    name = list(members)[at]
    return {**members, name: content}


def moved(members, change):
    return {change(name): content for name, content in members.items()}


JPEG = cv2.imencode(".jpg", LABELS)[1].tobytes()
CASES = {  # of cityscapes: what is done to a zip that is right -> what alone is said of it
    "train ids": (lambda m: dict.fromkeys(m, png(TRAINED)), {"train"}),
    "train ids in one": (lambda m: but(m, png(TRAINED)), {"train"}),
    "colours": (lambda m: but(m, png(np.dstack([LABELS] * 3))), {"colour"}),
    "colours and alpha": (lambda m: but(m, png(np.dstack([LABELS] * 4))), {"colour"}),
    "grey and alpha": (lambda m: but(m, saved("LA")), {"alpha"}),
    "palette": (lambda m: but(m, palette(LABELS)), {"palette"}),
    "16 bits": (lambda m: but(m, png(LABELS.astype(np.uint16))), {"bits"}),
    "1 bit": (lambda m: but(m, saved("1")), {"bits"}),
    "half as large": (lambda m: but(m, png(LABELS[::2, ::2])), {"size"}),
    "on its side": (lambda m: but(m, png(np.ascontiguousarray(LABELS.T))), {"size"}),
    "promises much": (lambda m: but(m, huge_png()), {"size"}),
    "unpacks to much": (lambda m: but(m, bytes(2**23)), {"bomb"}),
    "ignored pixels": (lambda m: but(m, png(np.where(LABELS == 7, 255, LABELS))), {"ignored"}),
    "void pixels": (lambda m: but(m, png(np.where(LABELS == 7, 4, LABELS))), {"void"}),
    "shares": (lambda m: but(m, png(np.full(SIZE, 200, np.uint8))), {"values"}),
    "jpeg": (
        lambda m: moved(but(m, JPEG), lambda n: n[:-3] + "jpg" if n == first(m) else n),
        {"suffix"},
    ),
    "jpeg called png": (lambda m: but(m, JPEG), {"format"}),
    "capitals": (lambda m: moved(m, lambda n: n.replace(".png", ".PNG")), {"suffix"}),
    "cut off": (lambda m: but(m, png(LABELS)[:-20]), {"broken"}),
    "empty file": (lambda m: but(m, b""), {"format"}),
    "one missing": (lambda m: dict(list(m.items())[1:]), {"missing"}),
    "one too many": (lambda m: m | {"bonn_000009_000019.png": png(LABELS)}, {"extra"}),
    "no picture's": (lambda m: m | {"readme.txt": b"hello"}, {"stranger"}),
    "twice, by folder": (lambda m: m | {f"copy/{first(m)}": png(LABELS)}, {"double"}),
    "twice, by ending": (lambda m: m | {"bonn_000000_000019_2.png": png(LABELS)}, {"double"}),
    "of val": (
        lambda m: {f"lindau_00000{i}_000019.png": png(LABELS) for i in range(2)},
        {"split", "missing"},
    ),
    "of nowhere": (lambda m: m | {"ulm_000000_000019.png": png(LABELS)}, {"extra"}),
    "mac": (lambda m: m | {f"__MACOSX/._{first(m)}": b"x", ".DS_Store": b"x"}, {"macos"}),
    "leads out": (lambda m: m | {"../../x.png": png(LABELS)}, {"name"}),
    "from the root": (lambda m: m | {"/etc/x.png": png(LABELS)}, {"name"}),
    "backslashes": (
        lambda m: moved(m, lambda n: n.replace("berlin", "a\\berlin")),
        {"backslash", "missing"},
    ),
    "nothing": (lambda m: {}, {"missing"}),
}


@pytest.mark.parametrize("case", CASES)
def test_each_way_of_being_refused_is_said_alone(case, tmp_path):
    change, expected = CASES[case]
    found = kinds(zipped(tmp_path / "a.zip", change(good("cityscapes"))), "cityscapes")
    assert set(found) == expected
    assert all(each.fix and each.example for each in found.values())


FOLDERS = {  # of dark_zurich
    "flat": (
        lambda m: {n.split("/")[1]: c for n, c in m.items() if n.startswith("labelTrainIds/")},
        {"nested", "folder"},
    ),
    "in another folder": (lambda m: moved(m, lambda n: f"submission/{n}"), {"nested"}),
    "no confidence": (
        lambda m: {n: c for n, c in m.items() if "confidence" not in n},
        {"folder"},
    ),
    "label ids": (lambda m: but(m, png(LABELS)), {"label"}),
    "255": (
        lambda m: but(m, png(np.where(TRAINED == 0, 255, TRAINED).astype(np.uint8))),
        {"ignored"},
    ),
    "255 where it may be": (
        lambda m: but(m, png(np.where(TRAINED == 0, 255, TRAINED).astype(np.uint8)), 3),
        set(),
    ),
    "confidence of 8 bits": (lambda m: but(m, png(TRAINED), 6), {"confidence"}),
    "colours of confidence": (lambda m: but(m, png(np.dstack([SURE] * 3)), 6), {"colour"}),
    "as many as val": (
        lambda m: {n: c for n, c in m.items() if "_000123" not in n},
        {"split"},
    ),
    "sequences below": (lambda m: moved(m, lambda n: n.replace("/", "/night/GOPR/")), set()),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_are_where_the_server_opens_them(case, tmp_path):
    change, expected = FOLDERS[case]
    found = kinds(zipped(tmp_path / "a.zip", change(good("dark_zurich"))), "dark_zurich")
    assert set(found) == expected


def test_one_condition_of_acdc_is_a_task_of_its_own(tmp_path):
    members = dict(list(good("acdc").items())[:2])
    found = kinds(zipped(tmp_path / "a.zip", members), "acdc")
    assert {kind: each.severity for kind, each in found.items()} == {"part": "warning"}


def test_what_is_no_archive_and_what_is_damaged_are_told_apart(tmp_path):
    whole = zipped(tmp_path / "a.zip", good("cityscapes"))
    cut = tmp_path / "cut.zip"
    cut.write_bytes(whole.read_bytes()[:-50])
    assert set(kinds(cut, "cityscapes")) == {"archive"}
    flipped = bytearray(whole.read_bytes())
    flipped[300] ^= 255  # inside the first image
    cut.write_bytes(flipped)
    assert set(kinds(cut, "cityscapes")) == {"damaged"}
    tarred = tmp_path / "mine.tar"
    tarred.write_bytes(whole.read_bytes())
    assert set(kinds(tarred, "cityscapes")) == {"ending"}
    tarred.write_bytes(b"not an archive")
    assert set(kinds(tarred, "cityscapes")) == {"ending", "archive"}
    locked = bytearray(whole.read_bytes())
    for mark, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        for at in (found.start() for found in re.finditer(re.escape(mark), bytes(locked))):
            locked[at + flags] |= 1
    cut.write_bytes(locked)
    assert set(kinds(cut, "cityscapes")) == {"locked", "missing"}
    packed = zipped(tmp_path / "b.zip", good("cityscapes"), compression=zipfile.ZIP_LZMA)
    assert set(kinds(packed, "cityscapes")) == {"packed", "missing"}


def test_links_and_doubled_members_are_named(tmp_path):
    link = zipfile.ZipInfo("bonn_000009_000019.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    members = [*good("cityscapes").items(), (link, "/etc/passwd")]
    assert set(kinds(zipped(tmp_path / "a.zip", members), "cityscapes")) == {"link"}
    name, content = first(good("cityscapes")), png(LABELS)
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(tmp_path / "b.zip", [*good("cityscapes").items(), (name, content)])
    assert set(kinds(path, "cityscapes")) == {"double"}


def test_the_page_names_every_way_of_being_refused():
    assert not [what for _, what, _ in KINDS.values() if what not in PAGE]
    made = {
        kind for _, found in itertools.chain(CASES.values(), FOLDERS.values()) for kind in found
    }
    elsewhere = {"archive", "ending", "link", "locked", "packed", "damaged", "part", "heavy"}
    assert made | elsewhere == set(KINDS)


def test_the_command_prints_a_line_for_each_and_how_many(tmp_path, capsys):
    path = zipped(tmp_path / "a.zip", {"berlin_000000_000019.png": png(LABELS)})
    assert run(["submit", "cityscapes", "--check", str(path)]) == 1
    out = capsys.readouterr().out
    assert "is 40 x 24 px, not 2048 x 1024" in out
    assert out.count("Fix: ") == 2
    assert "for 2 reasons" in out
