"""Logits of whole pictures and windows, against plain forwards, jax.image and loops over pixels."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from toys import Brightness, Pointwise, forward, network

from mrm_jax.config import Decoder, Encoder, Evaluation, Model
from mrm_jax.evaluation.inference import WINDOWS_AT_ONCE, maps, predict, strips, whole_logits
from mrm_jax.models.build import build_segmentor
from mrm_jax.ops.windows import grid


def picture(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*size, 3)).astype(np.float32)


@partial(jax.jit, static_argnums=(1, 2))
def by_image(x, height, width):
    shape = (x.shape[0], height, width, x.shape[-1])
    return jax.image.resize(x, shape, "bilinear", antialias=False)


def test_whole_resizes_logits_to_the_picture_and_from_there_to_the_label():
    _, model, variables = network()
    image = picture(2, 40, 56)
    direct = forward(model, variables, image)
    assert direct.shape[1:3] != (40, 56)
    first = by_image(direct, 40, 56)
    ours = predict(model, variables, image, size=(75, 111))
    # Two implementations of one float32 interpolation of numbers up to 10.
    np.testing.assert_allclose(predict(model, variables, image), first, atol=1e-4)
    np.testing.assert_allclose(ours, by_image(first, 75, 111), atol=1e-4)
    # The detour is part of the protocol: going there directly is something else.
    assert np.abs(ours - by_image(direct, 75, 111)).max() > 1e-3


@pytest.mark.parametrize("resize", ["native", "1.1"])
def test_pictures_and_windows_of_a_vit_are_fitted_to_its_patches_by_the_network_itself(resize):
    encoder = Encoder("dinov2", (8,), (1,), (7,), heads=(2,), mlp_ratios=(1,), position_grid=3)
    made = Model(replace(encoder, resize=resize), Decoder("vit_light"), unroll=False)
    model, image = build_segmentor(made, 5), picture(1, 16, 24)
    variables = model.init(jax.random.key(0), image, mode="eval")
    seen = by_image(np.asarray(forward(model, variables, image)), 16, 24)
    np.testing.assert_allclose(predict(model, variables, image), seen, atol=1e-5)
    corners, total, coverage = [(0, 0), (0, 8)], np.zeros((1, 16, 24, 5)), np.zeros((16, 24, 1))
    for top, left in corners:
        part = (slice(None), slice(top, top + 16), slice(left, left + 16))
        total[part] += by_image(np.asarray(forward(model, variables, image[part])), 16, 16)
        coverage[part[1:]] += 1
    ours = predict(model, variables, image, mode="slide", window=(16, 16), stride=(16, 8))
    # Two implementations of one float32 interpolation.
    np.testing.assert_allclose(ours, total / coverage, atol=1e-5)


@pytest.mark.parametrize("size", [(30, 45), (16, 80)])
def test_windows_change_nothing_for_a_network_that_looks_at_pixels_alone(size):
    model = Pointwise()
    image = picture(2, *size)
    variables = model.init(jax.random.key(1), image, mode="eval")
    whole = predict(model, variables, image)
    slide = predict(model, variables, image, mode="slide", window=(16, 16), stride=(7, 9))
    # Sums of up to 9 equal numbers, divided again.
    np.testing.assert_allclose(slide, whole, rtol=1e-5, atol=1e-6)


def test_overlapping_windows_are_averaged_as_logits():
    image = picture(2, 20, 33)
    window, stride = (12, 12), (6, 5)
    corners, _ = grid((20, 33), window, stride)
    assert len(corners) % WINDOWS_AT_ONCE, "the last call has to be one with filling rows"
    total, coverage = np.zeros(image.shape), np.zeros((20, 33, 1))
    for top, left in corners:
        part = (slice(None), slice(top, top + 12), slice(left, left + 12))
        total[part] += image[part].mean((1, 2), keepdims=True)
        coverage[part[1:]] += 1
    ours = predict(Brightness(), {}, image, mode="slide", window=window, stride=stride)
    np.testing.assert_allclose(ours, total / coverage, atol=1e-6)


@pytest.mark.parametrize("flip", [False, True])
def test_overlapping_windows_are_averaged_as_probabilities_where_the_protocol_says_so(flip):
    image = 3 * picture(2, 20, 33)
    how = {"mode": "slide", "window": (12, 12), "stride": (6, 5), "flip": flip}
    protocol = Evaluation(blend="probabilities", **how)
    corners, _ = grid((20, 33), (12, 12), (6, 5))

    def averaged(picture):
        total, coverage = np.zeros(picture.shape), np.zeros((20, 33, 1))
        for top, left in corners:
            part = (slice(None), slice(top, top + 12), slice(left, left + 12))
            seen = np.exp(picture[part].mean((1, 2), keepdims=True))
            total[part] += seen / seen.sum(-1, keepdims=True)
            coverage[part[1:]] += 1
        return total / coverage

    expected = averaged(image)
    if flip:
        expected = (expected + averaged(image[:, :, ::-1])[:, :, ::-1]) / 2

    def made(protocol, what):
        forward = partial(maps, Brightness(), {})
        found = strips(forward, [image], protocol=protocol, size=(20, 33), what=what)
        return [strip.cut() for strip in found]

    ours = np.concatenate(made(protocol, "probabilities"), axis=1)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    if flip:
        return
    ids, confidence = made(protocol, "classes")[0]
    np.testing.assert_array_equal(ids, expected.argmax(-1))
    np.testing.assert_allclose(confidence, expected.max(-1), atol=1e-6)
    np.testing.assert_allclose(np.exp(made(protocol, "logits")[0]), expected, atol=1e-6)
    traced = jax.jit(
        partial(whole_logits, partial(maps, Brightness(), {}), protocol=protocol)
    )  # as an export does
    np.testing.assert_allclose(np.exp(traced(image)), expected, atol=1e-6)
    # The mean of logits is something else.
    other = made(replace(protocol, blend="logits"), "probabilities")[0]
    assert np.abs(other - expected).max() > 1e-3


def test_a_picture_below_the_smallest_side_is_padded_with_the_mean_and_cut_again():
    _, model, variables = network()
    image = picture(1, 5, 70)
    ours = predict(model, variables, image, smallest=16)
    assert ours.shape == (1, 5, 70, 4)
    padded = np.pad(image, ((0, 0), (0, 11), (0, 0), (0, 0)))
    expected = predict(model, variables, padded)[:, :5]
    assert np.array_equal(ours, expected)
    with pytest.raises(ValueError, match="too small"):
        predict(model, variables, image)


def test_float64_pictures_give_float64_logits():
    _, model, variables = network()
    with jax.enable_x64(True):
        image = picture(1, 40, 40).astype(np.float64)
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
        for mode in ("whole", "slide"):
            ours = predict(model, wide, image, mode=mode, window=(32, 32), stride=(16, 16))
            assert ours.dtype == np.float64


def test_an_unknown_mode_is_refused_by_name():
    with pytest.raises(ValueError, match="'windows'; use 'whole' or 'slide'"):
        predict(Brightness(), {}, picture(1, 8, 8), mode="windows")  # type: ignore[arg-type]
