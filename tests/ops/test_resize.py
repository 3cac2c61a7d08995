"""Resizing against `jax.image.resize`, and the facts that the method relies on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax import sharding
from mrm_jax.ops import resize as module
from mrm_jax.ops.resize import resize

# Whole factors up and down, odd and even, equal on one axis, and sizes that divide nothing.
SIZES = [(12, 20), (6, 10), (3, 5), (18, 15), (2, 5), (1, 1), (7, 13), (24, 7), (5, 10), (48, 80)]


def reference(x, size):
    """JAX's own resize: another implementation of the same convention."""
    shape = (*x.shape[:-3], *size, x.shape[-1])
    return jax.image.resize(x, shape, "bilinear", antialias=False)


def values_and_gradient(function, x, cotangent):
    out, pullback = jax.vjp(function, x)
    return np.asarray(out), np.asarray(pullback(cotangent)[0])


def compare_with_reference(size):
    # float64: jax.image.resize computes its weights in the map's own precision.
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, cotangent = rng.normal(size=(2, 6, 10, 3)), rng.normal(size=(2, *size, 3))
        ours = values_and_gradient(lambda v: resize(v, size), jnp.asarray(x), cotangent)
        theirs = values_and_gradient(lambda v: reference(v, size), jnp.asarray(x), cotangent)
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-13)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_bilinear_equals_jax_image_resize_in_value_and_gradient(size):
    compare_with_reference(size)


@pytest.mark.parametrize("size", [(12, 10), (18, 50), (24, 7)])
def test_growing_by_shifted_slices_equals_jax_image_resize_too(size, monkeypatch):
    monkeypatch.setattr(module, "_PHASES_FROM", 0)
    compare_with_reference(size)


def test_only_large_results_are_grown_by_shifted_slices(monkeypatch):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 5, 7, 2)), jnp.float32)
    by_matrix = str(jax.make_jaxpr(lambda v: resize(v, (20, 28)))(x))
    monkeypatch.setattr(module, "_PHASES_FROM", 0)
    by_phases = str(jax.make_jaxpr(lambda v: resize(v, (20, 28)))(x))
    assert by_matrix.count("platform_index") < by_phases.count("platform_index")


def test_on_cpu_rows_are_mixed_without_moving_an_axis():
    x = jnp.ones((2, 6, 10, 3))

    def gradient(x):
        return jax.grad(lambda x: resize(x, (12, 10)).sum())(x)

    with jax.sharding.use_abstract_mesh(sharding.mesh(1).abstract_mesh):
        program = str(jax.make_jaxpr(gradient)(x))
    assert program.count("dot_general") == 2
    assert "transpose" not in program


def test_halving_is_the_mean_of_two_by_two_blocks():
    x = np.random.default_rng(2).normal(size=(1, 8, 6, 2)).astype(np.float32)
    blocks = x.reshape(1, 4, 2, 3, 2, 2).mean((2, 4))
    np.testing.assert_allclose(resize(jnp.asarray(x), (4, 3)), blocks, atol=1e-6)


def test_quartering_averages_the_inner_two_by_two_of_every_four_by_four():
    x = np.random.default_rng(3).normal(size=(1, 8, 8, 1)).astype(np.float32)
    inner = x.reshape(1, 2, 4, 2, 4, 1)[:, :, 1:3, :, 1:3].mean((2, 4))
    np.testing.assert_allclose(resize(jnp.asarray(x), (2, 2)), inner, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_nearest_takes_the_source_index_rounded_down(size):
    x = np.arange(2 * 6 * 10).reshape(2, 6, 10, 1).astype(np.int32)
    rows = [i * 6 // size[0] for i in range(size[0])]
    columns = [j * 10 // size[1] for j in range(size[1])]
    expected = x[:, rows][:, :, columns]
    out = resize(jnp.asarray(x), size, method="nearest")
    assert out.dtype == jnp.int32
    np.testing.assert_array_equal(out, expected)


def test_the_dtype_stays_and_bfloat16_is_rounded_only_once():
    x = jnp.asarray(np.random.default_rng(4).normal(size=(1, 4, 4, 2)), jnp.bfloat16)
    out = resize(x, (12, 12))
    assert out.dtype == jnp.bfloat16
    exact = resize(x.astype(jnp.float32), (12, 12)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(out, np.float32), np.asarray(exact, np.float32))


def test_float64_stays_float64():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(5).normal(size=(1, 4, 6, 2)))
        out = resize(x, (9, 12))
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, reference(x, (9, 12)), atol=1e-14)


@pytest.mark.parametrize(
    ("x", "size", "method", "message"),
    [
        (jnp.zeros((4, 4)), (2, 2), "bilinear", "channel axis"),
        (jnp.zeros((4, 4, 1), jnp.int32), (2, 2), "bilinear", "method='nearest'"),
        (jnp.zeros((4, 4, 1)), (0, 2), "nearest", "positive"),
        (jnp.zeros((4, 4, 1)), (2, 2), "cubic", "'cubic' is unknown"),
    ],
)
def test_impossible_requests_say_what_to_do(x, size, method, message):
    with pytest.raises(ValueError, match=message):
        resize(x, size, method=method)
