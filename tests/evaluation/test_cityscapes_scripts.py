"""Against the data set's own tools, which need the package cityscapesScripts (extra `dev`)."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from toys import network

from mrm_jax.data import datasets, files, labels, pipeline
from mrm_jax.evaluation.evaluator import evaluate_networks
from mrm_jax.evaluation.pictures import write_png
from mrm_jax.models.build import build_segmentor

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import downloads

scripts = pytest.importorskip(
    "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
    reason="compares with the package cityscapesscripts, which the extra `dev` installs",
)


def test_scores_of_written_predictions_are_those_of_the_data_sets_own_script(tmp_path):
    from cityscapesscripts.helpers.labels import trainId2label

    downloads.cityscapes(tmp_path)
    cfg, _, _ = network()
    data = replace(
        cfg.data,
        classes=labels.CITYSCAPES,
        evaluation=replace(datasets.CITYSCAPES_VAL, path=str(tmp_path), resize=None),
    )
    cfg = replace(cfg, data=data)
    model = build_segmentor(cfg.model, 19, cfg.data.crop)
    examples = pipeline.evaluation_set(cfg)
    init = jax.jit(partial(model.init, mode="eval"))
    variables = init(jax.random.key(0), np.zeros((1, 48, 80, 3), np.float32))

    def save(_, name, ids):
        write_png(tmp_path / "ids" / f"{name}.png", ids)

    found = evaluate_networks(cfg, model, {"student": variables}, examples, on_prediction=save)
    predictions, truths = [], []
    for example in examples:
        stored = cv2.imread(str(tmp_path / f"ids/{example.name}.png"), cv2.IMREAD_UNCHANGED)
        table = np.array([trainId2label[i].id for i in range(19)], np.uint8)
        path = tmp_path / f"submitted/{example.name}.png"
        downloads.save_grey(path, table[stored])
        predictions.append(str(path))
        truths.append(str(tmp_path / f"gtFine/val/{example.name}_gtFine_labelIds.png"))
    scripts.args.evalInstLevelScore, scripts.args.quiet = False, True
    scripts.args.JSONOutput = False
    theirs = scripts.evaluateImgLists(predictions, truths, scripts.args)
    ours = found["student"]
    assert ours.mean_iou == pytest.approx(theirs["averageScoreClasses"], abs=1e-6)
    named = {"light": "traffic light", "sign": "traffic sign"}
    for name, value in ours.per_class().items():
        expected = theirs["classScores"][named.get(name, name)]
        if value is None:
            assert np.isnan(expected)
        else:
            assert value == pytest.approx(expected, abs=1e-6)


def test_polygons_are_drawn_as_the_data_sets_own_script_draws_them(tmp_path):
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    rng = np.random.default_rng(0)
    names = [*labels.CITYSCAPES_LABELS, "cargroup", "bicyclegroup"]
    shapes = [
        {
            "label": names[int(rng.integers(len(names)))],
            "polygon": rng.integers(-9, 90, (int(rng.integers(3, 12)), 2)).tolist(),
            "deleted": int(rng.random() < 0.1),
        }
        for _ in range(60)
    ]
    path = tmp_path / "x_gtFine_polygons.json"
    path.write_text(json.dumps({"imgHeight": 60, "imgWidth": 80, "objects": shapes}))
    annotation = Annotation()
    annotation.fromJsonFile(str(path))
    expected = np.asarray(createLabelImage(annotation, "ids"))
    np.testing.assert_array_equal(files.read_raw_label(path), expected)
    assert len(np.unique(expected)) > 10
