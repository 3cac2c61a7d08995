"""Every data set from its download to a score, and sets of one's own of 2 and of 60 classes,
through the command line."""

import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mrm_jax import main
from mrm_jax.runs.checkpoint import load_run

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import downloads

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.e2e

# The network of configs/tiny.py on folders: source, target and evaluation as `datasets` has them.
CONFIG = """
from dataclasses import replace
from mrm_jax.command import load_config
from mrm_jax.config import Data
from mrm_jax.data import datasets, labels
from mrm_jax.options import to_config_dict

def get_config(text=None):
    tiny = load_config(["--config={tiny}:dacs"])
    source, target, evaluation = (getattr(datasets, name) for name in text.split("+"))
    data = Data(classes=labels.CITYSCAPES, source=replace(source, resize=None),
                target=replace(target, resize=None),
                evaluation=replace(evaluation, resize=None, path=None), crop=(32, 64))
    return to_config_dict(replace(tiny, data=data))
"""
FLAGS = (
    *("--config.train.steps=2", "--config.train.eval_every=2", "--config.train.panels_every=2"),
    "--config.evaluation.selection_pictures=0",
)
# CamVid's source, target and evaluation are splits of one set.
SPLITS = {
    "camvid": [
        f"--config.data.{domain}.split={split}"
        for domain, split in (
            ("source", "day_train"),
            ("target", "dusk_train"),
            ("evaluation", "dusk_test"),
        )
    ]
}
ROUTES = {
    "camvid": ("camvid", downloads.camvid, "camvid", None, "CAMVID+CAMVID+CAMVID"),
    "gta": (
        "gta",
        downloads.gta,
        "cityscapes",
        downloads.cityscapes,
        "GTA+CITYSCAPES+CITYSCAPES_VAL",
    ),
    "synthia": (
        *("synthia", downloads.synthia, "cityscapes"),
        *(
            lambda root: downloads.cityscapes(root, labels="polygons"),
            "SYNTHIA+CITYSCAPES+CITYSCAPES_VAL",
        ),
    ),
    "acdc": (
        "cityscapes",
        downloads.cityscapes,
        "acdc",
        downloads.acdc,
        "CITYSCAPES+ACDC+ACDC_VAL",
    ),
    "dark_zurich": (
        *("cityscapes", downloads.cityscapes, "dark_zurich", downloads.dark_zurich),
        "CITYSCAPES+DARK_ZURICH+DARK_ZURICH_VAL",
    ),
}


def words(tmp_path, sets):
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(tiny=ROOT / "configs" / "tiny.py"))
    return [f"--config={path}:{sets}", *FLAGS]


@pytest.mark.parametrize("route", ROUTES)
def test_a_download_is_prepared_checked_trained_on_and_scored(route, tmp_path):
    source, build, target, build_target, sets = ROUTES[route]
    for name, make in {source: build, target: build_target or build}.items():
        make(tmp_path / f"raw {name}")
        to = tmp_path / name
        how = ["--resize", "native", "--workers", "1"]
        code = main.run(
            ["prepare", name, "--from", str(tmp_path / f"raw {name}"), "--to", str(to), *how]
        )
        assert code == 0
        code = main.run(["check", name, "--from", str(to), "--to", str(tmp_path / "check")])
        assert code == 0
    paths = [
        f"--config.data.source.path={tmp_path / source}",
        f"--config.data.target.path={tmp_path / target}",
    ]
    paths += SPLITS.get(route, [])
    run = tmp_path / "run"
    assert main.run([*words(tmp_path, sets), *paths, f"--workdir={run}"]) == 0
    assert (
        main.run(["evaluate", "--workdir", str(run), "--save_predictions", str(tmp_path / "ids")])
        == 0
    )
    scores = json.loads((run / "evaluation.json").read_text())
    assert scores["protocol"]["split"] == ("dusk_test" if route == "camvid" else "val")
    assert scores["protocol"]["pictures"] == {"acdc": 4, "dark_zurich": 2}.get(route, 3)
    assert sum(map(sum, scores["confusion"])) > 0
    predictions = list((tmp_path / "ids").rglob("*.png"))
    assert len(predictions) == scores["protocol"]["pictures"]
    assert cv2.imread(str(predictions[0]), cv2.IMREAD_UNCHANGED).max() < 19


