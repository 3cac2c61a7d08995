"""Heads that exist for training alone."""

import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.models.auxiliary import PixelHead, Prototypes


def test_the_pixel_head_puts_a_cells_colours_where_the_cell_lies():
    patch = np.arange(2 * 2 * 3, dtype=np.float32).reshape(2, 2, 3)
    kernel = np.zeros((2, 12), np.float32)
    kernel[0] = patch.reshape(-1)
    x = np.zeros((1, 2, 3, 2), np.float32)
    x[0, 1, 2, 0] = 1  # only this cell has anything to say
    variables = {"params": {"colours": {"kernel": kernel, "bias": np.zeros(12, np.float32)}}}
    found = np.asarray(PixelHead(2).apply(variables, x))
    assert found.shape == (1, 4, 6, 3)
    np.testing.assert_array_equal(found[0, 2:, 4:], patch)
    assert np.count_nonzero(found) == np.count_nonzero(patch)


def test_a_class_is_as_near_as_its_nearest_prototype_whatever_the_length_of_features():
    x = jnp.array([[[[3.0, 0.0], [0.0, 0.0]]]])
    vectors = jnp.array([[[0.0, 5.0], [2.0, 2.0]], [[-1.0, 0.0], [0.0, -1.0]]])
    eye = {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
    module = Prototypes(classes=2, count=2, dim=2)
    variables = {"params": {"vectors": vectors, "projection": eye}}
    cosines, gradient = jax.value_and_grad(lambda x: module.apply(variables, x).sum())(x)
    found = module.apply(variables, x)
    np.testing.assert_allclose(found[0, 0], [[0.5**0.5, 0], [0, 0]], atol=1e-6)
    assert np.isfinite(cosines)
    assert np.isfinite(gradient).all()
