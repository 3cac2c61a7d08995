"""DeepLab's heads: an independent forward, sizes, modes, gradients, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler import QUICK
from jax import lax

from mrm_jax.config import Decoder
from mrm_jax.models.build import build_decoder
from mrm_jax.models.deeplab import DeeplabV2Head, DeeplabV3PlusHead
from mrm_jax.variants import DECODERS

KEY = jax.random.key(0)
# Dilation 6 is larger than the map's height: its outer rows see padding only.
SMALL: dict = {"channels": 6, "low_channels": 5, "dilations": (1, 2, 6)}


def quick(function):
    return jax.jit(function, compiler_options=QUICK)


def maps(dtype=jnp.float32, channels=(4, 3, 3, 7)):
    """Four maps of an odd picture: the first of stride 4, the others of stride 8."""
    rng = np.random.default_rng(0)
    sizes = [(9, 13), (5, 7), (5, 7), (5, 7)]
    return tuple(
        jnp.asarray(rng.normal(size=(2, *size, width)), dtype)
        for size, width in zip(sizes, channels, strict=True)
    )


def variables(head, features):
    """Variables of `head`, none of them at a value that would hide it."""
    shapes = jax.eval_shape(lambda k: head.init(k, features, "eval"), KEY)
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            spread = np.prod(leaf.shape[:-1]) ** -0.5
            return jnp.asarray(spread * rng.normal(size=leaf.shape), leaf.dtype)
        middle = {"scale": 1.0, "var": 1.0, "bias": 0.2, "mean": 0.0}[name]
        return jnp.asarray(middle + 0.3 * rng.uniform(-1, 1, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def near(ours, theirs, share=1e-5):
    """Equal up to another order of float32 sums, as a share of the largest value."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=share * float(np.abs(theirs).max()))


# As counted in the reference, 19 classes and ResNet's widths.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deeplabv2", 700_454),
        ("deeplabv2_full", 1_400_908),
        ("deeplabv3plus", 17_686_563),
        ("deeplabv3plus_bn", 17_697_923),
    ],
)
def test_parameter_counts_are_the_published_ones(name, expected):
    head = build_decoder(DECODERS[name], 19)
    features = maps(channels=(256, 512, 1024, 2048))
    shapes = jax.eval_shape(lambda k: head.init(k, features, "eval"), KEY)
    assert sum(p.size for p in jax.tree.leaves(shapes["params"])) == expected


