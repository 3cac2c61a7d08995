"""Token masks on finer grids."""

import numpy as np

from mrm_jax.ops.mask import hidden_tokens


def test_a_cell_is_hidden_exactly_where_its_token_is_not_above_the_ratio():
    uniforms = np.array([[[0.1, 0.4, 0.9], [0.41, 0.39, 0.0]]], np.float32)
    got = hidden_tokens(uniforms, np.float32(0.4), (4, 9))
    expected = np.kron(uniforms[0] <= np.float32(0.4), np.ones((2, 3), bool))
    np.testing.assert_array_equal(got[0], expected)


def test_ratio_zero_hides_what_is_drawn_as_zero_only_and_one_hides_all():
    uniforms = np.array([[[0.0, 0.5]]], np.float32)
    np.testing.assert_array_equal(hidden_tokens(uniforms, 0.0, (1, 2)), [[[True, False]]])
    np.testing.assert_array_equal(hidden_tokens(uniforms, 1.0, (1, 2)), [[[True, True]]])
