"""Jitter and blur against numpy and the standard library, one pixel and one image at a time."""

import colorsys

import numpy as np
import pytest

from mrm_jax.ops import augment

ORDERS = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]], np.int32)


def _jitter_pixel(pixel, strength, order):
    for operation in order:
        if operation == augment.BRIGHTNESS:
            pixel = np.clip(pixel + strength[0], 0, 1)
        elif operation == augment.CONTRAST:
            pixel = np.clip(pixel * (1 + strength[1]), 0, 1)
        else:
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            if operation == augment.SATURATION:
                saturation = min(saturation * (1 + strength[2]), 1)
            else:
                hue = (hue + strength[3]) % 1
            pixel = np.array(colorsys.hsv_to_rgb(hue, saturation, value))
    return pixel


def test_jitter_does_to_each_image_what_its_own_order_and_strength_say():
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 1, (3, 4, 5, 3)).astype(np.float32)
    strength = rng.uniform(-0.2, 0.2, (3, 4)).astype(np.float32)
    got = np.asarray(augment.colour_jitter(image, strength, ORDERS))
    expected = [
        [[_jitter_pixel(p.astype(np.float64), s, o) for p in row] for row in picture]
        for picture, s, o in zip(image, strength, ORDERS, strict=True)
    ]
    # The reference divides by value + 1e-6 where colorsys divides by value: up to 1e-6 an
    # operation.
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_grey_stays_grey_under_hue_and_saturation():
    image = np.linspace(0, 1, 24, dtype=np.float32).reshape(1, 8, 1, 3)[..., :1].repeat(3, -1)
    got = augment.colour_jitter(
        image, np.array([[0, 0, 0.2, 0.2]], np.float32), np.array([[2, 3, 2, 3]])
    )
    np.testing.assert_allclose(got, image, atol=1e-7)


@pytest.mark.parametrize(
    ("side", "taps"), [(512, 51), (1024, 103), (540, 53), (768, 77), (256, 25), (40, 3), (8, 1)]
)
def test_kernel_size_follows_the_reference_rule(side, taps):
    assert augment.blur_kernel_size(side) == taps


def test_blur_equals_the_full_kernel_with_reflected_borders():
    rng = np.random.default_rng(1)
    image = rng.normal(size=(2, 150, 20, 3)).astype(np.float32)
    sigma = np.array([0.4, 1.15], np.float32)
    got = np.asarray(augment.gaussian_blur(image, sigma))
    expected = image.astype(np.float64)
    for axis in (1, 2):
        half = augment.blur_kernel_size(image.shape[axis]) // 2
        distance = np.arange(-half, half + 1)
        for i in range(2):
            taps = np.exp(-0.5 * (distance / sigma[i]) ** 2)
            taps /= taps.sum()
            widths = [(half, half) if a == axis - 1 else (0, 0) for a in range(3)]
            padded = np.pad(expected[i], widths, mode="reflect")
            parts = [
                np.take(padded, np.arange(t, t + image.shape[axis]), axis - 1) * taps[t]
                for t in range(2 * half + 1)
            ]
            expected[i] = sum(parts)
    # 15 taps along 150 px, 13 kept: the rest weighs 1e-8 at sigma 1.15; float32 sums give the
    # bound.
    np.testing.assert_allclose(got, expected, atol=2e-6)
