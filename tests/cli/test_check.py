"""`check` finds every known defect, says how to fix it, and passes what is clean."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mrm_jax import main
from mrm_jax.config import Domain
from mrm_jax.data import labels, sources
from mrm_jax.errors import UsageError

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import downloads
from test_datasets import LAYOUTS


def checked(name, root, to, capsys, *flags):
    """(exit code, JSON document)."""
    words = ["check", name, "--from", str(root), "--to", str(to), "--json", *flags]
    code = main.run(words)
    return code, json.loads(capsys.readouterr().out)


def prepared(name, root, to):
    assert main.run(["prepare", name, "--from", str(root), "--to", str(to), "--workers", "1"]) == 0


def findings(document, severity):
    return [
        f["what"]
        for split in document["splits"].values()
        for f in split["findings"]
        if f["severity"] == severity
    ]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_clean_download_and_what_is_prepared_from_it_have_no_errors(name, tmp_path, capsys):
    build, counts = LAYOUTS[name]
    build(tmp_path / "raw")
    short = name.split()[0]
    code, raw = checked(short, tmp_path / "raw", tmp_path / "a", capsys)
    assert (code, findings(raw, "error")) == (0, [])
    assert {split: each["pictures"] for split, each in raw["splits"].items()} == counts
    words = ["--resize", "native", "--workers", "1"]
    main.run(
        ["prepare", short, "--from", str(tmp_path / "raw"), "--to", str(tmp_path / "p"), *words]
    )
    capsys.readouterr()
    code, stored = checked(short, tmp_path / "p", tmp_path / "b", capsys)
    assert (code, findings(stored, "error")) == (0, [])
    for split, each in raw["splits"].items():
        assert stored["splits"][split]["pixels"] == each["pixels"]
        assert stored["splits"][split]["ignored"] == each["ignored"]


def _write(path, content):
    path.write_bytes(content)


def _resave_as_8_bits(root):
    """What a reader without 16 bits makes of SYNTHIA's labels."""
    for path in (root / "GT/LABELS").glob("*.png"):
        wide = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), (wide >> 8).astype(np.uint8))


def _as_rgb(root):
    colour = labels.colourise(downloads.scene(1)[1], labels.CITYSCAPES)
    downloads.save_image(root / "labels/00002.png", colour)


def _train_ids(root):
    for k in range(3):
        downloads.save_grey(root / f"labels/{k + 1:05d}.png", downloads.scene(k)[1])


