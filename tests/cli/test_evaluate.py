"""`evaluate` as a user calls it."""

import argparse
import json
import os
import shutil
from dataclasses import asdict

import cv2
import numpy as np
import pytest
from refusals import refused

from mrm_jax.cli.evaluate import _home
from mrm_jax.data import sources
from mrm_jax.errors import UsageError
from mrm_jax.evaluation.pictures import prediction_files
from mrm_jax.main import run
from mrm_jax.runs.checkpoint import load_run


def table_of(predictions, dataset, classes):
    """Confusion of the PNGs below `predictions`, counted pixel by pixel."""
    found = np.zeros((classes, classes), np.int64)
    for path in sorted((dataset / "labels").rglob("*.png")):
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        name = path.relative_to(dataset / "labels")
        ids = cv2.imread(str(predictions / name), cv2.IMREAD_UNCHANGED)
        assert ids.dtype == np.uint8
        assert ids.shape == label.shape
        known = label != 255
        np.add.at(found, (label[known], ids[known]), 1)
    return found


def test_evaluation_json_holds_what_the_saved_predictions_score(workdir, dataset, tmp_path, capsys):
    folder = tmp_path / "predictions"
    command = ["evaluate", "--workdir", str(workdir), "--to", str(tmp_path)]
    assert run([*command, "--save_predictions", str(folder)]) == 0
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    confusion = table_of(folder, dataset, 3)
    assert stored["confusion"] == confusion.tolist()
    hit = np.diagonal(confusion)
    iou = hit / (confusion.sum(0) + confusion.sum(1) - hit)
    assert list(stored["IoU"].values()) == pytest.approx(iou.tolist())
    assert stored["mIoU"] == pytest.approx(iou.mean())
    assert stored["pixel_accuracy"] == pytest.approx(hit.sum() / confusion.sum())
    assert stored["classes_counted"] == ["road", "car", "sky"]
    assert stored["step"] == 7
    protocol = stored["protocol"]
    assert (protocol["network"], protocol["pictures"]) == ("student", 4)
    assert protocol["input_sizes"] == [[48, 64]]
    assert protocol["label_sizes"] == [[48, 64], [96, 128]]
    assert stored["teacher"]["confusion"] != stored["confusion"]
    for network in ("student", "teacher"):
        assert cv2.imread(str(tmp_path / f"confusion_{network}.png")) is not None
    shown = capsys.readouterr().out
    assert "student on 4 pictures" in shown
    assert "teacher" in shown


def test_the_best_checkpoint_and_one_network_can_be_asked_for(workdir, tmp_path):
    command = ["evaluate", "--checkpoint", str(workdir), "--to", str(tmp_path)]
    assert run([*command, "--which", "best", "--network", "teacher"]) == 0
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored["step"] == 3
    assert stored["protocol"]["network"] == "teacher"
    assert "student" not in stored


@pytest.mark.parametrize(("which", "step"), [("best", 3), ("picked", 7), ("last", 7)])
def test_the_best_by_labels_and_the_one_picked_without_are_told_apart(
    workdir, tmp_path, which, step
):
    command = ["evaluate", "--checkpoint", str(workdir), "--to", str(tmp_path)]
    assert run([*command, "--which", which, "--network", "student"]) == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["step"] == step


def test_a_checkpoint_without_rebuilder_and_optimiser_evaluates_to_the_same_bits(workdir, tmp_path):
    whole, bare = workdir / "checkpoints" / "7", tmp_path / "copy" / "7"
    shutil.copytree(whole, bare)
    assert (bare / "rebuilder").is_dir(), "the run was to have a Rebuilder"
    for part in ("rebuilder", "training"):
        shutil.rmtree(bare / part)
    found = []
    for path, to in ((whole, tmp_path / "a"), (bare, tmp_path / "b")):
        command = ["evaluate", "--checkpoint", str(path), "--to", str(to)]
        assert run([*command, "--save_predictions", str(to / "ids")]) == 0
        stored = json.loads((to / "evaluation.json").read_text())
        ids = [p.read_bytes() for p in sorted((to / "ids").rglob("*.png"))]
        found.append((ids, stored["confusion"], stored["teacher"]["confusion"]))
    assert len(found[0][0]) == 4
    assert found[0] == found[1]


def test_another_folder_of_the_same_layout_can_be_scored(workdir, dataset, tmp_path):
    other = tmp_path / "other"
    for kind in ("images", "labels"):
        (other / kind).mkdir(parents=True)
        shutil.copy(dataset / kind / "town" / "1.png", other / kind)
    command = ["evaluate", "--workdir", str(workdir), "--to", str(tmp_path)]
    assert run([*command, "--path", str(other)]) == 0
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored["protocol"]["pictures"] == 1
    assert str(other) in stored["protocol"]["domain"]


