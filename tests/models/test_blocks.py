"""What a stack of equal blocks costs before it runs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from mrm_jax.models.blocks import stacked_blocks


@pytest.mark.parametrize("unroll", [False, True])
def test_a_stack_traces_its_block_once(unroll):
    traced = []

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            traced.append(x.shape)
            return nn.Dense(4, name="fc")(x), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            stack = stacked_blocks(Block, depth=3, unroll=unroll, remat="none", name="rest")
            return stack(x, None)[0]

    x = jnp.ones((2, 4))
    params = Net().init(jax.random.key(0), x)
    assert params["params"]["rest"]["fc"]["kernel"].shape == (3, 4, 4)
    assert len(traced) == 1
    jax.make_jaxpr(jax.grad(lambda params: Net().apply(params, x).sum()))(params)
    assert len(traced) == 2
