"""lambda over a run."""

import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax.config import MRM, Config, Method, Train
from mrm_jax.train.state import scalars
from mrm_jax.uda.schedule import at_step

WEIGHT = "method.mrm.weight"
STEPS = (0, 1, 5, 20, 21, 78, 79, 80, 98, 99)
# Of 100 steps, ramps of 20.
SHARES = {
    "constant": (1,) * 10,
    "rise": (0, 0.05, 0.25, 1, 1, 1, 1, 1, 1, 1),
    "fall": (1, 1, 1, 1, 1, 1, 1, 0.95, 0.05, 0),
}


def _weights(schedule, ramp=0.2):
    method = Method(mrm=MRM(weight=0.5, schedule=schedule, ramp=ramp))
    numbers = scalars(Config(method=method, train=Train(steps=100)))
    found = [at_step(numbers, jnp.int32(step)) for step in STEPS]
    assert all(found[3][name] is numbers[name] for name in numbers if name != WEIGHT)
    return [float(numbers[WEIGHT]) for numbers in found]


@pytest.mark.parametrize("schedule", SHARES)
def test_it_is_constant_or_rises_from_zero_or_falls_to_zero_in_a_line(schedule):
    np.testing.assert_allclose(_weights(schedule), 0.5 * np.array(SHARES[schedule]), rtol=1e-6)


@pytest.mark.parametrize("schedule", ["rise", "fall"])
def test_a_ramp_of_no_steps_is_none_and_one_of_all_steps_takes_the_run(schedule):
    assert _weights(schedule, 0.0) == [0.5] * len(STEPS)
    steps = np.array(STEPS)
    share = steps if schedule == "rise" else 99 - steps
    np.testing.assert_allclose(_weights(schedule, 1.0), 0.5 * share / 100, rtol=1e-6)
