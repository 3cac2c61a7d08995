"""`predict` as a user calls it, with the pictures that users have."""

import csv
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from refusals import refused

import mrm_jax
from mrm_jax.errors import UsageError
from mrm_jax.evaluation.network import TrainedNetwork
from mrm_jax.evaluation.pictures import NamedPicture, collect_pictures, name_outputs, scale_warning
from mrm_jax.main import run

RNG = np.random.default_rng(0)


def write(path, shape, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    top = np.iinfo(dtype).max
    assert cv2.imwrite(str(path), RNG.integers(0, top, shape, dtype))
    return path


def ids(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_pictures_of_any_kind_come_back_at_their_own_size(workdir, tmp_path, capsys):
    shapes = {
        "odd": (49, 67, 3),
        "grey": (48, 64),
        "rgba": (48, 64, 4),
        "portrait": (80, 40, 3),
        "tiny": (1, 2, 3),
        "strip": (3, 90, 3),
    }
    for name, shape in shapes.items():
        write(tmp_path / "in" / f"{name}.png", shape)
    write(tmp_path / "in" / "=deep.png", (48, 64, 3), np.uint16)
    shapes["=deep"] = (48, 64)
    out = tmp_path / "out"
    words = ["predict", str(tmp_path / "in"), "--checkpoint", str(workdir), "--to", str(out)]
    assert run(words) == 0
    with (out / "class_shares.csv").open() as table:
        rows = {row["name"]: row for row in csv.DictReader(table)}
    rows["=deep"] = rows.pop("'=deep")  # or a spreadsheet would compute it
    assert set(rows) == set(shapes)
    for name, shape in shapes.items():
        found = ids(out / f"{name}.png")
        assert found.dtype == np.uint8
        assert found.shape == shape[:2]
        assert found.max() < 3
        colour = ids(out / f"{name}_colour.png")[..., ::-1]
        table = np.array([(128, 64, 128), (0, 0, 142), (70, 130, 180)])
        assert np.array_equal(colour, table[found])
        assert ids(out / f"{name}_overlay.png").shape == (*shape[:2], 3)
        shares = [float(rows[name][c]) for c in ("road", "car", "sky")]
        counted = np.bincount(found.ravel(), minlength=3) / found.size
        assert shares == pytest.approx(counted, abs=1e-6)
    assert "tiny.png is 2 x 1 px and is enlarged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({}, "whole"),
        ({"mode": "slide", "window": (32, 40), "stride": (20, 30)}, "windows"),
        ({"whole_pixels": 2**12}, "parts"),
        ({"flip": True, "scales": (0.75, 1.0)}, "mirrored"),
    ],
)
def test_predictions_are_those_that_evaluate_scores(  # at odd sizes, below and above the crop
    unfitted, tmp_path, capsys, given, mode
):
    run_of, root = unfitted(given)
    scored, own = tmp_path / "scored", tmp_path / "own"
    words = ["--checkpoint", str(run_of), "--network", "student"]
    assert run(["evaluate", *words, "--to", str(tmp_path), "--save_predictions", str(scored)]) == 0
    assert mode in capsys.readouterr().out
    assert run(["predict", str(root / "images"), *words, "--to", str(own)]) == 0
    assert mode in capsys.readouterr().out
    files = sorted(path.relative_to(scored) for path in scored.rglob("*.png"))
    assert len(files) == len(UNFITTED)
    for file in files:
        assert np.array_equal(ids(scored / file), ids(own / file))


UNFITTED = ((31, 33), (33, 31), (24, 90), (77, 61), (80, 129), (77, 61))


@pytest.fixture
def unfitted(workdir, tmp_path):
    """`unfitted(evaluation)`: a checkpoint whose pictures, of many sizes, are read as they are."""
    root = tmp_path / "many"
    for i, size in enumerate(UNFITTED):
        write(root / f"images/town/{i}.png", (*size, 3))
        cv2.imwrite(str(write(root / f"labels/town/{i}.png", size)), RNG.integers(0, 3, size))

    def made(evaluation):
        path = tmp_path / "step" / "7"
        shutil.copytree(workdir / "checkpoints/7", path)
        facts = json.loads((path / "facts/metadata").read_text())
        facts["config"]["evaluation"] |= evaluation
        facts["config"]["data"]["evaluation"] |= {"path": str(root), "resize": None}
        (path / "facts/metadata").write_text(json.dumps(facts))
        return path, root

    return made


