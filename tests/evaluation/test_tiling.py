"""Windows and parts of pictures, and the object that reads pictures by them."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from toys import CONFIG, Pointwise, network

from mrm_jax.config import Evaluation
from mrm_jax.evaluation import inference
from mrm_jax.evaluation.inference import PADDED, strips
from mrm_jax.evaluation.network import TrainedNetwork
from mrm_jax.evaluation.tiling import OVERLAP, in_parts, part_size, tiling
from mrm_jax.ops.resize import interpolation_matrix

SMALL = Evaluation(whole_pixels=2**12)


def weights(size, protocol):
    """How much of each pixel its windows give, and how many give something, window by window."""
    grid, total = tiling(size, protocol), np.zeros(size)
    for top, down in zip(grid.rows.starts, grid.rows.weights, strict=True):
        for left, right in zip(grid.columns.starts, grid.columns.weights, strict=True):
            part = (slice(top, top + len(down)), slice(left, left + len(right)))
            total[part] += np.outer(down, right)
    return total


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (33, 500), (1401, 3), (130, 257)])
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_the_weights_of_all_windows_add_up_to_one_at_every_pixel(size, mode):
    protocol = replace(SMALL, mode=mode, window=(40, 48), stride=(13, 30))
    np.testing.assert_allclose(weights(size, protocol), 1, rtol=1e-12)
    grid = tiling(size, protocol)
    assert grid.kind == (mode if mode == "slide" or size == (64, 64) else "parts")
    if grid.kind == "parts":
        assert np.prod(grid.extent) <= SMALL.whole_pixels
        for axis in (grid.rows, grid.columns):
            assert axis.starts[0] == 0
            assert axis.starts[-1] == axis.length - axis.extent
            step = np.diff(axis.starts)
            assert (axis.extent - step >= axis.extent // OVERLAP).all()


def test_pictures_above_the_limit_are_read_in_parts_and_those_of_published_sizes_whole():
    for size in ((1024, 2048), (1080, 1920), (512, 1024)):
        assert not in_parts(size, Evaluation())
    assert in_parts((1025, 2048), Evaluation())
    assert part_size((6000, 8000), 2**21) == (1024, 1024)
    assert part_size((500, 80_000), 2**21) == (500, 2080)
    assert not in_parts((6000, 8000), Evaluation(mode="slide"))


def resized(array, size):
    """Bilinear along both axes, as a product of matrices."""
    for axis, target in enumerate(size, 1):
        matrix = interpolation_matrix(array.shape[axis], target)
        array = np.moveaxis(np.tensordot(matrix, array, (1, axis)), 0, axis)
    return array


@pytest.mark.parametrize("size", [(71, 123), (45, 123), (200, 90)])
@pytest.mark.parametrize("protocol", [SMALL, replace(SMALL, mode="slide", window=(32, 48))])
def test_a_result_of_many_strips_is_the_weighted_mean_of_all_windows(protocol, size, monkeypatch):
    """Against windows cut, resized and added up one by one, in float64; at an odd size."""
    protocol = replace(protocol, stride=(24, 20))
    monkeypatch.setattr(inference, "NUMBERS_AT_ONCE", 4 * 2 * 128 * 24)
    image = np.random.default_rng(0).normal(size=(2, 90, 107, 3)).astype(np.float32)

    @jax.jit
    def forward(windows):  # a map of a quarter of the side, in which places matter
        rows = windows[:, 1::4, 2::4] * windows.mean((1, 2), keepdims=True)
        return jax.numpy.concatenate([rows, rows[..., :1] - 0.5], axis=-1)

    total = np.zeros((2, 90, 107, 4))
    grid = tiling((90, 107), protocol)
    assert len(grid.rows.starts) * len(grid.columns.starts) > 4
    for top, down in zip(grid.rows.starts, grid.rows.weights, strict=True):
        for left, right in zip(grid.columns.starts, grid.columns.weights, strict=True):
            part = (slice(None), slice(top, top + len(down)), slice(left, left + len(right)))
            logits = resized(np.asarray(forward(image[part]), np.float64), grid.extent)
            total[part] += logits * np.outer(down, right)[..., None]
    expected = resized(total, size)

    def found(what, protocol=protocol):
        given = strips(forward, [image], protocol=protocol, size=size, what=what)
        cut = [strip.cut() for strip in given]
        assert len(cut) > 1
        return jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *cut)

    logits = found("logits")
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    shares = np.asarray(jax.nn.softmax(logits, axis=-1))
    np.testing.assert_allclose(found("probabilities"), shares, atol=1e-6)
    ids, confidence = found("classes")
    assert np.array_equal(ids, logits.argmax(-1))
    np.testing.assert_allclose(confidence, shares.max(-1), atol=1e-6)


def smooth(size, seed=0):
    """A picture u8[H,W,3] without edges."""
    import cv2

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (size[0] // 24, size[1] // 24, 3), np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def changes(ids, axis):
    """Share of pixels whose class is not that of the one before, per border between two."""
    return (np.diff(ids.astype(int), axis=axis) != 0).mean(1 - axis)


def test_class_changes_along_the_borders_of_parts_are_no_more_than_elsewhere():
    cfg, model, variables = network(whole_pixels=2**12)
    net = TrainedNetwork(cfg, model, variables)
    image = smooth((200, 260))
    grid = tiling((200, 260), cfg.evaluation)
    assert grid.kind == "parts"
    abrupt = replace(cfg.evaluation, mode="slide", window=grid.extent, stride=grid.extent)
    seams = TrainedNetwork(replace(cfg, evaluation=abrupt), model, variables)
    for axis, along in enumerate((grid.rows, grid.columns)):
        borders = sorted({*along.starts[1:], *(s + along.extent for s in along.starts[:-1])})
        at = np.array(borders) - 1
        found = changes(net.predict(image).ids, axis)
        elsewhere = np.delete(found, at)
        # A mean of ten borders beside that of all others: within what ten others would give.
        spread = elsewhere.std() / np.sqrt(len(at))
        assert found[at].mean() <= elsewhere.mean() + 3 * spread
        cuts = np.array(tiling((200, 260), abrupt).rows.starts[1:-1]) - 1
        if axis == 0:
            hard = changes(seams.predict(image).ids, axis)
            assert hard[cuts].mean() > hard.mean() + 3 * hard.std() / np.sqrt(len(cuts))


def test_flips_and_scales_are_averaged_as_probabilities():
    cfg, model, variables = network()
    image = smooth((50, 70))
    once = TrainedNetwork(cfg, model, variables)
    parts = []
    for scale in (1.0, 1.25):
        at = replace(cfg, evaluation=replace(cfg.evaluation, scales=(scale,)))
        net = TrainedNetwork(at, model, variables)
        mirrored = net.predict(np.ascontiguousarray(image[:, ::-1])).probabilities[:, ::-1]
        parts += [net.predict(image).probabilities, mirrored]
    several = replace(cfg, evaluation=replace(cfg.evaluation, scales=(1.0, 1.25), flip=True))
    found = TrainedNetwork(several, model, variables).predict(image)
    mean = np.mean(parts, axis=0)
    np.testing.assert_allclose(found.probabilities, mean, atol=1e-5)
    assert (found.ids == mean.argmax(-1)).mean() > 0.999
    np.testing.assert_allclose(found.confidence, mean.max(-1), atol=1e-5)
    assert (found.ids != once.predict(image).ids).any()


def test_results_of_many_sizes_share_a_program():
    model = Pointwise()
    variables = model.init(jax.random.key(1), np.zeros((1, 32, 32, 3)), mode="eval")
    net = TrainedNetwork(CONFIG, model, jax.tree.map(np.asarray, variables))
    inference._made.clear_cache()
    versions = net.versions(np.zeros((32, 32, 3), np.uint8))
    for size in ((40, 50), (41, 57), (60, 64), (PADDED, 33)):
        net.classified([version[None] for version in versions], size)
    assert inference._made._cache_size() <= 2  # of two or of three positions a pixel