DEFECTS = {
    "cut off": (
        lambda root: _write(
            root / "images/00002.png", (root / "images/00002.png").read_bytes()[:99]
        ),
        "pictures that cannot be read",
    ),
    "empty": (lambda root: _write(root / "images/00002.png", b""), "pictures that cannot be read"),
    "unknown id": (
        lambda root: downloads.save_palette(root / "labels/00002.png", np.full((48, 80), 77)),
        "labels with ids outside the table",
    ),
    "size": (
        lambda root: downloads.save_image(
            root / "images/00002.png", downloads.scene(0, (40, 80))[0]
        ),
        "pictures and labels of different sizes",
    ),
    "missing label": (
        lambda root: (root / "labels/00002.png").unlink(),
        "pictures without a label",
    ),
    "twice": (
        lambda root: downloads.save_image(root / "images/00002.jpg", downloads.scene(0)[0]),
        "stems that occur twice",
    ),
    "label as colours": (_as_rgb, "labels that cannot be read as class ids"),
    "train ids": (_train_ids, "labels hold ids 0 to 18 and 255 alone, as train ids do"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_an_error_with_its_file_and_a_fix(name, tmp_path, capsys):
    spoil, what = DEFECTS[name]
    root = tmp_path / "data set è"
    downloads.gta(root)
    spoil(root)
    code, document = checked("gta", root, tmp_path / "to", capsys)
    assert code == 1
    found = [f for f in document["splits"]["train"]["findings"] if f["severity"] == "error"]
    assert len(found) == 1
    assert found[0]["what"].startswith(what)
    assert found[0]["fix"]
    assert "00002" in found[0]["example"] or name == "train ids"


WARNINGS = {
    "known to be odd": (
        lambda root: (
            downloads.save_image(root / "images/15188.png", downloads.scene(0, (40, 80))[0]),
            downloads.save_palette(root / "labels/15188.png", np.full((48, 80), 7)),
        ),
        "pictures that are known to be odd",
    ),
    "all ignored": (
        lambda root: downloads.save_palette(root / "labels/00002.png", np.zeros((48, 80))),
        "labels in which every pixel is ignored",
    ),
    "orphan": (
        lambda root: downloads.save_palette(root / "labels/00009.png", np.full((48, 80), 7)),
        "labels without a picture",
    ),
    "copy": (
        lambda root: _write(root / "images/00002.png", (root / "images/00001.png").read_bytes()),
        "pictures that are copies of another one",
    ),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_what_can_be_trained_on_is_a_warning(name, tmp_path, capsys):
    spoil, what = WARNINGS[name]
    downloads.gta(tmp_path / "raw")
    spoil(tmp_path / "raw")
    code, document = checked("gta", tmp_path / "raw", tmp_path / "to", capsys)
    assert code == 0
    assert what in findings(document, "warning")


def test_no_line_for_people_ends_in_two_full_stops(tmp_path, capsys):
    downloads.gta(tmp_path / "raw")
    (tmp_path / "raw/images/00002.png").write_bytes(b"")
    assert main.run(["check", "gta", "--from", str(tmp_path / "raw")]) == 1
    text = capsys.readouterr().out
    assert "00002.png" in text
    assert ".." not in text


def test_synthia_labels_that_lost_their_16_bits_are_an_error(tmp_path, capsys):
    downloads.synthia(tmp_path / "raw")
    _resave_as_8_bits(tmp_path / "raw")
    code, document = checked("synthia", tmp_path / "raw", tmp_path / "to", capsys)
    assert code == 1
    assert findings(document, "error")


def test_several_defects_are_all_reported_at_once(tmp_path, capsys):
    downloads.cityscapes(tmp_path / "raw")
    path = next((tmp_path / "raw/leftImg8bit/train").rglob("*.png"))
    path.write_bytes(b"")
    next((tmp_path / "raw/gtFine/val").rglob("*_labelIds.png")).unlink()
    code, document = checked("cityscapes", tmp_path / "raw", tmp_path / "to", capsys)
    assert code == 1
    assert findings(document, "error") == [
        "pictures that cannot be read",
        "pictures without a label",
    ]


@pytest.mark.parametrize("how", ["changed", "missing"])
def test_a_prepared_set_is_held_against_its_manifest(how, tmp_path, capsys):
    downloads.gta(tmp_path / "raw")
    prepared("gta", tmp_path / "raw", tmp_path / "to")
    capsys.readouterr()
    shard = next((tmp_path / "to").glob("*array_record*"))
    if how == "changed":
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(bytes(content))
    else:
        shard.unlink()
    code, document = checked("gta", tmp_path / "to", tmp_path / "out", capsys)
    assert code == 1
    what = {
        "changed": "files whose SHA-256 is not the manifest's",
        "missing": "files that are missing",
    }
    assert findings(document, "error") == [what[how]]


def test_the_report_is_for_people_too_and_nothing_is_written_into_the_data(tmp_path, capsys):
    downloads.camvid(tmp_path / "raw")
    before = sorted(tmp_path.joinpath("raw").rglob("*"))
    words = ["check", "camvid", "--from", str(tmp_path / "raw"), "--to", str(tmp_path / "to")]
    assert main.run([*words, "--fast"]) == 0
    text = capsys.readouterr().out
    assert "train: 3 of 367 pictures, 3 read, 48 x 80 px" in text
    assert "warning: 8" not in text
    assert "Fix: see whether all of its archives are unpacked here, once." in text
    assert sorted(tmp_path.joinpath("raw").rglob("*")) == before
    page = (tmp_path / "to/check.html").read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page
    sheet = cv2.imread(str(tmp_path / "to/contact_sheet_day_train.png"))[..., ::-1]
    assert (sheet == np.array((128, 64, 128))).all(-1).any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gtaa"], "'gtaa' is no data set; .* Did you mean 'gta'"),
        (["gta", "--config", "configs/tiny.py"], "--config says how a folder is stored"),
        (["gta"], "holds no picture of GTA5"),
    ],
)
def test_a_wrong_command_is_one_line(tmp_path, words, message):
    (tmp_path / "raw").mkdir()
    with pytest.raises(UsageError, match=message):
        main.run(["check", *words, "--from", str(tmp_path / "raw"), "--to", str(tmp_path / "to")])


def test_without_a_folder_for_the_report_nothing_is_written(tmp_path, monkeypatch, capsys):
    downloads.gta(tmp_path / "raw", count=1)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main.run(["check", "gta", "--from", "raw"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "pictures: " not in capsys.readouterr().out


def test_a_report_replaces_a_link_and_stays_in_its_folder(tmp_path, capsys):
    downloads.gta(tmp_path / "raw", count=1)
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "to").mkdir()
    for name in ("check.html", "contact_sheet_train.png"):
        (tmp_path / "to" / name).symlink_to(tmp_path / "precious")
    assert checked("gta", tmp_path / "raw", tmp_path / "to", capsys)[0] == 0
    assert (tmp_path / "precious").read_text() == "mine"
    prepared("gta", tmp_path / "raw", tmp_path / "set")
    manifest = tmp_path / "set/manifest.json"
    values = json.loads(manifest.read_text())
    for name in ("../precious", str(tmp_path / "precious")):
        shards = [{**values["splits"]["train"]["shards"][0], "file": name}]
        splits = {"train": {**values["splits"]["train"], "shards": shards}}
        manifest.write_text(json.dumps({**values, "splits": splits}))
        with pytest.raises(UsageError, match="a file of that name is refused"):
            checked("gta", tmp_path / "set", tmp_path / "to", capsys)
    splits = {"/../../x": {**values["splits"]["train"]}}
    manifest.write_text(json.dumps({**values, "splits": splits}))
    with pytest.raises(UsageError, match="a file of that name is refused"):
        checked("gta", tmp_path / "set", tmp_path / "to", capsys)


@pytest.mark.parametrize("locale", ["own", "C"])
def test_names_that_are_no_text_are_checked_and_prepared_like_others(tmp_path, monkeypatch, locale):
    stems = [b"caf\xe9", "\u00e9".encode(), b"a\nb", b"n" * 251]
    for k, stem in enumerate(stems):
        for folder, picture in zip(("images", "labels"), downloads.scene(k), strict=True):
            downloads.save_image(tmp_path / "x.png", np.atleast_3d(picture)[..., [0, -1, -1]])
            os.makedirs(tmp_path / "raw" / folder, exist_ok=True)
            os.rename(tmp_path / "x.png", os.fsencode(f"{tmp_path}/raw/{folder}/") + stem + b".png")
    commands = [
        ["check", "folder", "--from", "raw", "--to", "a"],
        ["prepare", "folder", "--from", "raw", "--to", "set", "--workers", "1"],
        ["check", "folder", "--from", "set", "--to", "b"],
    ]
    if locale == "own":
        monkeypatch.chdir(tmp_path)
        assert [main.run(words) for words in commands] == [0, 0, 0]
    else:
        script = "import json, sys\nfrom mrm_jax.main import run\n"
        script += "raise SystemExit(sum(map(run, json.loads(sys.argv[1]))))"
        done = subprocess.run(
            [sys.executable, "-c", script, json.dumps(commands)],
            cwd=tmp_path,
            env={
                "PYTHONPATH": str(Path(main.__file__).parents[1]),
                "LC_ALL": "C",
                "PYTHONUTF8": "0",
            },
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    names = json.loads((tmp_path / "set/pictures-train.json").read_text())["names"]
    assert sorted(name.encode("utf-8", "surrogateescape") for name in names) == sorted(stems)
    assert (tmp_path / "a/contact_sheet_train.png").stat().st_size


def own(root, *, labels="labels", ending=".png", count=4):
    """A set of one's own: images/, and masks beside them."""
    for k in range(count):
        image, label = downloads.scene(k)
        noise = np.random.default_rng(k).integers(0, 30, image.shape, np.uint8)
        downloads.save_image(root / f"images/{k}.png", image + noise)
        path = root / labels / f"{k}{ending}"
        downloads.save_grey(path.with_suffix(".png"), label)
        path.with_suffix(".png").rename(path)


@pytest.mark.parametrize("how", ["endings", "among the pictures", "one is missing", "same stem"])
def test_check_refuses_what_training_would_refuse_in_a_set_of_ones_own(how, tmp_path, capsys):
    root = tmp_path / "own"
    if how == "endings":
        own(root, ending=".PNG")
    elif how == "among the pictures":
        own(root, labels="images", ending="_mask.png")
    else:
        own(root)
        (root / "labels/2.png").unlink()
        if how == "same stem":
            downloads.save_image(root / "images/1.jpg", downloads.scene(1)[0])
    code, document = checked("folder", root, tmp_path / "to", capsys)
    assert code == 1
    assert findings(document, "error")
    with pytest.raises(UsageError) as caught:
        sources.open_labelled(
            Domain(path=str(root), images="images", labels="labels"),
            labels.CITYSCAPES,
            field="config.data.source",
        )
    if how == "endings":  # the line with which training refuses it, and its way out
        (found,) = (f for f in document["splits"]["train"]["findings"] if f["severity"] == "error")
        assert found["example"] in str(caught.value)
        assert "label_suffix=.PNG" in caught.value.way_out
        assert found["fix"] in caught.value.way_out
    assert "download" not in json.dumps(document)


def test_check_of_a_set_of_ones_own_is_silent_where_training_is(tmp_path, capsys):
    own(tmp_path / "own")
    code, document = checked("folder", tmp_path / "own", tmp_path / "to", capsys)
    assert (code, findings(document, "error")) == (0, [])


@pytest.mark.parametrize("folder", ["", "images/", "trip/day 2/"])
def test_pictures_alone_are_checked_and_prepared_at_any_depth(folder, tmp_path, capsys):
    for k in range(3):
        image = np.random.default_rng(k).integers(0, 256, (48, 80, 3), np.uint8)
        downloads.save_image(tmp_path / f"own/{folder}{k}.{('png', 'JPG', 'webp')[k]}", image)
    code, document = checked("folder", tmp_path / "own", tmp_path / "to", capsys)
    assert (code, findings(document, "error")) == (0, [])
    assert document["splits"]["train"]["pictures"] == 3
    assert any("as a target and not as a source" in w for w in findings(document, "warning"))
    prepared("folder", tmp_path / "own", tmp_path / "set")
    capsys.readouterr()
    domain = Domain(path=str(tmp_path / "set"))
    assert len(sources.open_pictures(domain, field="config.data.target")) == 3
    code, document = checked("folder", tmp_path / "set", tmp_path / "to", capsys)
    assert (code, findings(document, "error")) == (0, [])
    assert "download" not in json.dumps(document)
