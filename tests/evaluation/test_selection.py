"""Scores without labels have the values that their definitions give, and no way to a label."""

from dataclasses import replace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import CONFIG, NAMES, Pointwise, network

from mrm_jax.config import MRM, Domain, MultiRes
from mrm_jax.data.pipeline import selection_crops
from mrm_jax.evaluation.selection import Rebuilding, label_free
from mrm_jax.models.build import build_rebuilder, build_segmentor, feature_spec
from mrm_jax.types import Unlabelled

K = len(NAMES)


def crops(count=3, size=(32, 32), seed=0):
    rng = np.random.default_rng(seed)
    valid = np.ones((count, *size), np.uint8)
    valid[:, :3] = 0
    return Unlabelled(rng.integers(0, 256, (count, *size, 3), np.uint8), valid)


def pointwise(bias, kernel=0.0):
    """Variables of a classifier of single pixels: logits are `bias` plus colours times `kernel`."""
    kernel = np.broadcast_to(kernel, (3, K)).astype(np.float32)
    return {"params": {"Dense_0": {"kernel": kernel, "bias": np.asarray(bias, np.float32)}}}


def scores(student, teacher=None, pictures=None):
    networks = {"student": student} | ({} if teacher is None else {"teacher": teacher})
    return label_free(CONFIG, Pointwise(), networks, pictures or crops())


def test_a_uniform_prediction_has_all_entropy_all_diversity_and_no_information():
    found = scores(pointwise([0, 0, 0, 0]))
    assert found == pytest.approx({"infomax": 0, "entropy": 1, "diversity": 1}, abs=1e-6)


def test_a_prediction_collapsed_to_one_class_has_neither_entropy_nor_diversity():
    found = scores(pointwise([200, 0, 0, 0]))
    assert found == pytest.approx({"infomax": 0, "entropy": 0, "diversity": 0}, abs=1e-6)


def test_certain_predictions_of_two_halves_are_worth_half_of_four_classes():
    black, white = np.zeros((2, 32, 32, 3), np.uint8), np.full((2, 32, 32, 3), 255, np.uint8)
    pictures = Unlabelled(np.concatenate([black, white]), np.ones((4, 32, 32), np.uint8))
    found = scores(pointwise([0, 0, -999, -999], [[100, -100, 0, 0]] * 3), pictures=pictures)
    assert found == pytest.approx({"infomax": 0.5, "entropy": 0, "diversity": 0.5}, abs=1e-6)


def test_equal_networks_agree_and_networks_of_other_classes_do_not():
    one, other = pointwise([9, 0, 0, 0]), pointwise([0, 9, 0, 0])
    assert scores(one, one)["agreement"] == 1
    assert scores(one, other)["agreement"] == 0


def test_all_scores_are_those_of_numpy_whatever_the_batch():
    rng = np.random.default_rng(3)
    student, teacher = (
        pointwise(rng.normal(size=K), 2 * rng.normal(size=(3, K))) for _ in range(2)
    )
    pictures = crops(5)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    colours = ((pictures.image - mean) / std)[pictures.valid > 0]
    logits = [
        colours @ n["params"]["Dense_0"]["kernel"] + n["params"]["Dense_0"]["bias"]
        for n in (student, teacher)
    ]
    share = np.exp(logits[0]) / np.exp(logits[0]).sum(-1, keepdims=True)
    entropy = -(share * np.log(share)).sum(-1).mean() / np.log(K)
    diversity = -(share.mean(0) * np.log(share.mean(0))).sum() / np.log(K)
    one, other = (each.argmax(-1) for each in logits)
    ious = [
        ((one == c) & (other == c)).sum() / union
        for c in range(K)
        if (union := ((one == c) | (other == c)).sum())
    ]
    wanted = {"infomax": diversity - entropy, "entropy": entropy, "diversity": diversity}
    wanted["agreement"] = np.mean(ious)
    for rows in (1, 2, 5):
        cfg = replace(CONFIG, evaluation=replace(CONFIG.evaluation, batch=rows))
        networks = {"student": student, "teacher": teacher}
        found = label_free(cfg, Pointwise(), networks, pictures)
        # float32 sums over 4640 pixels; a pixel at a border between classes moves agreement.
        assert found == pytest.approx(wanted, abs=1e-3)


