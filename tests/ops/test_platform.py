"""Forms by platform, and portable programs: no such choice, no pooling over four axes, the same
values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, use_abstract_mesh

from mrm_jax.ops.platform import by_platform, portable
from mrm_jax.ops.pool import max_pool
from mrm_jax.ops.resize import resize
from mrm_jax.sharding import imagined_device, mesh


def test_a_portable_program_chooses_by_no_platform_and_computes_the_same():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 128, 32)), jnp.float32)

    def doubled(x):  # of so many numbers that CPUs have a form of their own
        return resize(x, (128, 256))

    assert "platform_index" in str(jax.make_jaxpr(doubled)(x))
    with portable():
        assert "platform_index" not in str(jax.make_jaxpr(lambda x: doubled(x))(x))
        found = doubled(x)
    np.testing.assert_allclose(found, doubled(x), atol=1e-6)


def of(platform):
    """A mesh of one device of this platform, which need not be there."""
    return AbstractMesh((1,), ("data",), abstract_device=imagined_device(platform))


@pytest.mark.parametrize(
    ("platform", "form"), [("cpu", "cpu"), ("tpu", "default"), ("gpu", "default")]
)
def test_a_mesh_says_which_form_is_traced(platform, form):
    traced = []

    def named(name):
        return lambda x: traced.append(name) or x

    def chosen(x):
        with use_abstract_mesh(of(platform)):
            return by_platform(x, cpu=named("cpu"), default=named("default"))

    assert "platform_index" not in str(jax.make_jaxpr(chosen)(1.0))
    assert traced == [form]


def test_the_mesh_of_this_machine_says_that_it_is_a_cpu():
    with use_abstract_mesh(mesh(1).abstract_mesh):
        assert by_platform(1, cpu=lambda x: "cpu", default=lambda x: "default") == "cpu"


def test_a_form_for_one_kind_of_accelerator_is_chosen_where_the_program_is_compiled():
    def chosen(x, platform):
        with use_abstract_mesh(of(platform)):
            return by_platform(x, cuda=lambda x: x + 1, default=lambda x: x)

    assert "platform_index" in str(jax.make_jaxpr(lambda x: chosen(x, "gpu"))(1.0))
    assert "platform_index" not in str(jax.make_jaxpr(lambda x: chosen(x, "cpu"))(1.0))
    with portable():
        assert "platform_index" not in str(jax.make_jaxpr(lambda x: chosen(x, "gpu"))(1.0))


@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding"),
    [
        ((2, 9, 12, 3), 3, 2, ((1, 1), (1, 1))),
        ((1, 5, 8, 2), 2, 2, ((0, 1), (0, 0))),
        ((1, 3, 3, 1), 3, 1, ((0, 0), (0, 0))),
    ],
)
def test_portable_pools_are_the_others(shape, size, stride, padding):
    x = -np.abs(np.random.default_rng(1).normal(size=shape)).astype(np.float32)
    wanted = max_pool(x, size, stride, padding)
    with portable():
        program = str(jax.make_jaxpr(lambda x: max_pool(x, size, stride, padding))(x))
        found = max_pool(jnp.asarray(x), size, stride, padding)
    assert "reduce_window" not in program
    np.testing.assert_array_equal(found, wanted)
    assert found.shape[1] == (shape[1] + sum(padding[0]) - size) // stride + 1