def given(folder, changes: str):
    """The flag of a config file that is the run's config with `changes`."""
    lines = [
        "import json, pathlib",
        "from mrm_jax import checks, options",
        "def get_config(text=None):",
        f"    values = json.loads(pathlib.Path({str(folder / 'config.json')!r}).read_text())",
        f"    {changes}",
        "    return options.to_config_dict(checks.from_config_dict(values))",
    ]
    path = folder / "given.py"
    path.write_text("\n".join(lines) + "\n")
    return f"--config={path}"


def test_a_config_can_ask_for_another_protocol_but_not_for_other_classes(workdir, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(asdict(load_run(workdir).config)))
    command = ["evaluate", "--workdir", str(workdir), "--to", str(tmp_path)]
    counted = given(tmp_path, "values['evaluation']['classes'] = ['road', 'sky']")
    assert run([*command, counted, "--config.evaluation.limit=1"]) == 0
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored["classes_counted"] == ["road", "sky"]
    assert stored["protocol"]["pictures"] == 1
    assert stored["mIoU"] == pytest.approx((stored["IoU"]["road"] + stored["IoU"]["sky"]) / 2)
    renamed = given(tmp_path, "values['data']['classes']['names'] = ['a', 'b', 'c']")
    with pytest.raises(UsageError, match="must be the same"):
        run([*command, renamed])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workdir", "{run}", "--which", "9"], "use last, best, picked or one of 3, 7"),
        (["--workdir", "{run}/nowhere"], "is not a folder"),
        (["--workdir", "{run}", "--checkpoint", "{run}"], "not allowed with"),
        ([], "required"),
        (["--workdir", "{run}", "--path", "{run}/nowhere"], "there is no folder"),
        (["--workdir", "{run}", "--network", "techer"], "student"),
    ],
)
def test_mistakes_are_answered_in_one_line(workdir, words, message, tmp_path):
    filled = [word.format(run=workdir) for word in words]
    with pytest.raises(UsageError, match=message) as caught:
        run(["evaluate", *filled, "--to", str(tmp_path)])
    assert "\n" not in str(caught.value)


def test_a_teacher_that_was_deleted_is_asked_for_in_vain(workdir, tmp_path):
    shutil.copytree(workdir / "checkpoints" / "7", tmp_path / "7")
    shutil.rmtree(tmp_path / "7" / "teacher")
    with refused("network", "teacher", way_out="use student"):
        run(["evaluate", "--checkpoint", str(tmp_path / "7"), "--network", "teacher"])


def test_predictions_stay_below_their_folder_whatever_a_manifest_calls_the_pictures(
    workdir, tmp_path, monkeypatch
):
    to = tmp_path / "deep" / "to"
    words = ["evaluate", "--workdir", str(workdir), "--to", str(tmp_path / "e")]
    with monkeypatch.context() as patched:
        patched.setattr(sources.Folder, "name", lambda self, index: f"../../home/{index}")
        with pytest.raises(UsageError, match=r"'\.\./\.\./home/0' would lie outside"):
            run([*words, "--save_predictions", str(to)])
    assert list(tmp_path.iterdir()) == []
    for names in (["/tmp/x"], ["a", "a"], ["a", "out/b"], ["a/"], ["../to/x"]):
        to.mkdir(parents=True, exist_ok=True)
        if not (to / "out").exists():
            (to / "out").symlink_to(tmp_path)
        with pytest.raises(UsageError, match="is refused|name them apart"):
            prediction_files(names, to)
    odd = os.fsdecode(b"caf\xe9")
    files = prediction_files(["town/a", odd, "Town/A", "x" * 255], to)
    assert [files[name] for name in ("town/a", odd, "Town/A")] == [
        to / name for name in ("town/a.png", "caf%E9.png", "Town/A_2.png")
    ]
    assert len(files["x" * 255].name) <= 255


@pytest.mark.parametrize(
    ("given", "home"),
    [
        ("run", "run"),
        ("run/checkpoints", "run"),
        ("run/checkpoints/7", "run"),
        ("copies/7", "copies"),
        ("converted", "converted"),
    ],
)
def test_scores_of_a_checkpoint_are_written_beside_its_run(tmp_path, monkeypatch, given, home):
    for name in ("run/checkpoints/7/student", "copies/7/student", "converted/checkpoints/0"):
        (tmp_path / name).mkdir(parents=True)
    words = argparse.Namespace(to=None, workdir=None, checkpoint=tmp_path / given)
    assert _home(words) == tmp_path / home
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match="cannot be written; add --to DIR"):
        _home(words)
    words.to = tmp_path / "to"
    assert _home(words) == tmp_path / "to"
