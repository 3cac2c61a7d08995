"""DAFormer and SegFormer heads, and the segmentor: sizes, orders, modes, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax.config import Decoder, Encoder, Model
from mrm_jax.models.build import build_decoder, build_segmentor
from mrm_jax.models.layers import fold_moments
from mrm_jax.models.segformer import SegformerHead
from mrm_jax.variants import ENCODERS

KEY = jax.random.key(0)
ENCODER = Encoder(
    dims=(4, 8), depths=(1, 1), heads=(1, 2), sr_ratios=(2, 1), strides=(4, 2), drop_path=0.5
)


def maps(channels=(4, 8, 12, 16), side=8, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    sizes = [side // 2**i for i in range(len(channels))]
    return tuple(
        jnp.asarray(rng.normal(size=(2, s, s, c)), dtype)
        for s, c in zip(sizes, channels, strict=True)
    )


def abstract(decoder, dims, classes=19):
    features = maps(dims, 16)
    head = build_decoder(decoder, classes)
    return jax.eval_shape(lambda key: head.init(key, features, "eval"), KEY)


def count(tree):
    return sum(p.size for p in jax.tree.leaves(tree))


# As counted in the reference, 19 classes; SegFormer-B0's as transformers counts it.
@pytest.mark.parametrize(
    ("encoder", "decoder", "expected"),
    [
        ("mit_b5", Decoder(), 3_712_275),
        ("mit_b1", Decoder(), 3_712_275),
        ("mit_b0", Decoder(), 3_581_203),
        ("mit_b5", Decoder(fusion="conv1"), 530_707),
        ("mit_b5", Decoder(kind="segformer", channels=768), 3_164_947),
        ("mit_b0", Decoder(kind="segformer", channels=256), 399_635),
    ],
)
def test_parameter_counts_are_the_published_ones(encoder, decoder, expected):
    assert count(abstract(decoder, ENCODERS[encoder].dims)["params"]) == expected


def test_daformer_with_mit_b5_has_the_published_size():
    model = build_segmentor(Model(), 19)
    image = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(lambda key: model.init(key, image, mode="eval"), KEY)
    assert count(shapes["params"]) == 85_155_283


def test_running_averages_mirror_the_paths_of_the_batch_norms():
    shapes = abstract(Decoder(channels=8), (4, 8, 12, 16))

    def norms(tree, leaves):
        paths = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {
            jax.tree_util.keystr(path[:-1])
            for path, _ in paths
            if path[-1].key in leaves and "bn" in jax.tree_util.keystr(path[-2:-1])
        }

    params, stats = norms(shapes["params"], {"scale"}), norms(shapes["batch_stats"], {"mean"})
    assert params == stats
    assert len(params) == 8


def test_reversing_the_concatenation_equals_permuting_the_fusing_kernel():
    features = maps()
    head = SegformerHead(3, channels=4, dropout=0)
    v = head.init(KEY, features, "eval")
    out = head.apply(v, features, "eval")
    kernel = v["params"]["fuse"]["conv"]["kernel"]
    v["params"]["fuse"]["conv"]["kernel"] = jnp.concatenate(jnp.split(kernel, 4)[::-1])
    other = SegformerHead(3, channels=4, dropout=0, concat="c4..c1").apply(v, features, "eval")
    np.testing.assert_allclose(out, other, atol=1e-5)


@pytest.mark.parametrize("kind", ["daformer", "segformer"])
def test_logits_are_at_the_first_maps_size_and_at_least_float32(kind):
    head = build_decoder(Decoder(kind=kind, channels=8), 5)
    for dtype in (jnp.bfloat16, jnp.float32):
        features = maps(dtype=dtype)
        out = jax.eval_shape(lambda k, f: head.init_with_output(k, f, "eval")[0], KEY, features)
        assert (out.shape, out.dtype) == ((2, 8, 8, 5), jnp.float32)


def test_float64_features_give_float64_logits():
    with jax.enable_x64(True):
        head = build_decoder(Decoder(channels=8), 5)
        features = maps(dtype=jnp.float64)
        out = jax.eval_shape(lambda k, f: head.init_with_output(k, f, "eval")[0], KEY, features)
    assert out.dtype == jnp.float64


@pytest.fixture(scope="module")
def network():
    model = build_segmentor(Model(encoder=ENCODER, decoder=Decoder(channels=8, fusion="conv1")), 3)
    image = jnp.asarray(np.random.default_rng(1).normal(size=(4, 16, 16, 3)), jnp.float32)
    shapes = jax.eval_shape(lambda key: model.init(key, image, mode="eval"), KEY)
    rng = np.random.default_rng(2)
    # Positive, so that variances are possible and no scale hides what is behind it.
    draw = jax.tree.map(lambda s: jnp.asarray(rng.uniform(0.2, 1.5, s.shape), s.dtype), shapes)
    signs = jax.tree.map(lambda p: p * rng.choice([-1.0, 1.0], p.shape), draw["params"])
    signs = jax.tree.map(lambda p: p.astype(jnp.float32), signs)
    return model, {"params": signs, "batch_stats": draw["batch_stats"]}, image


def apply(network, mode, seed=None, **arguments):
    model, variables, image = network
    rngs = None if seed is None else {"dropout": jax.random.key(seed)}
    run = jax.jit(
        lambda v, x: model.apply(v, x, mode=mode, rngs=rngs, mutable=["moments"], **arguments)
    )
    return run(variables, image)


def test_modes_differ_only_where_they_should(network):
    (train, moments), (again, _) = apply(network, "train", seed=1), apply(network, "train", seed=2)
    (pseudo, pseudo_moments), (evaluated, none) = apply(network, "pseudo"), apply(network, "eval")
    # Before the first BatchNorm nothing tells pseudo from eval; drop-path tells train from both.
    for a, b in zip(pseudo.features, evaluated.features, strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(jnp.abs(train.features[-1] - pseudo.features[-1]).max()) > 1e-4
    assert float(jnp.abs(train.logits["main"] - again.logits["main"]).max()) > 1e-4
    assert float(jnp.abs(pseudo.logits["main"] - evaluated.logits["main"]).max()) > 1e-4
    assert not none
    assert jax.tree.structure(moments) == jax.tree.structure(pseudo_moments)


def test_moments_fold_into_statistics_that_make_eval_equal_pseudo(network):
    model, variables, image = network
    pseudo, state = apply(network, "pseudo")
    folded = fold_moments(variables["batch_stats"], state["moments"], momentum=1.0)
    assert jax.tree.structure(folded) == jax.tree.structure(variables["batch_stats"])
    evaluated = model.apply({**variables, "batch_stats": folded}, image, mode="eval")
    # 64 positions: the unbiased variance is 1/63 larger, the logits at most half of that smaller.
    scale = float(jnp.abs(pseudo.logits["main"]).max())
    np.testing.assert_allclose(evaluated.logits["main"], pseudo.logits["main"], atol=0.02 * scale)


def test_a_transform_stands_between_encoder_and_decoder(network):
    plain, _ = apply(network, "eval")
    zeroed, _ = apply(network, "eval", transform=lambda fs, _: tuple(f * 0 for f in fs))
    same, _ = apply(network, "eval", transform=lambda fs, _: fs)
    np.testing.assert_array_equal(plain.logits["main"], same.logits["main"])
    for a, b in zip(plain.features, zeroed.features, strict=True):
        np.testing.assert_array_equal(a, b)
    logits = np.asarray(zeroed.logits["main"])
    np.testing.assert_allclose(logits, np.broadcast_to(logits[:1, :1, :1], logits.shape), atol=1e-6)


def test_nothing_is_promoted_silently_in_bfloat16():
    model = build_segmentor(
        Model(encoder=ENCODER, decoder=Decoder(channels=8), dtype="bfloat16", remat="blocks"), 3
    )
    image = jnp.zeros((2, 16, 16, 3))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        out, variables = jax.eval_shape(
            lambda k: model.init_with_output({"params": k, "dropout": k}, image, mode="train"), KEY
        )
    assert all(f.dtype == jnp.bfloat16 for f in out.features)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
