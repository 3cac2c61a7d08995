"""BatchNorm and its moments, dropping, attention, patch reduction, initialisers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mrm_jax.models import layers
from mrm_jax.models.layers import BatchNorm, fold_moments
from mrm_jax.ops.platform import portable


def batch(seed=0, shape=(3, 4, 5, 6)):
    return np.random.default_rng(seed).normal(2.0, 3.0, size=shape)


def variables(channels=6):
    rng = np.random.default_rng(7)
    draw = {k: rng.uniform(0.5, 2.0, channels) for k in ("scale", "bias", "mean", "var")}
    draw = {k: jnp.asarray(v, jnp.float32) for k, v in draw.items()}
    params = {k: draw[k] for k in ("scale", "bias")}
    return {"params": params, "batch_stats": {k: draw[k] for k in ("mean", "var")}}


@pytest.mark.parametrize("mode", ["train", "pseudo"])
def test_batch_norm_normalises_with_the_batch_and_hands_out_unbiased_moments(mode):
    x, v = batch(), variables()
    out, state = BatchNorm().apply(v, jnp.asarray(x, jnp.float32), mode, mutable=["moments"])
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    p = v["params"]
    np.testing.assert_allclose(
        out, (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"], atol=1e-5
    )
    assert set(state) == {"moments"}
    np.testing.assert_allclose(state["moments"]["mean"][0], mean, rtol=1e-5)
    np.testing.assert_allclose(state["moments"]["var"][0], x.var((0, 1, 2), ddof=1), rtol=1e-5)


def test_batch_norm_in_eval_uses_the_running_averages_and_has_no_moments():
    x, v = batch(), variables()
    out, state = BatchNorm().apply(v, jnp.asarray(x, jnp.float32), "eval", mutable=["moments"])
    p, s = v["params"], v["batch_stats"]
    expected = (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert not state


def test_batch_norm_statistics_are_those_of_the_whole_sharded_batch():
    devices = jax.devices()
    if len(devices) < 2:
        pytest.skip("needs two devices: XLA_FLAGS=--xla_force_host_platform_device_count=2")
    x, v = jnp.asarray(batch(shape=(4, 4, 5, 6)), jnp.float32), variables()
    sharding = NamedSharding(Mesh(np.asarray(devices[:2]), ("data",)), PartitionSpec("data"))
    run = jax.jit(lambda x: BatchNorm().apply(v, x, "train", mutable=["moments"]))
    whole, split = run(x), run(jax.device_put(x, sharding))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(split), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_batch_norm_in_bfloat16_takes_its_statistics_in_float32():
    x = jnp.asarray(batch(), jnp.bfloat16)
    out, state = BatchNorm().apply(variables(), x, "train", mutable=["moments"])
    assert out.dtype == jnp.bfloat16
    mean = np.asarray(x, np.float64).mean((0, 1, 2))
    assert state["moments"]["mean"][0].dtype == jnp.float32
    np.testing.assert_allclose(state["moments"]["mean"][0], mean, rtol=1e-6)


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x, y):
        norm = BatchNorm(name="bn")
        return norm(x, "train"), norm(y, "train")


def test_moments_of_two_calls_are_folded_oldest_first():
    x, y, v = batch(1), batch(2), variables()
    v = {k: {"bn": leaves} for k, leaves in v.items()}
    first, second = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    _, state = Twice().apply(v, first, second, mutable=["moments"])
    folded = fold_moments(v["batch_stats"], state["moments"])
    old = v["batch_stats"]["bn"]
    for name, value in (("mean", np.mean), ("var", lambda a, axis: np.var(a, axis, ddof=1))):
        expected = 0.9 * old[name] + 0.1 * value(x, (0, 1, 2))
        expected = 0.9 * expected + 0.1 * value(y, (0, 1, 2))
        np.testing.assert_allclose(folded["bn"][name], expected, rtol=1e-5)


def test_folding_keeps_layers_that_were_not_run_and_refuses_unknown_ones():
    stats = {"a": {"mean": jnp.zeros(2)}, "b": {"mean": jnp.ones(2)}}
    folded = fold_moments(stats, {"a": {"mean": (jnp.ones(2),)}}, momentum=0.25)
    np.testing.assert_allclose(folded["a"]["mean"], 0.25)
    assert folded["b"] is stats["b"]
    with pytest.raises(ValueError, match="'c'"):
        fold_moments(stats, {"c": {"mean": (jnp.ones(2),)}})


def test_initialising_leaves_no_moments_behind():
    v = BatchNorm().init(jax.random.key(0), jnp.ones((1, 2, 2, 3)), "train")
    assert set(v) == {"params", "batch_stats"}


def test_relu6_cuts_at_6_and_passes_no_gradient_at_its_ends():
    x = jnp.array([-1.0, 0.0, 3.0, 6.0, 7.0])
    np.testing.assert_array_equal(layers.relu6(x), [0, 0, 3, 6, 6])
    gradient = jax.grad(lambda x: layers.relu6(x).sum())(x)
    np.testing.assert_array_equal(gradient, [0, 0, 1, 0, 0])


def test_relu6_of_an_exported_network_holds_no_picture_of_sixes():
    x = jnp.array([-1.0, 0.0, 3.0, 6.0, 7.0])
    with portable():
        np.testing.assert_array_equal(layers.relu6(x), [0, 0, 3, 6, 6])
        assert "broadcast_in_dim" not in str(jax.make_jaxpr(layers.relu6)(x))
    assert "broadcast_in_dim" in str(jax.make_jaxpr(lambda x: layers.relu6(x))(x))


def test_drop_path_keeps_its_mean_and_drops_whole_samples_at_each_blocks_rate():
    rates = np.asarray([0.0, 0.25, 0.5])
    scales = np.asarray(layers.drop_path_scales(jax.random.key(0), rates, 20_000))
    for scale, rate in zip(scales, rates, strict=True):
        possible = [0, 1 / (1 - rate)] if rate else [1]
        np.testing.assert_allclose(np.unique(scale), possible)
        # 5 standard deviations of a share of 40 000 draws.
        assert abs((scale == 0).mean() - rate) < 5 * 0.5 / 200
    assert (scales[1, 0] != scales[1, 1]).any()


def test_dropout2d_drops_whole_channels_of_a_sample_in_training_only():
    class Drop(nn.Module):
        @nn.compact
        def __call__(self, x, mode):
            return layers.dropout2d(x, 0.25, mode)

    x = jnp.ones((8, 3, 3, 50))
    out = np.asarray(Drop().apply({}, x, "train", rngs={"dropout": jax.random.key(1)}))
    assert (out == out[:, :1, :1]).all()
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.75])
    assert abs((out[:, 0, 0] == 0).mean() - 0.25) < 0.11  # 5 sd of 400 draws
    for mode in ("pseudo", "eval"):
        np.testing.assert_array_equal(Drop().apply({}, x, mode), x)


def test_patch_reduction_is_the_strided_convolution_and_drops_the_remainder():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 7, 9, 3)), jnp.float32)
    module = layers.PatchReduction(2)
    v = module.init(jax.random.key(0), x)
    v["params"]["bias"] = jnp.asarray([1.0, 2.0, 3.0])
    expected = jax.lax.conv_general_dilated(
        x, v["params"]["kernel"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    out = module.apply(v, x)
    assert out.shape == (2, 3, 4, 3)
    np.testing.assert_allclose(out, expected + v["params"]["bias"].reshape(1, 1, 1, -1), atol=1e-5)


def test_a_map_smaller_than_its_reduction_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"2x9 map by 4.*larger crops"):
        layers.PatchReduction(4).init(jax.random.key(0), jnp.zeros((1, 2, 9, 3)))


def test_gelu_is_the_exact_one():
    x = jnp.linspace(-6, 6, 101)
    np.testing.assert_allclose(layers.gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    assert layers.gelu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_initialisers_have_the_bounds_and_spreads_of_the_reference():
    x = jnp.zeros((1, 4, 4, 256))
    deconv = layers.TransposedConv(128).init(jax.random.key(0), x)["params"]
    # PyTorch counts a transposed convolution's fan-in as out * 16: 1 / sqrt(2048).
    for leaf in (deconv["kernel"], deconv["bias"]):
        assert 0.9 * 0.0220971 < float(jnp.abs(leaf).max()) <= 0.0220971
    conv = layers.Conv(64, 3).init(jax.random.key(0), x)["params"]
    np.testing.assert_allclose(conv["kernel"].std(), np.sqrt(2 / (9 * 64)), rtol=0.02)
    assert not conv["bias"].any()
