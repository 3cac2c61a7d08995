"""Max pooling's own gradient against that of `lax`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mrm_jax.ops.pool import max_pool


@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding"),
    [
        ((2, 8, 7, 3), 3, 2, ((1, 1), (1, 1))),
        ((1, 9, 6, 1), 2, 2, ((0, 0), (0, 0))),  # a last row that no window reads
        ((2, 5, 6, 2), 3, 1, ((0, 2), (1, 1))),
    ],
)
def test_values_and_gradients_are_those_of_lax_also_where_cells_are_equal(
    shape, size, stride, padding
):
    rng = np.random.default_rng(0)
    # Numbers 0 to 3 and below them one: every window has cells that are equally large.
    x = jnp.asarray(rng.integers(-1, 4, shape), jnp.float32)

    def plain(x):
        pads = ((0, 0), *padding, (0, 0))
        windows = (1, size, size, 1), (1, stride, stride, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, *windows, pads)

    g = jnp.asarray(rng.normal(size=jax.eval_shape(plain, x).shape), jnp.float32)
    ours, theirs = (
        jax.jit(lambda x, g, f=f: (f(x), jax.vjp(f, x)[1](g)[0]))(x, g)
        for f in (lambda x: max_pool(x, size, stride, padding), plain)
    )
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)