def test_deleting_the_labels_of_a_target_changes_nothing_in_training(tmp_path):
    downloads.cityscapes(tmp_path / "source")
    downloads.acdc(tmp_path / "target")
    found = []
    for number in range(2):
        if number:
            shutil.rmtree(tmp_path / "target/gt")
        path = [f"--config.data.{d}.path={tmp_path / d}" for d in ("source", "target")]
        route = words(tmp_path, "CITYSCAPES+ACDC+CITYSCAPES_VAL")
        scored = f"--config.data.evaluation.path={tmp_path / 'source'}"
        assert main.run([*route, *path, scored, f"--workdir={tmp_path / f'run{number}'}"]) == 0
        found.append(load_run(tmp_path / f"run{number}"))
    import jax

    assert jax.tree.all(jax.tree.map(np.array_equal, found[0].student, found[1].student))
    assert jax.tree.all(jax.tree.map(np.array_equal, found[0].teacher, found[1].teacher))


OWN = """
import importlib.util
spec = importlib.util.spec_from_file_location("folder", "{folder}")
folder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(folder)
folder.ROWS = {rows}
folder.IGNORED = {ignored}

def get_config(text=None):
    from dataclasses import replace
    from mrm_jax.checks import from_config_dict
    from mrm_jax.command import load_config
    from mrm_jax.options import to_config_dict
    tiny = load_config(["--config={tiny}:dacs"])
    own = from_config_dict(folder.get_config("dacs").to_dict())
    data = replace(own.data, crop=tiny.data.crop)
    return to_config_dict(replace(tiny, data=data, evaluation=replace(tiny.evaluation, batch=1)))
"""


@pytest.mark.parametrize("count", [2, 60])
def test_classes_of_ones_own_are_trained_scored_and_predicted(count, tmp_path, capsys):
    if count == 2:  # masks of 0 and 255, where 255 is a class
        rows, ignored, values = (("rest", (0,)), ("my röad", (255,), (9, 8, 7))), (), (0, 255)
    else:
        rows = tuple((f"class {i}", (1000 + 3 * i,)) for i in range(count))
        ignored, values = (0,), (0, *range(1000, 1000 + 3 * 50, 3))
    rng, occurring = np.random.default_rng(0), set()
    for part in ("source", "scored"):
        for k in range(3):
            image = rng.integers(0, 256, (48, 80, 3), np.uint8)
            label = np.kron(rng.choice(values, (6, 10)), np.ones((8, 8))).astype(np.uint16)
            downloads.save_image(tmp_path / part / f"images/{k}.png", image)
            stored = label.astype(np.uint8) if count == 2 else label
            downloads.save_grey(tmp_path / part / f"labels/{k}.png", stored)
            occurring |= set(label.ravel().tolist()) if part == "scored" else set()
    config = tmp_path / "own.py"
    config.write_text(
        OWN.format(
            folder=ROOT / "configs/folder.py",
            tiny=ROOT / "configs/tiny.py",
            rows=rows,
            ignored=ignored,
        )
    )
    given = f"--config={config}"
    to = ["--to", str(tmp_path / "set"), "--workers", "1"]
    assert (
        main.run(
            [
                "check",
                "folder",
                given,
                "--from",
                str(tmp_path / "source"),
                "--to",
                str(tmp_path / "c"),
            ]
        )
        == 0
    )
    assert main.run(["prepare", "folder", given, "--from", str(tmp_path / "source"), *to]) == 0
    run = tmp_path / "run"
    paths = [
        f"--config.data.source.path={tmp_path / 'set'}",
        f"--config.data.target.path={tmp_path / 'scored/images'}",
        f"--config.data.evaluation.path={tmp_path / 'scored'}",
        *("--config.data.evaluation.images=images", "--config.data.evaluation.labels=labels"),
    ]
    assert main.run([given, *FLAGS, *paths, f"--workdir={run}"]) == 0
    scores = json.loads((run / "evaluation.json").read_text())
    assert list(scores["IoU"]) == [row[0] for row in rows]
    seen = {name for name, value in scores["IoU"].items() if value is not None}
    assert seen >= {row[0] for row in rows if row[1][0] in occurring}
    if count == 60:
        assert len(seen) < 60
    assert np.shape(scores["confusion"]) == (count, count)
    lines = (run / "metrics.jsonl").read_text()
    assert f"eval/student/IoU/{rows[1][0]}" in json.loads(lines.splitlines()[-1])
    assert "NaN" not in lines
    assert rows[1][0] in (run / "report.html").read_text()
    words = ["predict", str(tmp_path / "scored/images"), "--checkpoint", str(run)]
    assert main.run([*words, "--to", str(tmp_path / "ids")]) == 0
    assert cv2.imread(str(tmp_path / "ids/0.png"), cv2.IMREAD_UNCHANGED).max() < count
    # The run knows its data where they were moved, prepared or not.
    for name in ("set", "scored"):
        (tmp_path / name).rename(tmp_path / f"moved {name}")
    paths = [word.replace(f"{tmp_path}/s", f"{tmp_path}/moved s") for word in paths]
    assert main.run([given, *FLAGS, *paths, f"--workdir={run}"]) == 0
    assert "All 2 steps are done" in capsys.readouterr().out
