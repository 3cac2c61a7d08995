"""Mix Transformer: sizes, the stacked layout, modes, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler import QUICK

from mrm_jax.config import Model, crop_multiple
from mrm_jax.models.build import build_encoder, feature_spec
from mrm_jax.models.layers import LayerNorm
from mrm_jax.models.mit import Block, MixTransformer, OverlapPatchEmbed
from mrm_jax.variants import ENCODERS

NARROW: dict = {
    "dims": (8, 12),
    "depths": (1, 3),
    "heads": (1, 2),
    "sr_ratios": (2, 1),
    "strides": (4, 2),
}


def image(shape=(2, 32, 48, 3), dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)


@pytest.fixture(scope="module")
def params():
    """Parameters of the narrow network, none of them at a value that would hide it."""
    shapes = jax.eval_shape(
        lambda key: MixTransformer(**NARROW).init(key, image(), "eval"), jax.random.key(0)
    )
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        middle = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(middle + 0.1 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def run(v, x, mode="eval", key=None, **fields):
    model = MixTransformer(**NARROW, **fields)
    rngs = None if key is None else {"dropout": jax.random.key(key)}
    return jax.jit(lambda v, x: model.apply(v, x, mode, rngs=rngs))(v, x)


@pytest.fixture(scope="module")
def plain(params):
    return run(params, image())


# Trainable parameters without classifier, as counted in the reference.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mit_b0", 3_319_392),
        ("mit_b1", 13_151_424),
        ("mit_b2", 24_196_288),
        ("mit_b3", 44_072_128),
        ("mit_b4", 60_842_688),
        ("mit_b5", 81_443_008),
        ("pvt_v2_b0", 3_409_760),
        ("pvt_v2_b1", 13_496_000),
        ("pvt_v2_b2", 24_849_856),
        ("pvt_v2_b3", 44_725_696),
        ("pvt_v2_b4", 62_043_072),
        ("pvt_v2_b5", 81_443_008),
    ],
)
def test_parameter_counts_are_the_published_ones(name, count):
    model = build_encoder(Model(encoder=ENCODERS[name]))
    shapes = jax.eval_shape(lambda key: model.init(key, image((1, 64, 64, 3)), "eval"), key())
    assert sum(p.size for p in jax.tree.leaves(shapes)) == count


def key():
    return jax.random.key(0)


def test_feature_sizes_round_up_as_the_reference_does():
    model = MixTransformer()
    out = jax.eval_shape(
        lambda k: model.init_with_output(k, image((1, 540, 512, 3)), "eval")[0], key()
    )
    shapes = [f.shape[1:] for f in out]
    assert shapes == [(135, 128, 32), (68, 64, 64), (34, 32, 160), (17, 16, 256)]


def test_the_feature_spec_says_what_comes_out():
    spec = feature_spec(ENCODERS["mit_b0"])
    model = build_encoder(Model(encoder=ENCODERS["mit_b0"]))
    side = crop_multiple(ENCODERS["mit_b0"]) * 2
    out = jax.eval_shape(
        lambda k: model.init_with_output(k, image((1, side, side, 3)), "eval")[0], key()
    )
    assert tuple(f.shape[-1] for f in out) == spec.channels
    assert tuple(side // f.shape[1] for f in out) == spec.strides


def test_stacked_blocks_equal_a_loop_over_their_slices(params, plain):
    first, second = plain
    p = params["params"]
    x = OverlapPatchEmbed(12, 3, 2, 1e-5).apply({"params": p["patch_embed2"]}, first)
    block = Block(heads=2, sr_ratio=1, mlp_ratio=4, eps=1e-6, reduction_eps=1e-5)
    for i in range(3):
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], p["block2"])
        x, _ = block.apply({"params": mine}, x, None)
    x = LayerNorm(1e-6).apply({"params": p["norm2"]}, x)
    np.testing.assert_allclose(x, second, atol=1e-5)


def loss(v, x, **fields):
    out = MixTransformer(**NARROW, **fields).apply(
        v, x, "train", rngs={"dropout": jax.random.key(3)}
    )
    return sum(jnp.square(f * jnp.cos(f)).mean() for f in out)


@pytest.fixture(scope="module")
def unrolled(params):
    return jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(params, image())


@pytest.mark.parametrize("fields", [{"unroll": False}, {"remat": "blocks"}])
def test_unroll_and_remat_change_neither_values_nor_gradients(params, unrolled, fields):
    other = jax.jit(jax.value_and_grad(lambda v, x: loss(v, x, **fields)), compiler_options=QUICK)(
        params, image()
    )
    for a, b in zip(jax.tree.leaves(unrolled), jax.tree.leaves(other), strict=True):
        # Another order of float32 sums; gradients here are of the order of 0.1.
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-4)


def test_only_training_drops_paths_and_only_at_a_rate_above_zero(params, plain):
    pseudo = run(params, image(), "pseudo")
    still = run(params, image(), "train", drop_path=0.0)
    dropped = run(params, image(), "train", key=5, drop_path=0.9)
    for a, b, c in zip(plain, pseudo, still, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert any(float(jnp.abs(a - b).max()) > 1e-3 for a, b in zip(plain, dropped, strict=True))


@pytest.mark.parametrize("name", ["eps", "embed_eps", "reduction_eps"])
def test_each_eps_reaches_its_own_norms(params, plain, name):
    changed = run(params, image(), **{name: 0.5})
    assert float(jnp.abs(plain[-1] - changed[-1]).max()) > 1e-3


def test_bfloat16_computes_in_bfloat16_from_float32_parameters(params, plain):
    out = run(params, image(), dtype=jnp.bfloat16)
    for a, b in zip(out, plain, strict=True):
        assert a.dtype == jnp.bfloat16
        # 8 bits of mantissa through all blocks; outputs are of the order of 1.
        assert float(jnp.abs(a.astype(jnp.float32) - b).mean()) < 0.05


def test_float64_stays_float64_throughout(params):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda p: jnp.asarray(np.asarray(p), jnp.float64), params)
        x = image(dtype=jnp.float64)
        out = run(wide, x)
        nudged = run(wide, x + 1e-11)
    assert all(f.dtype == jnp.float64 for f in out)
    # A detour through float32 anywhere would round the nudge away.
    for a, b in zip(out, nudged, strict=True):
        assert 0 < float(np.abs(np.asarray(a) - np.asarray(b)).max()) < 1e-8


def test_stages_without_stride_keep_the_size():
    model = MixTransformer(**{**NARROW, "strides": (2, 1)})
    out = jax.eval_shape(lambda k: model.init_with_output(k, image(), "eval")[0], key())
    assert [f.shape[1:3] for f in out] == [(16, 24), (16, 24)]
