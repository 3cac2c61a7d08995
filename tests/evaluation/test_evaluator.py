"""Scores of a network on pictures, against scoring each picture by itself."""

import io
import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused
from rich.console import Console
from toys import CONFIG, NAMES, Example, evaluate, examples, forward, network

from mrm_jax import sharding
from mrm_jax.data.transforms import resize_image
from mrm_jax.evaluation.evaluator import evaluate_networks
from mrm_jax.evaluation.protocols import protocol_of
from mrm_jax.evaluation.scores import EvaluationResult
from mrm_jax.evaluation.table import score_table
from mrm_jax.ops.normalise import normalise
from mrm_jax.registry import IMAGENET

MIXED = ((32, 48), (32, 48), (40, 40), (32, 48), (40, 40))


@partial(jax.jit, static_argnums=1)
def resized(logits, size):
    shape = (1, *size, logits.shape[-1])
    return jax.image.resize(logits, shape, "bilinear", antialias=False)


def confusion_by_picture(model, variables, pictures, fitted=lambda size: size):
    """One forward a picture, jax.image for the resizes, a histogram of pairs."""
    table = np.zeros((len(NAMES), len(NAMES)), np.int64)
    for example in pictures:
        image = resize_image(example.image, fitted(example.image.shape[:2]))
        logits = forward(model, variables, normalise(image[None], IMAGENET))
        for size in (image.shape[:2], example.label.shape):
            logits = resized(logits, size)
        prediction = np.asarray(jnp.argmax(logits[0], -1))
        known = example.label != 255
        np.add.at(table, (example.label[known], prediction[known]), 1)
    return table


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_pictures_of_two_sizes_score_as_each_by_itself_whatever_the_batch(batch):
    cfg, model, variables = network(batch=batch)
    pictures = examples(*MIXED)
    found = evaluate(cfg, model, variables, pictures)
    expected = confusion_by_picture(model, variables, pictures)
    assert found.confusion.sum() == sum((e.label != 255).sum() for e in pictures)
    # A tie of two classes may fall either way between two programs: at most a pixel in a thousand.
    assert np.abs(found.confusion - expected).sum() <= 2 * found.confusion.sum() / 1000
    assert found.protocol.pictures == len(pictures)
    assert found.protocol.input_sizes == ((32, 48), (40, 40))


def test_the_batch_size_changes_no_pixel():
    pictures = examples(*MIXED)
    tables = []
    for batch in (1, 4):
        cfg, model, variables = network(batch=batch)
        tables.append(evaluate(cfg, model, variables, pictures).confusion)
    assert np.array_equal(*tables)


def test_the_calibration_error_is_that_of_every_pixels_probability():
    cfg, model, variables = network(batch=2)
    pictures = examples(*MIXED)
    sure, right = [], []
    for example in pictures:
        logits = forward(model, variables, normalise(example.image[None], IMAGENET))
        logits = resized(resized(logits, example.image.shape[:2]), example.label.shape)
        probabilities, known = np.asarray(jax.nn.softmax(logits[0])), example.label != 255
        sure.append(probabilities.max(-1)[known])
        right.append((probabilities.argmax(-1) == example.label)[known])
    sure, right = np.concatenate(sure), np.concatenate(right)
    edges = np.minimum((sure * 15).astype(int), 14)
    error = sum(
        abs(sure[edges == i].sum() - right[edges == i].sum()) for i in np.unique(edges)
    ) / len(sure)
    found = evaluate(cfg, model, variables, pictures)
    assert error > 0.01
    # Half a level of 1500, and the pixels that rounding moves to another bin.
    assert found.calibration_error == pytest.approx(error, abs=0.002)
    assert found.metrics()["ECE"] == found.as_dict()["ECE"] == found.calibration_error


def test_pictures_are_fitted_into_the_box_and_scored_at_the_size_of_their_label():
    cfg, model, variables = network(batch=1)
    domain = replace(cfg.data.evaluation, resize=(48, 40))
    cfg = replace(cfg, data=replace(cfg.data, evaluation=domain))
    pictures = examples((64, 96), (96, 64))
    found = evaluate(cfg, model, variables, pictures)
    sizes = {(64, 96): (32, 48), (96, 64): (48, 32)}
    expected = confusion_by_picture(model, variables, pictures, sizes.__getitem__)
    assert found.protocol.input_sizes == ((32, 48), (48, 32))
    assert found.protocol.label_sizes == ((64, 96), (96, 64))
    assert np.abs(found.confusion - expected).sum() <= 2 * found.confusion.sum() / 1000


def test_variables_spread_over_two_devices_give_the_same_scores():
    if jax.device_count() < 2:
        pytest.skip("needs two devices; conftest asks for them where the platform is a CPU")
    cfg, model, variables = network(batch=2)
    pictures = examples(*MIXED)
    mesh = sharding.mesh(batch=2, devices=2)
    spread = jax.device_put(variables, sharding.replicated(mesh))
    expected = evaluate(cfg, model, variables, pictures).confusion
    with jax.transfer_guard("disallow"):
        found = evaluate(cfg, model, spread, pictures).confusion
    assert np.array_equal(found, expected)


