"""The moving average and what the teacher lets out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax.ops import precision
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


def test_a_teacher_in_bfloat16_follows_the_student_where_rounding_to_the_nearest_would_stall():
    student, steps = {"w": jnp.full(4096, 1.25)}, 1500

    def follow(key):
        def one(old, number):
            own = None if key is None else jax.random.fold_in(key, number)
            return teacher.ema(student, old, jnp.int32(10**6), 0.999, own), None

        start = {"w": jnp.ones(4096, jnp.bfloat16 if key is not None else jnp.float32)}
        return jax.lax.scan(one, start, jnp.arange(steps))[0]["w"]

    rounded, exact = follow(jax.random.key(0)), follow(None)
    assert rounded.dtype == jnp.bfloat16
    # The mean over 4096 weights strays by a 64th of one weight's spread, some 2^-8 after many
    # roundings; to the nearest, 1 + 0.00025 is 1 again and again.
    np.testing.assert_allclose(rounded.astype(jnp.float32).mean(), exact.mean(), atol=2e-3)
    assert exact[0] > 1.19
    nearest = (0.999 * jnp.ones((), jnp.bfloat16) + 0.001 * 1.25).astype(jnp.bfloat16)
    assert nearest == 1


def test_rounding_by_chance_keeps_what_bfloat16_can_hold_and_what_is_not_finite():
    x = jnp.array([1.0, -0.5, 3e38, 0.0, jnp.inf, -jnp.inf, jnp.nan])
    got = precision.round_by_chance(x, jax.random.key(1)).astype(jnp.float32)
    np.testing.assert_array_equal(got[jnp.array([0, 1, 3, 4, 5])], x[jnp.array([0, 1, 3, 4, 5])])
    assert jnp.isnan(got[6])
