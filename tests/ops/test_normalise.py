"""Pictures to network numbers and back."""

import numpy as np

from mrm_jax.ops import normalise
from mrm_jax.registry import IMAGENET


def test_every_grey_level_comes_back_from_its_normalised_value():
    image = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1).repeat(3, -1)
    np.testing.assert_array_equal(
        normalise.to_uint8(normalise.normalise(image, IMAGENET), IMAGENET), image
    )


def test_the_mean_colour_is_zero_and_one_deviation_is_one():
    mean, std = (np.array(v, np.float32) for v in IMAGENET)
    got = normalise.from_unit(np.stack([mean, mean + std]) / 255, IMAGENET)
    np.testing.assert_allclose(got, [[0, 0, 0], [1, 1, 1]], atol=1e-6)
