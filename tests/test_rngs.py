"""Keys and draws are functions of the seed, whatever JAX's environment says about generators."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from refusals import refused

from mrm_jax import rngs
from mrm_jax.config import Method
from mrm_jax.errors import RunError
from mrm_jax.uda.draws import draw
from mrm_jax.uda.methods import passes


def _draws(seed: int) -> list[np.ndarray]:
    """All that a step of MIC's kind draws for two samples, and the root key's data."""
    key = jax.random.key_data(rngs.root(seed))
    rows, index = passes(Method(kind="mic")), np.arange(2, dtype=np.int32)
    found = draw(key, 3, index, passes=rows, grid=(2, 2), rounding=True)
    return [np.asarray(leaf) for leaf in jax.tree.leaves((key, found))]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("jax_default_prng_impl", "rbg"),
        ("jax_default_prng_impl", "unsafe_rbg"),
        ("jax_random_seed_offset", 7),
        ("jax_enable_custom_prng", True),
        ("jax_legacy_prng_key", "error"),
        ("jax_enable_x64", True),
    ],
)
def test_the_draws_of_a_seed_are_those_of_any_environment(option: str, value: object) -> None:
    before = getattr(jax.config, option)
    wanted = _draws(2**32 - 5)
    try:
        jax.config.update(option, value)
        found = _draws(2**32 - 5)
    finally:
        jax.config.update(option, before)
    for ours, plain in zip(found, wanted, strict=True):
        assert ours.dtype == plain.dtype
        np.testing.assert_array_equal(ours, plain)


def test_the_root_of_a_seed_is_jaxs_own_key() -> None:
    for seed in (0, 5, 2**31, 2**32 - 1):
        own = jax.random.key_data(jax.random.key(seed, impl=rngs.KIND))
        np.testing.assert_array_equal(jax.random.key_data(rngs.root(seed)), own)


def test_an_order_of_draws_that_depends_on_the_devices_is_refused_in_one_line() -> None:
    with (
        jax.threefry_partitionable(False),
        refused("JAX_THREEFRY_PARTITIONABLE", False, way_out="unset it", kind=RunError) as caught,
    ):
        rngs.root(1)
    assert str(caught.value).isprintable()