def masked(ratio, *, hrda=False):
    """(all scores, of a segmentor and a Rebuilder) with tokens hidden at `ratio`."""
    size = (64, 64) if hrda else (32, 32)
    mrm = MRM(enabled=True, grid=(4, 4), dim=8, depth=1, heads=2, ratio=ratio)
    cfg = replace(CONFIG, method=replace(CONFIG.method, mrm=mrm))
    _, segmentor, variables = network()
    if hrda:
        model = replace(CONFIG.model, multires=MultiRes(enabled=True, attention_channels=8))
        segmentor = build_segmentor(model, K, (32, 32))
        init = jax.jit(lambda key, x: segmentor.init(key, x, mode="eval", offset=jnp.zeros(2, int)))
        variables = init(jax.random.key(0), jnp.zeros((1, *size, 3)))
    spec = feature_spec(CONFIG.model.encoder)
    rebuilder = build_rebuilder(mrm, spec, CONFIG.model.decoder.kind, (32, 32))
    maps = tuple(
        jnp.zeros((1, 32 // s, 32 // s, c))
        for s, c in zip(spec.strides, spec.channels, strict=True)
    )
    init = jax.jit(rebuilder.init)
    params = init(jax.random.key(1), maps, jnp.zeros((1, 4, 4)), 0.0)["params"]
    rebuilding = Rebuilding(rebuilder, params)
    networks = {"student": variables}
    return label_free(cfg, segmentor, networks, crops(3, size), rebuilding=rebuilding)


@pytest.mark.parametrize("hrda", [False, True], ids=["one_scale", "hrda"])
def test_nothing_hidden_changes_nothing_and_hidden_tokens_do_the_same_at_every_call(hrda):
    assert masked(0.0, hrda=hrda)["masked_agreement"] == 1
    half = masked(0.5, hrda=hrda)
    assert 0 <= half["masked_agreement"] < 1
    assert half == masked(0.5, hrda=hrda)


def test_the_rebuilder_does_not_move_the_other_scores():
    _, segmentor, variables = network()
    plain = label_free(CONFIG, segmentor, {"student": variables}, crops())
    rebuilt = masked(0.5)
    del rebuilt["masked_agreement"]
    assert rebuilt == pytest.approx(plain, abs=1e-5)  # two compilations of one forward


def town(path, count=7):
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (path / folder).mkdir()
        for i in range(count):
            picture = rng.integers(0, K, (40, 48, 3), np.uint8)
            picture[..., 0] = i
            kept = picture if folder == "images" else picture[..., 1]
            cv2.imwrite(str(path / folder / f"{i}.png"), kept)
    domain = Domain(path=str(path), images="images", labels="labels")
    return replace(CONFIG, data=replace(CONFIG.data, target=domain))


def few(cfg, count):
    return replace(cfg, evaluation=replace(cfg.evaluation, selection_pictures=count))


def test_the_target_needs_no_labels_and_deleting_them_changes_no_score(tmp_path):
    cfg = few(town(tmp_path), 4)
    _, segmentor, variables = network()
    before = label_free(cfg, segmentor, {"student": variables}, selection_crops(cfg))
    for label in (tmp_path / "labels").iterdir():
        label.unlink()
    found = selection_crops(cfg)
    assert set(found.__dataclass_fields__) == {"image", "valid"}
    assert label_free(cfg, segmentor, {"student": variables}, found) == before


def test_pictures_are_spread_evenly_and_are_the_same_for_every_seed(tmp_path):
    cfg = town(tmp_path)
    found = selection_crops(few(cfg, 3))
    assert found.image.shape == (3, 32, 32, 3)
    assert found.image[:, 0, 0, 2].tolist() == [0, 2, 4]  # OpenCV writes BGR
    np.testing.assert_array_equal(selection_crops(replace(few(cfg, 3), seed=9)).image, found.image)
    assert len(selection_crops(few(cfg, 50)).image) == 7
    assert selection_crops(few(cfg, 0)) is None