def conv(x, leaves, dilation=1):
    """A convolution as lax writes it, depthwise where the kernel says so; 1x1 kernels are stored
    as matrices."""
    kernel = leaves["kernel"] if leaves["kernel"].ndim == 4 else leaves["kernel"][None, None]
    pad = dilation * (kernel.shape[0] // 2)
    y = lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        ((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )
    return y + leaves["bias"].reshape(1, 1, 1, -1) if "bias" in leaves else y


def norm(x, v, path, name, batch):
    """BatchNorm `name` and ReLU, from the formula; only the ReLU where there is no such norm."""
    params, stats = v["params"], v.get("batch_stats", {})
    for part in path:
        params, stats = params[part], stats.get(part, {})
    if name not in params:
        return jnp.maximum(x, 0)
    mean, var = stats[name]["mean"], stats[name]["var"]
    if batch:
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    row = [a.reshape(1, 1, 1, -1) for a in (mean, var, *params[name].values())]
    named = dict(zip(("mean", "var", *params[name]), row, strict=True))
    x = (x - named["mean"]) / jnp.sqrt(named["var"] + 1e-5)
    return jnp.maximum(x * named["scale"] + named["bias"], 0)


def deeplabv3plus(v, features, dilations, batch):
    """The forward of the paper's figure 2 in the reference's order of branches."""
    p, low, x = v["params"], features[0], features[-1]

    def plain(x, name):
        return norm(conv(x, p[name]["conv"]), v, [name], "bn", batch)

    def separable(x, name, dilation=1):
        x = norm(conv(x, p[name]["depthwise"], dilation), v, [name], "depthwise_bn", batch)
        return norm(conv(x, p[name]["pointwise"]), v, [name], "pointwise_bn", batch)

    pooled = plain(x.mean((1, 2), keepdims=True), "pool")
    branches = [jnp.tile(pooled, (1, *x.shape[1:3], 1)), plain(x, "branch0")]
    branches += [separable(x, f"branch{i}", d) for i, d in enumerate(dilations[1:], start=1)]
    x = plain(jnp.concatenate(branches, -1), "bottleneck")
    x = jax.image.resize(x, (*low.shape[:3], x.shape[-1]), "bilinear", antialias=False)
    x = jnp.concatenate([x, plain(low, "low")], -1)
    x = separable(separable(x, "refine0"), "refine1")
    return conv(x, p["classifier"])


@pytest.mark.parametrize("normed", [False, True])
def test_deeplabv3plus_equals_an_independent_forward(normed):
    head, features = DeeplabV3PlusHead(3, **SMALL, norm=normed, dropout=0), maps()
    v = variables(head, features)
    assert ("batch_stats" in v) == normed

    def both(v, f):
        ours = [head.apply(v, f, mode, mutable=["moments"])[0] for mode in ("eval", "train")]
        return ours, [deeplabv3plus(v, f, SMALL["dilations"], batch) for batch in (False, True)]

    for ours, theirs in zip(*quick(both)(v, features), strict=True):
        near(ours, theirs)


def test_deeplabv2_is_the_sum_of_dilated_convolutions_of_the_last_map_in_every_mode():
    head, features = DeeplabV2Head(3, (2, 6)), maps()
    v = variables(head, features)
    branches = v["params"]["branch0"], v["params"]["branch1"]
    theirs = conv(features[-1], branches[0], 2) + conv(features[-1], branches[1], 6)
    for mode in ("train", "pseudo", "eval"):
        near(head.apply(v, features, mode), theirs)


HEADS = [
    DeeplabV2Head(3, (2, 6)),
    DeeplabV3PlusHead(3, **SMALL, dropout=0.5),
    DeeplabV3PlusHead(3, **SMALL, norm=True, dropout=0.5),
]
NAMES = ["deeplabv2", "deeplabv3plus", "deeplabv3plus_bn"]


@pytest.mark.parametrize("head", HEADS, ids=NAMES)
def test_every_parameter_gets_a_gradient_and_only_the_maps_that_are_read(head):
    features = maps()
    v = variables(head, features)

    def loss(params, features):
        out = head.apply(
            {**v, "params": params}, features, "train", rngs={"dropout": KEY}, mutable=["moments"]
        )[0]
        return jnp.square(out * jnp.cos(out)).mean()

    params, read = jax.device_get(quick(jax.grad(loss, argnums=(0, 1)))(v["params"], features))
    for path, gradient in jax.tree_util.tree_leaves_with_path(params):
        assert np.abs(gradient).max() > 1e-6, jax.tree_util.keystr(path)
    used = [bool(np.abs(gradient).max() > 0) for gradient in read]
    assert used == [isinstance(head, DeeplabV3PlusHead), False, False, True]


@pytest.mark.parametrize("head", HEADS, ids=NAMES)
def test_logits_are_at_least_float32_and_nothing_is_promoted_silently(head):
    for dtype, wanted in ((jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float32)):
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            out, v = jax.eval_shape(
                lambda k, f: head.init_with_output({"params": k, "dropout": k}, f, "train"),
                KEY,
                maps(dtype),
            )
        side = (5, 7) if isinstance(head, DeeplabV2Head) else (9, 13)
        assert (out.shape, out.dtype) == ((2, *side, 3), wanted)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(v))
    with jax.enable_x64(True):
        wide = maps(jnp.float64)
        out = jax.eval_shape(lambda k: head.init_with_output(k, wide, "eval")[0], KEY)
    assert out.dtype == jnp.float64


def test_bfloat16_is_near_float32():
    head, features = DeeplabV3PlusHead(3, **SMALL), maps()
    v = variables(head, features)
    run = quick(lambda f: head.apply(v, f, "eval"))
    wide, narrow = run(features), run(maps(jnp.bfloat16))
    # 8 bits of mantissa through eight layers; logits are of the order of 1.
    assert 0 < float(jnp.abs(wide - narrow).mean()) < 0.05


def test_modes_differ_by_dropout_and_by_the_statistics():
    head, features = HEADS[2], maps()
    v = variables(head, features)

    def run(mode):
        return quick(
            lambda k: head.apply(v, features, mode, rngs={"dropout": k}, mutable="moments")
        )

    train = run("train")
    (first, moments), (again, _) = train(KEY), train(jax.random.key(1))
    (pseudo, _), (still, none) = run("pseudo")(KEY), run("eval")(KEY)
    for a, b in ((first, again), (first, pseudo), (pseudo, still)):
        assert float(jnp.abs(a - b).max()) > 1e-3
    assert not none
    entries = jax.tree.structure(moments["moments"], is_leaf=lambda e: isinstance(e, tuple))
    assert entries == jax.tree.structure(v["batch_stats"])
    assert len(jax.tree.leaves(v["batch_stats"])) == 2 * 12


def test_a_single_image_has_statistics_of_its_pooled_cell():
    head = DeeplabV3PlusHead(3, channels=4, dilations=(1,), low_channels=4, norm=True)
    features = tuple(f[:1] for f in maps())
    v = variables(head, features)
    out, _ = quick(lambda f: head.apply(v, f, "pseudo", mutable=["moments"]))(features)
    assert np.isfinite(out).all()


def test_classifiers_start_small_and_biases_at_zero():
    features = maps(channels=(16, 3, 3, 64))
    v2 = DeeplabV2Head(19).init(KEY, features, "eval")["params"]
    np.testing.assert_allclose(v2["branch1"]["kernel"].std(), 0.01, rtol=0.05)
    head = build_decoder(Decoder(kind="deeplabv3plus", channels=32, dilations=(1, 2)), 19)
    # Only the parameters leave it, so that nothing else is compiled.
    v3 = quick(lambda k: head.init(k, features, "eval")["params"])(KEY)
    np.testing.assert_allclose(v3["classifier"]["kernel"].std(), 0.01, rtol=0.1)
    depthwise = v3["branch1"]["depthwise"]["kernel"]
    # The reference's rule counts 9 * C outputs for a depthwise kernel; 576 numbers.
    np.testing.assert_allclose(depthwise.std(), (2 / (9 * 64)) ** 0.5, rtol=0.15)
    for path, leaf in jax.tree_util.tree_leaves_with_path((v2, v3)):
        if path[-1].key == "bias":
            assert not leaf.any()
