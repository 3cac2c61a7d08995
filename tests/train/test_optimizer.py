"""Schedule, groups and update."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax.config import MRM, Config, Method, Optimizer, Train
from mrm_jax.models.build import build_encoder
from mrm_jax.recipes import apply
from mrm_jax.train import optimizer
from mrm_jax.train.state import build_networks, init_state, scalars

# Rates of a run of 40000 steps with 1500 of warm-up, by hand.
PAPER = [
    (0, 6.0e-11),
    (49, 1.957657e-6),
    (99, 3.950255e-6),
    (1499, 5.7713e-5),
    (1500, 5.775e-5),
    (20000, 3.0e-5),
    (39999, 1.5e-9),
]


@pytest.mark.parametrize(("step", "rate"), PAPER)
def test_the_rate_of_the_paper_at_a_step(step, rate):
    numbers = scalars(Config())
    found = optimizer.rates(jnp.int32(step), numbers)
    np.testing.assert_allclose(found["encoder"], rate, rtol=2e-5)
    np.testing.assert_allclose(found["decoder"], 10 * rate, rtol=2e-5)
    np.testing.assert_allclose(found["rebuilder"], rate * 2e-4 / 6e-5, rtol=2e-5)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert optimizer.learning_rate(jnp.int32(0), 0.5, jnp.float32(0), jnp.float32(10)) == 0.5


# Factors of VFM-UDA's schedule, by hand: a line from 0.001 to 1 over steps 0 to 1499, then that
# from 1 at step 0 to 0 at step 40000.
LINEAR = [
    (0, 0.001),
    (1, 0.001 + 0.999 / 1499),
    (750, 0.001 + 0.999 * 750 / 1499),
    (1499, 1.0),
    (1500, 0.9625),
    (20000, 0.5),
    (39999, 2.5e-5),
]


@pytest.mark.parametrize(("step", "factor"), LINEAR)
def test_the_rate_of_vfm_uda_at_a_step(step, factor):
    config = apply(Config(), "vfm")
    found = optimizer.rates(jnp.int32(step), scalars(config), config.optimizer)
    # float32 of 1 - step / 40000.
    np.testing.assert_allclose(found["decoder"], 5e-5 * 8**0.5 * factor, rtol=2e-6)
    np.testing.assert_allclose(found["encoder"], 5e-6 * 8**0.5 * factor, rtol=2e-6)
    np.testing.assert_allclose(found["rebuilder"], 5e-5 * 8**0.5 / 3 * factor, rtol=2e-6)


def test_warming_up_starts_where_it_is_told_to():
    options = Optimizer(warmup_start=0.25)
    found = optimizer.learning_rate(
        jnp.int32(0), jnp.float32(2), jnp.float32(4), jnp.float32(10), options
    )
    assert found == 0.5
    linear = replace(options, warmup_shape="linear")
    for steps in (0, 1):  # no step, or one that is also the last of them
        found = optimizer.learning_rate(
            jnp.int32(0), jnp.float32(2), jnp.float32(steps), jnp.float32(10), linear
        )
        assert found == (0.5 if steps else 2.0)


def _real_params(mrm=True):
    base = Config(method=Method(mrm=MRM(enabled=mrm)))
    small = replace(base.model.encoder, dims=(8, 8, 8, 8), depths=(1, 1, 1, 1), heads=(1, 1, 1, 1))
    names = replace(base.data.classes, names=("a", "b"))
    config = replace(
        base,
        model=replace(base.model, encoder=small),
        data=replace(base.data, classes=names, crop=(64, 64)),
    )
    modules = build_networks(config)
    return config, jax.eval_shape(
        lambda key: init_state(config, modules, key).params, jax.random.key(0)
    )


def test_every_parameter_of_the_real_networks_has_the_group_of_the_reference():
    config, params = _real_params()
    groups = optimizer.groups(params, config)
    assert len(groups) == len(jax.tree.leaves(params))
    for path, group in groups.items():
        part = path.split("/")[1] if path.startswith("segmentor") else "rebuilder"
        assert group.rate == part
        norm = path.rsplit("/", 2)[-2].startswith("norm")
        undecayed = (part == "encoder" and norm) or path.endswith("mask_token")
        assert group.decayed != undecayed, path
    assert sum(not group.decayed for group in groups.values()) > 10


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v2", "pvt_v2_b0"])
def test_no_norm_of_a_pretrained_encoder_is_decayed_and_all_else_is(name):
    config = apply(Config(), f"dacs,encoder={name}")
    module = build_encoder(config.model)
    picture = np.zeros((1, 64, 64, 3), np.float32)
    encoder = jax.eval_shape(lambda k: module.init(k, picture, "eval"), jax.random.key(0))["params"]
    groups = optimizer.groups({"segmentor": {"encoder": encoder}, "rebuilder": {}}, config)
    assert len(groups) == len(jax.tree.leaves(encoder))
    for path, group in groups.items():
        # The parameters of a norm are a scale and the bias beside it.
        norm = path.rpartition("/")[0] + "/scale" in groups
        assert (group.rate, group.decayed) == ("encoder", not norm), path


def test_norms_are_decayed_where_the_config_says_so():
    config, params = _real_params()
    config = replace(
        config,
        optimizer=Optimizer(decay_encoder_norms=True),
        method=replace(config.method, mrm=replace(config.method.mrm, undecayed=("norms",))),
    )
    groups = optimizer.groups(params, config)
    assert groups["segmentor/encoder/norm1/scale"].decayed
    assert not groups["rebuilder/norm/scale"].decayed
    assert not groups["rebuilder/projector1/norm/bias"].decayed
    between = {"segmentor": {}, "rebuilder": {"projector1": {"norm0": {"bias": 1}}}}
    assert optimizer.groups(between, config)["rebuilder/projector1/norm0/bias"].decayed
    assert groups["rebuilder/mask_token"].decayed
    assert groups["rebuilder/embed/kernel"].decayed


def test_a_parameter_without_a_row_is_named():
    with pytest.raises(ValueError, match="segmentor/tail/kernel"):
        optimizer.groups({"segmentor": {"tail": {"kernel": 1}}, "rebuilder": {}}, Config())


def test_the_update_is_adam_with_decoupled_decay():
    params = {
        "segmentor": {"encoder": {"norm": {"scale": jnp.array([1.0, 2.0])}, "w": jnp.array([3.0])}},
        "rebuilder": {},
    }
    config = Config(optimizer=Optimizer(learning_rate=0.1, warmup=0.0), train=Train(steps=10**9))
    state, numbers = optimizer.adam(config.optimizer).init(params), scalars(config)
    gradients = [np.array([0.5, -2.0]), np.array([1e-3, 4.0])]
    expected, first, second = np.array([1.0, 2.0]), 0.0, 0.0
    weight = 3.0
    for i, gradient in enumerate(gradients):
        grads = jax.tree.map(jnp.zeros_like, params)
        grads["segmentor"]["encoder"]["norm"]["scale"] = jnp.asarray(gradient, jnp.float32)
        params, state = optimizer.update(params, grads, state, jnp.int32(i), numbers, config)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = first / (1 - 0.9 ** (i + 1)), second / (1 - 0.999 ** (i + 1))
        expected = expected - 0.1 * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
        weight -= 0.1 * 0.01 * weight
    encoder = params["segmentor"]["encoder"]
    # The norm is not decayed; the other leaf, without a gradient, only is. 1 - 0.999 keeps five
    # digits in float32.
    np.testing.assert_allclose(encoder["norm"]["scale"], expected, rtol=1e-4)
    np.testing.assert_allclose(encoder["w"], [weight], rtol=1e-6)