def test_unreadable_pictures_are_named_and_the_others_done(workdir, tmp_path, capsys):
    for name in ("a", "c"):
        write(tmp_path / f"in/{name}.png", (48, 64, 3))
    (tmp_path / "in/b.png").write_bytes(b"no picture")
    words = ["predict", str(tmp_path / "in"), "--checkpoint", str(workdir)]
    assert run([*words, "--to", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr()
    assert "b.png" in shown.err
    assert "2 of 3 pictures" in shown.out
    done = {p.name for p in (tmp_path / "out").glob("*.png")}
    assert {"a.png", "c.png"} <= done
    assert "b.png" not in done


def test_a_photograph_taken_sideways_is_segmented_upright(workdir, tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to look at
    picture = Image.fromarray(RNG.integers(0, 255, (30, 60, 3), np.uint8))
    picture.save(tmp_path / "phone.jpg", exif=exif)
    words = ["predict", str(tmp_path / "phone.jpg"), "--checkpoint", str(workdir)]
    assert run([*words, "--to", str(tmp_path / "out")]) == 0
    assert ids(tmp_path / "out/phone.png").shape == (60, 30)


def test_results_lie_as_the_pictures_below_their_folder_whatever_lies_beside_them(tmp_path):
    names = ["x/a.png", "y/a.png", "y/deep/a.jpg", "b.png", "c.jpg"]
    pictures = {name: write(tmp_path / "in" / name, (4, 4, 3)) for name in names}
    folder, to = str(tmp_path / "in"), tmp_path / "out"

    def named(*words):
        return {job.path: job.name for job in name_outputs(collect_pictures(words, to), to)}

    together = named(folder)
    assert together == {path: str(pathlib.Path(n).with_suffix("")) for n, path in pictures.items()}
    for path, name in together.items():
        others = [p for p in pictures.values() if p != path]
        for other in others:
            other.rename(other.with_suffix(".gone"))
        assert named(folder) == {path: name}
        for other in others:
            other.with_suffix(".gone").rename(other)
    assert named(folder + "/y/*.png", str(pictures["b.png"])) == {
        pictures["y/a.png"]: "a",
        pictures["b.png"]: "b",
    }


def test_results_of_equal_names_and_of_look_alikes_are_numbered_and_share_no_file(tmp_path):
    names = ["x/a", "y/A", "b", "b_colour", "b", "b_2"]
    jobs = name_outputs([NamedPicture(tmp_path / f"{i}.png", n) for i, n in enumerate(names)],
                        tmp_path / "out")  # fmt: skip
    assert [job.name for job in jobs] == ["x/a", "y/A", "b", "b_colour_2", "b_2", "b_2_2"]
    ends = ("", "_colour", "_overlay", "_confidence")
    files = [f"{job.name}{end}".lower() for job in jobs for end in ends]
    assert len(set(files)) == 4 * len(names)


def test_a_result_never_replaces_a_picture(tmp_path):
    picture = NamedPicture(write(tmp_path / "a.png", (4, 4, 3)), "a")
    with refused("--to", tmp_path, way_out="another folder"):
        name_outputs([picture], tmp_path)
    assert name_outputs([picture], tmp_path, ["overlay"]) == [picture]
    with refused("--to", tmp_path, way_out="another one"):
        collect_pictures([str(tmp_path)], tmp_path)


def test_folders_patterns_and_files_mean_each_picture_once(tmp_path):
    first = write(tmp_path / "in/a.png", (4, 4, 3))
    second = write(tmp_path / "in/deep/b.jpg", (4, 4, 3))
    (tmp_path / "in/notes.txt").write_text("no picture")
    earlier = write(tmp_path / "in/out/a.png", (4, 4, 3))
    words = [str(tmp_path / "in"), str(first), str(tmp_path / "in/**/*.jpg")]
    assert collect_pictures(words, tmp_path / "in/out") == [(first, "a"), (second, "deep/b")]
    assert (earlier, "out/a") in collect_pictures([str(tmp_path / "in")], tmp_path / "elsewhere")
    # Results above the pictures hide nothing.
    assert collect_pictures([str(tmp_path / "in/deep")], tmp_path) == [(second, "b")]


@pytest.mark.parametrize("word", ["nowhere.png", "*.png", "empty"])
def test_a_word_that_means_no_picture_is_named(tmp_path, word):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=word.replace("*", r"\*")):
        collect_pictures([str(tmp_path / word)], tmp_path / "out")


def test_scales_far_from_training_are_warned_of_and_near_ones_not():
    crop = (512, 512)
    assert scale_warning((512, 1024), (512, 1024), crop) is None
    assert scale_warning((1080, 1920), (540, 960), crop) is None
    assert "enlarged 10.0 times" in str(scale_warning((50, 100), (500, 1000), crop))
    assert "shrunk 8.0 times" in str(scale_warning((4000, 8000), (500, 1000), crop))
    assert "0.2 times the training crop" in str(scale_warning((50, 100), (50, 100), crop))


def test_odd_names_and_links_in_the_folder_cost_no_result_and_no_other_file(
    workdir, tmp_path, capsys
):
    stems = {
        os.fsdecode(b"caf\xe9"): "caf%E9",
        "a\nb": "a%0Ab",
        "back\\slash": "back%5Cslash",
        "n" * 251: f"{'n' * 230}~{hashlib.sha256(b'n' * 251).hexdigest()[:12]}",
        "plain": "plain",
        "taken": "taken",
    }
    content = write(tmp_path / "x.png", (48, 64, 3)).read_bytes()
    (tmp_path / "in").mkdir()
    for stem in stems:
        (tmp_path / "in" / f"{stem}.png").write_bytes(content)
    precious, out = tmp_path / "precious", tmp_path / "out"
    precious.write_text("mine")
    (out / "taken_colour.png").mkdir(parents=True)
    for name in ("class_shares.csv", "plain.png", "plain_overlay.png"):
        (out / name).symlink_to(precious)
    words = ["predict", str(tmp_path / "in"), "--checkpoint", str(workdir), "--to", str(out)]
    assert run(words) == 1
    shown = capsys.readouterr()
    assert "5 of 6 pictures" in shown.out
    assert shown.err.splitlines()[-1].startswith("1 could not be written: ")
    assert precious.read_text() == "mine"
    with (out / "class_shares.csv").open(encoding="utf-8") as table:
        assert {row["name"] for row in csv.DictReader(table)} == {*stems.values()} - {"taken"}
    for stem in {*stems.values()} - {"taken"}:
        assert all((out / f"{stem}{end}.png").is_file() for end in ("", "_colour", "_overlay"))


def test_a_word_longer_than_any_name_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="cannot be read: File name too long"):
        collect_pictures([str(tmp_path / ("n" * 300))], tmp_path / "out")


def test_pictures_are_found_as_training_finds_them(tmp_path):
    names = ("a.png", "b/c.JPG", ".d.png", ".trash/e.png", "__MACOSX/._a.png", "__MACOSX/f.png")
    for name in names:
        write(tmp_path / "in" / name, (2, 2, 3))
    for word in (tmp_path / "in", tmp_path / "in" / "**" / "*.*"):
        found = [p.path.name for p in collect_pictures([str(word)], tmp_path / "out")]
        assert found == ["a.png", "c.JPG"]
    explicit = tmp_path / "in" / ".d.png"
    assert [p.path for p in collect_pictures([str(explicit)], tmp_path / "out")] == [explicit]


def test_an_address_on_the_web_is_called_one(tmp_path):
    address = "https://example.org/street.jpg"
    with refused(address, way_out="download it first"):
        collect_pictures([address], tmp_path)


@pytest.fixture
def pictures(tmp_path):
    """A folder of three pictures, one of them in a folder of its own."""
    for name in ("a", "b", "town/c"):
        write(tmp_path / f"in/{name}.png", (48, 64, 3))
    return tmp_path / "in"


def test_a_call_that_was_killed_goes_on_with_what_is_missing(
    workdir, pictures, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    words = ["predict", str(pictures), "--checkpoint", str(workdir), "--to", str(out)]
    words += ["--only", "ids,overlay"]
    assert run(words) == 0
    whole = {p: p.read_bytes() for p in out.rglob("*.*")}
    assert {p.name for p in whole} == {
        *(f"{n}{end}.png" for n in "abc" for end in ("", "_overlay")),
        *("class_shares.csv", "prediction.json"),
    }
    # As a call leaves it that was killed while it wrote the second picture.
    table = out / "class_shares.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:2]) + "town/c,")
    (out / "b_overlay.png").unlink()
    seen = []
    classified = TrainedNetwork.classified
    monkeypatch.setattr(
        TrainedNetwork, "classified", lambda *a: seen.append(len(a[1][0])) or classified(*a)
    )
    capsys.readouterr()
    assert run(words) == 0
    assert len(seen) == 1, "two pictures of equal size share the batch of two"
    assert "1 of 3 are there already" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in out.rglob("*.*")} == whole
    (out / "a_overlay.png").unlink()
    assert run([*words, "--batch", "1"]) == 0
    assert (len(seen), len(list(out.rglob("*_overlay.png")))) == (2, 3)


@pytest.mark.parametrize(
    "other",
    [
        ["--network", "teacher"],
        ["--which", "best", "--network", "teacher"],
        ["--tta", "flip"],
        ["--opacity", "0.7"],
        ["--confidence"],
    ],
)
def test_results_of_another_network_or_of_other_options_are_refused(
    workdir, pictures, tmp_path, other
):
    words = ["predict", str(pictures / "a.png"), "--checkpoint", str(workdir)]
    words += ["--to", str(tmp_path / "out")]
    assert run([*words, "--network", "student"]) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with refused("--to", tmp_path / "out", way_out="another folder"):
        run([*words, *other])
    assert {p: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_confidences_legends_and_opacities_are_those_of_the_network_in_python(
    workdir, pictures, tmp_path
):
    out = tmp_path / "out"
    words = ["predict", str(pictures), "--checkpoint", str(workdir), "--to", str(out)]
    words += ["--confidence", "--opacity", "0.8", "--legend", "--tta", "flip,0.75"]
    assert run([*words, "--network", "teacher"]) == 0
    net = mrm_jax.load(workdir, network="teacher")
    assert net.classes == ("road", "car", "sky")
    assert net.colours.tolist() == [[128, 64, 128], [0, 0, 142], [70, 130, 180]]
    evaluation = replace(net.config.evaluation, scales=(0.75, 1.0), flip=True)
    net = replace(net, config=replace(net.config, evaluation=evaluation))
    images = [cv2.imread(str(pictures / f"{n}.png"))[..., ::-1] for n in ("a", "b", "town/c")]
    for name, image, found in zip(("a", "b", "town/c"), images, net.predict(images), strict=True):
        assert found.ids.dtype == np.uint8
        assert found.confidence.dtype == np.float32
        assert found.ids.shape == found.confidence.shape == image.shape[:2]
        assert np.array_equal(found.ids, ids(out / f"{name}.png"))
        stored = ids(out / f"{name}_confidence.png")
        assert stored.dtype == np.uint16
        np.testing.assert_allclose(stored / 65535, found.confidence, atol=1e-5)
        shown = ids(out / f"{name}_overlay.png")[..., ::-1]
        assert np.array_equal(shown, found.overlay(0.8, legend=True))
        assert (shown != found.overlay(0.8)).any()
        mixed = 0.2 * image + 0.8 * found.colour()
        assert np.abs(found.overlay(0.8) - mixed).max() <= 1
    assert np.array_equal(found.ids, found.probabilities.argmax(-1))
    np.testing.assert_allclose(found.probabilities.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--only", "ids,depth"], "--only"),
        (["--tta", "flip,big"], "--tta"),
        (["--opacity", "2"], "--opacity"),
        (["--batch", "0"], "--batch"),
        (["--tta", "0"], "config.evaluation.scales"),
        (["--whole_pixels", "1"], "config.evaluation.whole_pixels"),
    ],
)
def test_values_of_the_options_that_mean_nothing_are_named(
    workdir, pictures, tmp_path, words, field
):
    given = ["predict", str(pictures), "--checkpoint", str(workdir), "--to", str(tmp_path / "o")]
    with refused(field):
        run([*given, *words])
    assert not (tmp_path / "o").exists()


def test_arrays_that_are_no_pictures_are_refused_by_python(workdir):
    net = mrm_jax.load(workdir)
    sizes = (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4)))
    for wrong in (*sizes, None, {"a": 1}):
        with refused("the picture"):
            net.predict(wrong)
    assert net.predict([]) == []
    assert len(repr(net)) < 80  # in a notebook: no weights
    for wrong in ("both", "ema"):
        with refused("network", wrong):
            mrm_jax.load(workdir, network=wrong)


def test_the_package_loads_neither_jax_nor_numpy():
    code = (
        "import sys, mrm_jax; assert mrm_jax.__version__ and not {'jax', 'numpy'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pathlib.Path(__file__).parents[2])
