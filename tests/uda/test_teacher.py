"""The moving average and what the teacher lets out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax.uda import teacher


@pytest.mark.parametrize(
    ("step", "kept"), [(0, 0.0), (1, 0.5), (2, 2 / 3), (98, 98 / 99), (99, 0.99), (5000, 0.99)]
)
def test_the_share_kept_ramps_up_from_zero_to_the_decay(step, kept):
    got = teacher.ema({"w": jnp.zeros(2)}, {"w": jnp.ones(2)}, step, 0.99)
    np.testing.assert_allclose(got["w"], kept, rtol=1e-6)


def test_the_first_update_is_an_exact_copy():
    student = {"w": jnp.array([0.1, -3e-20, 7e20])}
    got = teacher.ema(student, {"w": jnp.array([5.0, 1.0, 2.0])}, 0, 0.999)
    np.testing.assert_array_equal(got["w"], student["w"])


def test_each_leaf_keeps_its_dtype():
    tree = {"w": jnp.ones(2, jnp.bfloat16)}
    assert teacher.ema(tree, tree, jnp.int32(3), jnp.float32(0.9))["w"].dtype == jnp.bfloat16


def test_compiled_with_a_traced_step_it_is_the_same():
    student, old = {"w": jnp.arange(3.0)}, {"w": jnp.ones(3)}
    compiled = jax.jit(teacher.ema)(student, old, jnp.int32(4), jnp.float32(0.99))
    np.testing.assert_allclose(compiled["w"], 0.8 * old["w"] + 0.2 * student["w"], rtol=1e-6)
