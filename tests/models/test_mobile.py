"""EfficientNet-Lite and MobileNetV2: sizes, an independent forward on exported weights, drops."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mrm_jax.checks import check_config
from mrm_jax.config import Config, Encoder, Model, map_sizes, smallest_side
from mrm_jax.convert import export_torch
from mrm_jax.errors import UsageError
from mrm_jax.models import mobile
from mrm_jax.models.build import build_classifier, build_encoder, feature_spec
from mrm_jax.models.layers import fold_moments
from mrm_jax.models.mobile import InvertedResidual
from mrm_jax.variants import ENCODERS

KEY = jax.random.key(0)
# A stage without an expansion, strides 1 and 2, kernels 3 and 5, blocks with and without a sum.
NARROW: dict = {
    "dims": (6, 8, 8, 12),
    "depths": (1, 2, 2, 1),
    "strides": (2, 2, 2, 1),
    "kernels": (3, 5, 3, 3),
    "expansions": (1, 3, 2, 2),
    "stem_width": 7,
    "drop_path": 0.0,
}
KINDS = ("efficientnet_lite", "mobilenet_v2")
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def image(shape=(2, 37, 50, 3), dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)


def network(kind, **fields):
    return build_classifier(Model(encoder=Encoder(kind, **{**NARROW, **fields})), 5, 9)


def quick(function):
    return jax.jit(function, compiler_options=QUICK)


def filled(shapes):
    """Variables none of which is at a value that would hide it."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name, noise = path[-1].key, rng.normal(size=leaf.shape)
        if name == "kernel":
            noise /= np.prod(leaf.shape[:-1]) ** 0.5
        else:
            noise = {"scale": 1.5, "var": 1.0, "bias": 0.5, "mean": 0.0}[name] + 0.2 * noise
        return jnp.asarray(np.abs(noise) if name == "var" else noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("efficientnet_lite0", 4_652_008),
        ("efficientnet_lite1", 5_416_680),
        ("efficientnet_lite2", 6_092_072),
        ("mobilenet_v2", 3_504_872),
    ],
)
def test_parameter_counts_are_the_published_ones_and_no_segmentors_encoder_has_the_classifier(
    name, count
):
    model = Model(encoder=ENCODERS[name])
    whole, encoder = build_classifier(model, 1000, 1280), build_encoder(model)

    def params(module):
        picture = image((1, 64, 64, 3))
        return jax.eval_shape(lambda k: module.init(k, picture, "eval")["params"], KEY)

    assert sum(leaf.size for leaf in jax.tree.leaves(params(whole))) == count
    assert params(whole).keys() - params(encoder).keys() == {"classifier"}


@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_any_size_are_as_large_as_the_registration_says(kind):
    encoder = Encoder(kind, **NARROW)
    spec, module = feature_spec(encoder), build_encoder(Model(encoder=encoder))
    assert spec.channels == (8, 12)  # one map for the two stages at stride 8
    assert spec.strides == (4, 8)
    assert smallest_side(encoder) == 1
    for size in ((1, 1), (5, 3), (64, 32), (101, 99)):
        picture = image((1, *size, 3))
        maps = jax.eval_shape(lambda k, x: module.init_with_output(k, x, "eval")[0], KEY, picture)
        assert tuple(x.shape[1:3] for x in maps) == map_sizes(encoder, *size)
        assert tuple(x.shape[3] for x in maps) == spec.channels


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("strides", (1, 2, 2, 2, 1, 2, 1), "the first holds the stem's 2"),
        ("strides", (2, 1, 1, 1, 1, 1, 1), "maps begin beyond the stem's stride"),
        ("kernels", (3, 3, 4, 3, 5, 5, 3), "kernels has 4"),
        ("expansions", (1, 6, 1, 6, 6, 6, 6), "it is 1 in the first stage and in no other"),
        ("kernels", (3, 3), "dims has 7 stages"),
    ],
)
def test_fields_that_do_not_fit_each_other_are_refused(field, value, message):
    encoder = replace(ENCODERS["efficientnet_lite0"], **{field: value})
    with pytest.raises(UsageError, match=message):
        check_config(Config(model=Model(encoder=encoder)))


