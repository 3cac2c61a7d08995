"""Parameters are those that flax draws and finds, and their initialisers run to draw them alone."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax.models.layers import dense
from mrm_jax.models.parameters import fan_out_normal, parameter

KEY = jax.random.key(3)


class Both(nn.Module):
    """One parameter of ours and one of flax's in modules of one name, so from one key."""

    ours: bool
    shape: tuple[int, ...] = (4, 2)

    @nn.compact
    def __call__(self, drawn):
        def init(*given):
            drawn.append(given)
            return fan_out_normal(2)(*given)

        if self.ours:
            return parameter(self, "kernel", init, self.shape)
        return self.param("kernel", init, self.shape, jnp.float32)


def test_a_parameter_is_the_one_that_flax_draws_and_is_found_again_without_its_initialiser():
    ours, drawn = Both(True).init(KEY, []), []
    np.testing.assert_array_equal(
        ours["params"]["kernel"], Both(False).init_with_output(KEY, [])[0]
    )
    found = Both(True).apply(ours, drawn)
    np.testing.assert_array_equal(found, ours["params"]["kernel"])
    assert drawn == []
    Both(False).apply(ours, drawn)
    assert drawn  # flax's traces it


def test_a_parameter_of_another_shape_is_refused_by_name():
    params = Both(True).init(KEY, [])
    with pytest.raises(flax.errors.ScopeParamShapeError, match=r"kernel.*\(4, 3\).*\(4, 2\)"):
        Both(True, (4, 3)).apply(params, [])


@pytest.mark.parametrize("use_bias", [True, False])
def test_a_dense_layer_is_flaxs_own(use_bias):
    x = jax.random.normal(KEY, (2, 3, 5))
    kernel_init, bias_init = fan_out_normal(4), nn.initializers.normal(0.1)

    class Net(nn.Module):
        ours: bool

        @nn.compact
        def __call__(self, x):
            given = {"kernel_init": kernel_init, "bias_init": bias_init, "use_bias": use_bias}
            if self.ours:
                return dense(4, x, "fc", **given)
            return nn.Dense(4, name="fc", **given)(x)

    ours, theirs = (Net(ours).init_with_output(KEY, x) for ours in (True, False))
    assert jax.tree.map(jnp.shape, ours[1]) == jax.tree.map(jnp.shape, theirs[1])
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