def test_student_and_teacher_are_scored_on_pictures_read_once():
    cfg, model, student = network()
    _, _, teacher = network(seed=1)
    reads, seen, steps = [], {}, []

    class Counted(list):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    pictures = Counted(examples(*MIXED))
    found = evaluate_networks(
        cfg,
        model,
        {"student": student, "teacher": teacher},
        pictures,
        progress=lambda done, total: steps.append((done, total)),
        on_prediction=lambda network, name, ids: seen.setdefault((network, name), ids),
    )
    assert sorted(reads) == list(range(len(MIXED)))
    assert steps[-1] == (5, 5)
    assert len(seen) == 10
    for name, variables in (("student", student), ("teacher", teacher)):
        alone = evaluate(cfg, model, variables, list(pictures), network=name)
        assert np.array_equal(found[name].confusion, alone.confusion)
        table = np.zeros_like(alone.confusion)
        for example in list(pictures):
            known = example.label != 255
            ids = seen[name, example.name]
            np.add.at(table, (example.label[known], ids[known]), 1)
        assert np.array_equal(table, alone.confusion), "predictions handed out are not those scored"
    assert not np.array_equal(found["student"].confusion, found["teacher"].confusion)


def test_only_the_classes_counted_enter_the_mean():
    cfg, model, variables = network(classes=("car", "tree"))
    found = evaluate(cfg, model, variables, examples((32, 32)))
    assert found.mean_iou == pytest.approx(np.nanmean(found.iou[[1, 3]]))
    assert found.protocol.classes_counted == ("car", "tree")
    assert "2 of 4 classes" in found.protocol.sentence()


def test_results_are_json_values_with_null_for_classes_that_never_occur():
    import json

    cfg, model, variables = network()
    example = examples((32, 32))[0]
    empty = Example("empty", example.image, np.full((32, 32), 255, np.uint8))
    found = evaluate(cfg, model, variables, [empty])
    stored = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert stored["mIoU"] is None
    assert set(stored["IoU"]) == set(NAMES)
    assert set(found.metrics()) == {"mIoU", "classes_in_mIoU", "pixel_accuracy"}
    assert stored["ECE"] is None
    assert found.metrics()["classes_in_mIoU"] == 0
    assert stored["classes_covered"] == {"mIoU": 0}
    assert "mIoU covers 0 of 4 classes" in stored["protocol"]["sentence"]


def test_a_label_that_is_no_class_is_named():
    cfg, model, variables = network()
    example = examples((32, 32))[0]
    wrong = example.label.copy()
    wrong[3, 3] = 9
    with refused("noise_0"):
        evaluate(cfg, model, variables, [Example(example.name, example.image, wrong)])


def test_a_label_of_another_size_is_named():
    cfg, model, variables = network()
    example = examples((32, 32))[0]
    with refused("noise_0"):
        evaluate(cfg, model, variables, [example._replace(label=example.label[:-1])])


def test_the_smallest_side_is_what_the_toy_network_can_take():
    from mrm_jax.config import MultiRes, smallest_picture

    cfg, model, variables = network()
    assert smallest_picture(CONFIG.model) == 16
    assert smallest_picture(replace(CONFIG.model, multires=MultiRes(enabled=True))) == 32
    assert evaluate(cfg, model, variables, examples((3, 40))).confusion.sum() > 0


def test_further_means_are_those_of_their_classes_and_stand_beside_the_headline():
    also = (("mIoU2", "road", "tree"), ("mIoU1", "sky"))
    cfg, model, variables = network(classes=("road", "car"), also=also)
    cfg = replace(
        cfg, data=replace(cfg.data, target=replace(cfg.data.target, margins=(1, 2, 0, 0)))
    )
    found = evaluate(cfg, model, variables, examples((32, 48)))
    iou = found.iou
    assert found.mean_iou == pytest.approx((iou[0] + iou[1]) / 2)
    assert found.also == {
        "mIoU2": pytest.approx((iou[0] + iou[3]) / 2),
        "mIoU1": pytest.approx(iou[2]),
    }
    assert found.metrics()["mIoU2"] == found.as_dict()["mIoU2"] == found.also["mIoU2"]
    sentence = found.protocol.sentence()
    assert "2 of 4 classes" in sentence
    assert "crops of 32x32 px, no pseudo-labels in margins of 1, 2, 0, 0 px" in sentence


def test_every_mean_says_how_many_classes_it_is_over():
    nan = float("nan")
    cfg, _, _ = network(classes=("car", "tree"))
    cfg = replace(cfg, evaluation=replace(cfg.evaluation, also=(("mIoU1", "tree"),)))
    counted = {"pictures": 1, "input_sizes": {(4, 4)}, "label_sizes": {(4, 4)}}
    iou = np.full(len(NAMES), nan)
    iou[NAMES.index("car")] = 1.0
    found = EvaluationResult(
        protocol=protocol_of(cfg, network="student", **counted),
        **{"classes": NAMES, "confusion": np.zeros((4, 4), int), "iou": iou, "mean_iou": 1.0},
        **{"pixel_accuracy": 1.0, "also": {"mIoU1": nan}, "seconds": 0.0},
    )
    assert found.covered() == {"mIoU": (1, 2), "mIoU1": (0, 1)}
    assert "mIoU covers 1 of 2 classes" in found.sentence()
    assert found.metrics()["classes_in_mIoU"] == 1
    text = io.StringIO()
    Console(file=text, width=80).print(score_table(3, {"student": found}))
    assert re.search(r"mIoU .*100\.0.*\n.*over classes .*1 of 2", text.getvalue())
    assert re.search(r"mIoU1 .*-.*\n.*over classes .*0 of 1", text.getvalue())
