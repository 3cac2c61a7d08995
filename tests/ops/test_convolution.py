"""The fast forms of convolutions against the plain `lax` ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mrm_jax.ops import convolution
from mrm_jax.ops.convolution import depthwise3x3, transposed_conv

LAYOUT = ("NHWC", "HWIO", "NHWC")


def grouped(x, kernel, dilation):
    padding = ((dilation, dilation), (dilation, dilation))
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=LAYOUT,
        feature_group_count=x.shape[-1],
    )


def compare(ours, theirs, *inputs, tolerance):
    """Values and gradients of every input, for one random cotangent."""
    ours, pull = jax.vjp(ours, *inputs)
    theirs, pull_theirs = jax.vjp(theirs, *inputs)
    cotangent = jnp.asarray(np.random.default_rng(9).normal(size=ours.shape), ours.dtype)
    np.testing.assert_allclose(ours, theirs, atol=tolerance)
    for mine, other in zip(pull(cotangent), pull_theirs(cotangent), strict=True):
        np.testing.assert_allclose(mine, other, atol=tolerance)


@pytest.mark.parametrize("dilation", [1, 2, 5, 6, 18])
def test_depthwise_equals_the_grouped_convolution_in_value_and_gradient(dilation):
    # 6x9: with dilation 6 only the columns are reached, with 18 only the centre is.
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(rng.normal(size=(2, 6, 9, 4))), rng.normal(size=(3, 3, 1, 4))
        compare(
            lambda x, k: depthwise3x3(x, k, dilation),
            lambda x, k: grouped(x, k, dilation),
            x,
            jnp.asarray(kernel),
            tolerance=1e-12,
        )


def test_depthwise_in_bfloat16_sums_in_float32():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(1, 8, 8, 3)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, 3)), jnp.bfloat16)
    out = depthwise3x3(x, kernel)
    exact = grouped(x.astype(jnp.float32), kernel.astype(jnp.float32), 1)
    assert out.dtype == jnp.bfloat16
    # Half a bfloat16 step (2^-9) of each value: one rounding, at the end.
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, rtol=2**-8, atol=1e-6)


def test_the_two_forms_of_the_kernel_gradient_agree():
    rng = np.random.default_rng(2)
    products = [jnp.asarray(rng.normal(size=(2, 3, 5, 4)), jnp.float32) for _ in range(9)]
    together = convolution._sums_together(*products)
    apart = convolution._sums_apart(*products)
    np.testing.assert_allclose(jnp.stack(together), jnp.stack(apart), atol=1e-5)


@pytest.mark.parametrize("form", [transposed_conv, convolution._by_windows])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4)])
def test_transposed_convolution_equals_lax_in_value_and_gradient(form, size):
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(2, *size, 3)))
        kernel = jnp.asarray(rng.normal(size=(4, 4, 3, 5)))

        def plain(x, k):
            padding = ((2, 2), (2, 2))
            return lax.conv_transpose(x, k, (2, 2), padding, dimension_numbers=LAYOUT)

        compare(form, plain, x, kernel, tolerance=1e-12)


def test_transposed_convolution_spreads_one_pixel_as_its_definition_says():
    # Output position of input position i and tap k is 2i + 2 - k (PyTorch: 2i - 1 + k, flipped).
    kernel = np.arange(16.0).reshape(4, 4, 1, 1)
    x = np.zeros((1, 3, 3, 1))
    x[0, 1, 1, 0] = 1
    expected = np.zeros((6, 6))
    expected[1:5, 1:5] = kernel[::-1, ::-1, 0, 0]
    out = transposed_conv(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
    np.testing.assert_array_equal(out[0, :, :, 0], expected)
