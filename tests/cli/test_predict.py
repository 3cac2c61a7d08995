"""`predict` as a user calls it, with the pictures that users have."""

import csv
import hashlib
import os

import cv2
import numpy as np
import pytest
from refusals import refused

from mrm_jax.errors import UsageError
from mrm_jax.evaluation.pictures import adapted, collect_pictures, name_outputs, scale_warning
from mrm_jax.main import run
from mrm_jax.runs.checkpoint import load_run

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


def test_predictions_are_those_that_evaluate_scores(workdir, dataset, tmp_path):
    run(["evaluate", "--workdir", str(workdir), "--to", str(tmp_path), "--network", "student"]
        + ["--save_predictions", str(tmp_path / "scored")])  # fmt: skip
    words = ["predict", str(dataset / "images"), "--workdir", str(workdir)]
    assert run([*words, "--to", str(tmp_path / "own")]) == 0
    for i in range(4):
        scored, own = ids(tmp_path / "scored/town" / f"{i}.png"), ids(tmp_path / f"own/{i}.png")
        # The batch is another one, so that rounding may decide between two equal classes.
        assert (scored != own).mean() < 1e-3


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


def test_results_of_equal_stems_and_of_look_alikes_share_no_file(tmp_path):
    names = ["x/a.png", "y/a.png", "y/a.jpg", "y/A.bmp", "b.png", "b_colour.png", "z/y__a.png"]
    pictures = [write(tmp_path / name, (4, 4, 3)) for name in names]
    jobs = name_outputs(pictures, tmp_path / "out")
    files = [f"{job.name}{end}".lower() for job in jobs for end in ("", "_colour", "_overlay")]
    assert len(set(files)) == 3 * len(names)
    assert [job.path for job in jobs] == pictures
    assert jobs[0].name == "x__a"
    assert jobs[4].name == "b"


def test_a_result_never_replaces_a_picture(tmp_path):
    picture = write(tmp_path / "a.png", (4, 4, 3))
    with refused("--to", tmp_path, way_out="another folder"):
        name_outputs([picture], tmp_path)
    with refused("--to", tmp_path, way_out="another one"):
        collect_pictures([str(tmp_path)], tmp_path)


def test_folders_patterns_and_files_mean_each_picture_once(tmp_path):
    first = write(tmp_path / "in/a.png", (4, 4, 3))
    second = write(tmp_path / "in/deep/b.jpg", (4, 4, 3))
    (tmp_path / "in/notes.txt").write_text("no picture")
    earlier = write(tmp_path / "in/out/a.png", (4, 4, 3))
    words = [str(tmp_path / "in"), str(first), str(tmp_path / "in/**/*.jpg")]
    assert collect_pictures(words, tmp_path / "in/out") == [first, second]
    assert earlier in collect_pictures([str(tmp_path / "in")], tmp_path / "elsewhere")
    # Results above the pictures hide nothing.
    assert collect_pictures([str(tmp_path / "in/deep")], tmp_path) == [second]


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


def test_a_picture_far_larger_than_the_crop_is_read_in_windows(workdir):
    config = load_run(workdir).config
    assert adapted(config, (64, 96)) is config
    large = adapted(config, (2160, 3840)).evaluation
    assert (large.mode, large.window, large.stride) == ("slide", (32, 32), (21, 21))


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