def reference(kind, state, x, mode):
    """The networks' forward from tensors under their published names, in float64: maps, logits and
    the unbiased statistics of every BatchNorm."""
    lite, found = kind == "efficientnet_lite", {}
    eps = 1e-3 if lite else 1e-5

    def conv(x, name, stride=1):
        kernel = jnp.asarray(state[f"{name}.weight"], jnp.float64)
        side, groups = kernel.shape[-1], x.shape[1] // kernel.shape[1]
        pads = []
        for length in x.shape[2:]:
            total = side - 1
            if lite:
                total = max((int(np.ceil(length / stride)) - 1) * stride + side - length, 0)
            pads.append((total // 2, total - total // 2))
        return lax.conv_general_dilated(x, kernel, (stride,) * 2, pads, feature_group_count=groups)

    def norm(x, name):
        scale, bias, mean, var = (
            jnp.asarray(state[f"{name}.{leaf}"], jnp.float64).reshape(1, -1, 1, 1)
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        if mode == "train":
            flat = x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1)
            mean, var = (part.reshape(1, -1, 1, 1) for part in (flat.mean(1), flat.var(1)))
            found[f"{name}.running_mean"] = flat.mean(1)
            found[f"{name}.running_var"] = flat.var(1, ddof=1)
        return (x - mean) / jnp.sqrt(var + eps) * scale + bias

    def relu6(x):
        return jnp.clip(x, 0, 6)

    def names(n):
        """Convolutions and BatchNorms of block n."""
        if lite:
            convs, bns = (
                ("_expand_conv", "_depthwise_conv", "_project_conv"),
                ("_bn0", "_bn1", "_bn2"),
            )
            pairs = [
                (f"_blocks.{n}.{c}", f"_blocks.{n}.{b}") for c, b in zip(convs, bns, strict=True)
            ]
            return pairs if n else pairs[1:]
        inside = (("0.0", "0.1"), ("1.0", "1.1"), ("2", "3")) if n else (("0.0", "0.1"), ("1", "2"))
        return [(f"features.{n + 1}.conv.{c}", f"features.{n + 1}.conv.{b}") for c, b in inside]

    stem = ("_conv_stem", "_bn0") if lite else ("features.0.0", "features.0.1")
    x = jnp.asarray(x, jnp.float64).transpose(0, 3, 1, 2)
    x = relu6(norm(conv(x, stem[0], 2), stem[1]))
    maps, n = [], 0
    strides = (1, *NARROW["strides"][1:])  # the stem has taken 2
    for stage, (depth, stride) in enumerate(zip(NARROW["depths"], strides, strict=True)):
        for j in range(depth):
            *first, (dw, dw_bn), (project, bn) = names(n)
            y = x
            for expand, expand_bn in first:
                y = relu6(norm(conv(y, expand), expand_bn))
            y = relu6(norm(conv(y, dw, 1 if j else stride), dw_bn))
            y = norm(conv(y, project), bn)
            x, n = (x + y if x.shape == y.shape else y), n + 1
        if stage in (1, 3):
            maps.append(x.transpose(0, 2, 3, 1))
    head = ("_conv_head", "_bn1") if lite else (f"features.{n + 1}.0", f"features.{n + 1}.1")
    dense = "_fc" if lite else "classifier.1"
    mean = relu6(norm(conv(x, head[0]), head[1])).mean((2, 3))
    logits = mean @ state[f"{dense}.weight"].astype(np.float64).T + state[f"{dense}.bias"]
    return (maps, logits), found


def near(ours, theirs, share=2e-5):
    """Equal up to another order of float32 sums, as a share of the largest value."""
    scale = float(np.abs(np.asarray(theirs, np.float64)).max())
    np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, rtol=0, atol=share * scale)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_logits_and_statistics_equal_an_independent_forward(kind):
    """Of a picture of an odd and an even side, where the two paddings differ."""
    module = network(kind)
    v = filled(jax.eval_shape(lambda k: module.init(k, image(), "eval"), KEY))
    state = export_torch(v, kind)

    def both(forward):
        return quick(lambda v, x: [forward(v, x, mode) for mode in ("eval", "train")])

    ours = both(lambda v, x, mode: module.apply(v, x, mode, mutable=["moments"]))(v, image())
    with jax.enable_x64(True):
        theirs = both(lambda s, x, mode: reference(kind, s, x, mode))(state, image())
    for (found, _), (wanted, _) in zip(ours, theirs, strict=True):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            near(a, b)
    folded = fold_moments(v["batch_stats"], ours[1][1]["moments"], momentum=1.0)
    after = export_torch({"params": v["params"], "batch_stats": folded}, kind)
    assert theirs[1][1].keys() == {key for key in after if "running" in key}
    for key, value in theirs[1][1].items():
        near(after[key], value)


def test_drop_connect_rises_over_the_blocks_and_drops_whole_sums(monkeypatch):
    seen = []

    def scales(key, rates, batch, branches):
        seen.append(rates)
        return jnp.zeros((len(rates), branches, batch))

    monkeypatch.setattr(mobile, "drop_path_scales", scales)
    module = network("efficientnet_lite", drop_path=0.2)
    v = jax.eval_shape(lambda k: module.init(k, image(), "eval"), KEY)
    rngs = {"dropout": KEY}
    for mode in ("eval", "pseudo"):
        jax.eval_shape(lambda v, m=mode: module.apply(v, image(), m, mutable=["moments"]), v)
    assert not seen
    jax.eval_shape(lambda v: module.apply(v, image(), "train", rngs=rngs, mutable=["moments"]), v)
    np.testing.assert_allclose(seen[0], 0.2 * np.arange(6) / 6)
    x = image((2, 4, 4, 6))
    shapes = ((6, 1), (6, 2), (8, 1))
    blocks = [InvertedResidual(c, 3, stride, 2, "same", 1e-3, "eval") for c, stride in shapes]
    drawn = [filled(jax.eval_shape(lambda k, m=m: m.init(k, x, None), KEY)) for m in blocks]

    @quick
    def both(drawn):
        scales = (None, jnp.array([1.0, 0.0]))
        return [[m.apply(v, x, s) for s in scales] for m, v in zip(blocks, drawn, strict=True)]

    for whole, half in both(drawn):
        np.testing.assert_array_equal(half[0], whole[0])
        # Without a sum there is nothing to leave out.
        np.testing.assert_array_equal(half[1], x[1] if whole.shape == x.shape else whole[1])


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_computes_in_bfloat16_from_float32_parameters(kind):
    model = Model(encoder=Encoder(kind, **NARROW), dtype="bfloat16")
    module = build_encoder(model)
    v = jax.eval_shape(lambda k: module.init(k, image(), "eval"), KEY)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        maps, moved = jax.eval_shape(
            lambda v: module.apply(v, image(), "train", mutable=["moments"]), v
        )
    assert {x.dtype for x in maps} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves((v, moved))} == {jnp.dtype("float32")}


def test_blocks_of_the_two_families_have_names_of_their_own():
    """Weights of one, which pads and normalises otherwise, never pass for the other's."""
    names = []
    for kind in KINDS:
        module = build_encoder(Model(encoder=Encoder(kind, **NARROW)))
        params = jax.eval_shape(lambda k, m=module: m.init(k, image(), "eval")["params"], KEY)
        names.append({name for name in params if re.search(r"\d", name)})
    assert len(names[0]) == len(names[1]) == 6
    assert not names[0] & names[1]


def test_an_encoder_without_a_classifier_says_so():
    with pytest.raises(UsageError, match="without a classifier"):
        build_classifier(Model(), 1000, 1280)
