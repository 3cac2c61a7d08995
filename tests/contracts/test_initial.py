"""The parameters that a run starts from do not depend on how its network will be run."""

from __future__ import annotations

import jax
import narrow
import numpy as np
import pytest
from compiler import QUICK

from mrm_jax import rngs
from mrm_jax.train import state


@pytest.mark.parametrize("encoder", ["mit", "resnet_v1c", "dinov2"])
def test_blocks_in_a_loop_draw_what_blocks_one_after_the_other_draw(encoder):
    decoder = "vit_light" if encoder == "dinov2" else "aspp"
    config = narrow.config(narrow.Row(encoder, decoder, False, "auto", False), unroll=True)
    key = jax.random.key_data(rngs.root(config.seed))

    def drawn(networks):
        init = jax.jit(lambda key: state.init_state(config, networks, key), compiler_options=QUICK)
        return init(key)

    looped, unrolled = map(drawn, (state.initial_networks(config), state.build_networks(config)))
    assert jax.tree.structure(looped) == jax.tree.structure(unrolled)
    for one, other in zip(*map(jax.tree.leaves, (looped, unrolled)), strict=True):
        np.testing.assert_array_equal(one, other)
