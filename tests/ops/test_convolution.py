"""The fast forms of convolutions against the plain `lax` ones."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mrm_jax.ops import convolution, transposed
from mrm_jax.ops import depthwise as depthwise_forms
from mrm_jax.ops.batch_norm import batch_norm
from mrm_jax.ops.convolution import conv, same_padding
from mrm_jax.ops.depthwise import depthwise
from mrm_jax.ops.transposed import transposed_conv

LAYOUT = ("NHWC", "HWIO", "NHWC")


def grouped(x, kernel, stride, padding, dilation):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=LAYOUT,
        feature_group_count=x.shape[-1],
    )


def compare(ours, theirs, *inputs, tolerance):
    """Values and gradients of every input, for one random cotangent."""
    out = jax.eval_shape(ours, *inputs)
    cotangent = jnp.asarray(np.random.default_rng(9).normal(size=out.shape), out.dtype)

    @jax.jit
    def both(*inputs):
        results = (jax.vjp(form, *inputs) for form in (ours, theirs))
        return [(value, *pull(cotangent)) for value, pull in results]

    for mine, other in zip(*both(*inputs), strict=True):
        np.testing.assert_allclose(mine, other, atol=tolerance)


# Size of the map, kernel, stride, padding (a number: that much at each side), dilation. 6x9: with
# dilation 6 only the columns are reached, with 18 only the centre is.
CASES = {
    **{f"dilation {d}": ((6, 9), (3, 3), 1, d, d) for d in (1, 2, 5, 6, 18)},
    "5x5": ((7, 9), (5, 5), 1, 2, 1),
    "3x3 by 2": ((8, 7), (3, 3), 2, 1, 1),
    "5x5 by 2": ((13, 6), (5, 5), 2, 2, 1),
    "3x3 by 2, lopsided": ((8, 7), (3, 3), 2, ((0, 1), (1, 1)), 1),
    "5x5 by 2, lopsided": ((8, 12), (5, 5), 2, ((1, 2), (1, 2)), 1),
    "5x3, lopsided": ((9, 17), (5, 3), 1, ((3, 1), (0, 2)), 1),
    "3x3 by 3, dilation 2": ((11, 10), (3, 3), 3, 2, 2),
    "1x1 by 2": ((5, 4), (1, 1), 2, 0, 1),
    "a map of one place": ((1, 1), (5, 5), 2, 2, 1),
    "no padding": ((6, 7), (3, 3), 1, 0, 1),
}


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_depthwise_equals_the_grouped_convolution_in_value_and_gradient(case, held):
    size, taps, stride, padding, dilation = CASES[case]
    if isinstance(padding, int):
        padding = ((padding, padding), (padding, padding))
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(rng.normal(size=(2, *size, 4))), rng.normal(size=(*taps, 1, 4))
        compare(
            lambda x, k: depthwise(x, k, stride, padding, dilation, held=held),
            lambda x, k: grouped(x, k, stride, padding, dilation),
            x,
            jnp.asarray(kernel),
            tolerance=1e-12,
        )


@pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="the forms of other devices are XLA's own"
)
def test_a_gradient_that_is_held_is_computed_once_and_not_for_every_tap():
    def subtractions(held):
        def loss(x, kernel):
            y = depthwise(x, kernel, dilation=3, held=held)
            return (batch_norm(y, jnp.ones(4), jnp.zeros(4), 1e-5)[0] ** 3).sum()

        gradient = jax.jit(jax.grad(loss, 1))
        lowered = gradient.lower(jnp.ones((2, 16, 16, 4)), jnp.ones((3, 3, 1, 4)))
        return lowered.compile().as_text().count("subtract(")

    # BatchNorm's gradient subtracts; each of the nine taps does so where it is not held.
    assert subtractions(held=True) + 9 <= subtractions(held=False)


def compare_dense(case, inputs, outputs):
    size, taps, stride, padding, dilation = CASES[case]
    if isinstance(padding, int):
        padding = ((padding, padding), (padding, padding))
    rng = np.random.default_rng(4)

    def plain(x, k):
        strides, dilations = (stride, stride), (dilation, dilation)
        return lax.conv_general_dilated(
            x, k, strides, padding, rhs_dilation=dilations, dimension_numbers=LAYOUT
        )

    with jax.enable_x64(True):
        x, kernel = rng.normal(size=(2, *size, inputs)), rng.normal(size=(*taps, inputs, outputs))
        ours = lambda x, k: conv(x, k, stride, padding, dilation)  # noqa: E731
        compare(ours, plain, jnp.asarray(x), jnp.asarray(kernel), tolerance=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_dense_convolution_equals_that_of_lax_in_value_and_gradient(case):
    compare_dense(case, inputs=4, outputs=3)


@pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="the forms of other devices are XLA's own"
)
def test_a_convolution_in_a_loop_is_written_as_the_cpu_compiler_runs_it_fast():
    """Outside of loops the compiler turns kernels itself."""
    kernels = jnp.ones((2, 3, 3, 4, 4))

    def loss(kernels, x):
        return lax.scan(lambda x, k: (conv(x, k, 1, ((1, 1), (1, 1))), None), x, kernels)[0].sum()

    text = (
        jax.jit(jax.grad(loss, (0, 1))).lower(kernels, jnp.ones((2, 6, 9, 4))).compile().as_text()
    )
    written = re.findall(r"\bconvolution\(.*dim_labels=([^,]+)", text)
    assert len(written) >= 2  # of the loop forwards and of that backwards
    assert set(written) == {"b01f_01io->b01f"}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the form of CPUs")
def test_of_a_kernel_gradient_one_tap_at_a_time_is_in_memory():
    def loss(kernel, x):
        return (conv(x, kernel, 1, ((1, 1), (1, 1))) ** 2).sum()

    shapes = (3, 3, 256, 64), (2, 32, 32, 256)
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(jax.grad(loss)).lower(*given).compile()
    # A tap reads as much as the map has, 2 MiB, and there are nine.
    assert compiled.memory_analysis().temp_size_in_bytes < 6 * 2 * 32 * 32 * 256 * 4


@pytest.mark.parametrize("case", ["dilation 2", "5x3, lopsided", "dilation 18", "no padding"])
def test_so_it_does_where_all_taps_outputs_are_fewer_than_the_inputs(case):
    compare_dense(case, inputs=33, outputs=2)


def test_depthwise_pads_so_that_the_size_stays_unless_it_is_told_otherwise():
    x = jnp.ones((1, 6, 9, 2))
    assert depthwise(x, jnp.ones((3, 3, 1, 2)), dilation=4).shape == x.shape
    assert depthwise(x, jnp.ones((5, 3, 1, 2))).shape == x.shape


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("taps", [3, 5])
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 2)])
def test_same_padding_is_that_of_lax(size, taps, stride):
    assert list(same_padding(size, taps, stride)) == lax.padtype_to_pads(
        size, (taps, taps), (stride, stride), "SAME"
    )


def test_depthwise_in_bfloat16_sums_in_float32():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(1, 8, 8, 3)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, 3)), jnp.bfloat16)
    out = depthwise(x, kernel)
    exact = grouped(x.astype(jnp.float32), kernel.astype(jnp.float32), 1, ((1, 1), (1, 1)), 1)
    assert out.dtype == jnp.bfloat16
    # Half a bfloat16 step (2^-9) of each value: one rounding, at the end.
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("rows", [3, 8, 19])
def test_the_two_forms_of_the_kernel_gradient_agree(rows):
    # 3 rows: fewer than groups; 19: the last group is filled up by rows of zeros.
    rng = np.random.default_rng(2)
    axes = (
        convolution.Axis(2 * rows, 3, 2, 1, 0, 1),
        convolution.Axis(5, 5, 2, 1, 2, 2),
    )
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(2, 2 * rows, 5, 4)))
        g = jnp.asarray(rng.normal(size=(2, axes[0].out, axes[1].out, 4)))
        forms = depthwise_forms._kernel_gradient, depthwise_forms._kernel_gradient_cpu
        both = [jax.jit(form, static_argnums=0)(axes, x, g) for form in forms]
        np.testing.assert_allclose(*both, atol=1e-12)


@pytest.mark.parametrize("form", [transposed_conv, transposed._by_windows])
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
