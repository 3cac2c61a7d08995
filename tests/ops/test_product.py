"""The product of a map and a matrix, against einsum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax.models.layers import gelu
from mrm_jax.ops import product as module
from mrm_jax.ops.product import product

# Narrow to wide, wide to narrow, as wide.
WIDTHS = [(3, 7), (7, 3), (4, 4)]


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("places", [(2, 5, 4), (6,), (2, 3)])
def test_product_equals_einsum_in_value_and_gradient(places, widths):
    rng = np.random.default_rng(0)
    shapes = ((*places, widths[0]), widths, (*places, widths[1]))
    with jax.enable_x64(True):
        x, kernel, g = (jnp.asarray(rng.normal(size=shape)) for shape in shapes)

        @jax.jit
        def both(x, kernel):
            forms = product, lambda x, k: jnp.einsum("...i,io->...o", x, k)
            results = [jax.vjp(form, x, kernel) for form in forms]
            return [(value, *pull(g)) for value, pull in results]

        for mine, other in zip(*both(x, kernel), strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-12)


@pytest.mark.parametrize("widths", WIDTHS)
def test_the_two_forms_of_the_kernel_gradient_agree(widths):
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        x, g = (jnp.asarray(rng.normal(size=(2, 5, 4, width))) for width in widths)
        np.testing.assert_allclose(module._outer_cpu(x, g), module._outer(x, g), atol=1e-12)


@pytest.mark.parametrize("places", [(2, 5, 4), (6,)])
def test_the_product_of_a_function_is_that_of_its_values_in_value_and_gradient(places):
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        x, kernel, g = (
            jnp.asarray(rng.normal(size=shape)) for shape in ((*places, 3), (3, 7), (*places, 7))
        )

        @jax.jit
        def both(x, kernel):
            forms = lambda x, k: product(x, k, gelu), lambda x, k: gelu(x) @ k
            results = [jax.vjp(form, x, kernel) for form in forms]
            return [(value, *pull(g)) for value, pull in results]

        for mine, other in zip(*both(x, kernel), strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-12)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only on CPU is it computed again")
def test_the_values_of_a_function_are_not_kept_for_the_gradient():
    places, width, layers = 512, 64, 6

    def temporaries(again):
        def loss(kernels, x):
            for kernel in kernels:
                x = product(x, kernel, gelu) if again else product(gelu(x), kernel)
            return x.sum()

        shapes = (layers, width, width), (places, width)
        given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        compiled = jax.jit(jax.grad(loss)).lower(*given).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # Of each layer the plain form keeps the values, and of GELU the error function's.
    assert temporaries(again=True) + (layers - 2) * places * width * 4 <= temporaries(again=False)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only on CPU are they copied again")
def test_kernels_of_a_stack_are_not_kept_for_the_gradient():
    places, width, layers = 64, 256, 8

    def temporaries(form):
        def block(x, kernel):
            return jnp.tanh(form(x, kernel)), None

        def loss(kernels, x, head):  # the most memory is held where the gradient begins
            return jnp.tanh(jax.lax.scan(block, x, kernels, unroll=layers)[0] @ head).sum()

        shapes = (layers, width, width), (places, width), (width, 64 * width)
        given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        compiled = jax.jit(jax.grad(loss)).lower(*given).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(product) + (layers - 3) * width**2 * 4 <= temporaries(jnp.matmul)
