"""ResNet: an independent forward on its exported weights, the stacked layout, modes, precision."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler import QUICK
from jax import lax

from mrm_jax.config import Model, crop_multiple
from mrm_jax.convert import export_torch
from mrm_jax.models.build import build_encoder, feature_spec
from mrm_jax.models.layers import fold_moments
from mrm_jax.models.resnet import Bottleneck, ResNet
from mrm_jax.variants import ENCODERS

KEY = jax.random.key(0)
# A stage of one block, and one with all that a stage can have: a stride, a dilation, a stack.
NARROW: dict = {"dims": (16, 24), "depths": (1, 3), "strides": (4, 2), "dilations": (1, 2)}
FOUR: dict = {
    "dims": (16, 24, 32, 40),
    "depths": (1, 3, 1, 1),
    "strides": (4, 2, 1, 1),
    "dilations": (1, 2, 2, 4),
}


def image(shape=(2, 37, 50, 3), dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def quick(function):
    return jax.jit(function, compiler_options=QUICK)


def variables(**fields):
    """Variables of a network, none of them at a value that would hide it."""
    shapes = jax.eval_shape(lambda k: ResNet(**fields).init(k, image(), "eval"), KEY)
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            spread = np.prod(leaf.shape[-4:-1] if leaf.ndim > 3 else leaf.shape[-2]) ** -0.5
            return jnp.asarray(spread * rng.normal(size=leaf.shape), leaf.dtype)
        middle = {"scale": 1.0, "var": 1.0, "bias": 0.2, "mean": 0.0}[name]
        return jnp.asarray(middle + 0.3 * rng.uniform(-1, 1, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def drawn():
    return variables(**NARROW)


def run(v, x, mode="eval", **fields):
    model = ResNet(**{**NARROW, **fields})
    return quick(lambda v, x: model.apply(v, x, mode, mutable=["moments"]))(v, x)


def near(ours, theirs, share=2e-5):
    """Equal up to another order of float32 sums, as a share of the largest value."""
    scale = float(np.abs(np.asarray(theirs, np.float64)).max())
    np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, rtol=0, atol=share * scale)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet50", 23_527_264),
        ("resnet101", 42_519_392),
        # torchvision's 25 557 032 and 44 549 160 without the classifier of 2 049 000.
        ("resnet50_7x7", 23_508_032),
        ("resnet101_7x7", 42_500_160),
    ],
)
def test_parameter_counts_are_the_published_ones(name, count):
    model = build_encoder(Model(encoder=ENCODERS[name]))
    shapes = jax.eval_shape(lambda k: model.init(k, image((1, 64, 64, 3)), "eval"), KEY)
    assert sum(p.size for p in jax.tree.leaves(shapes["params"])) == count


def test_feature_sizes_round_up_and_the_feature_spec_says_what_comes_out():
    encoder = ENCODERS["resnet50"]
    model, spec = build_encoder(Model(encoder=encoder)), feature_spec(encoder)

    def sizes(height, width):
        x = image((1, height, width, 3))
        maps = jax.eval_shape(lambda k: model.init_with_output(k, x, "eval")[0], KEY)
        return [f.shape[1:] for f in maps]

    assert sizes(512, 512) == [(128, 128, 256), (64, 64, 512), (64, 64, 1024), (64, 64, 2048)]
    assert [s[:2] for s in sizes(101, 99)] == [(26, 25), (13, 13), (13, 13), (13, 13)]
    assert crop_multiple(encoder) == 8
    wanted = [(64 // s, 64 // s, c) for s, c in zip(spec.strides, spec.channels, strict=True)]
    assert sizes(64, 64) == wanted


def reference(state, x, strides, dilations, batch_statistics):
    """The reference's forward, tensor by tensor in its own names and layout, in float64: maps and
    the unbiased statistics of every BatchNorm."""
    found = {}

    def conv(x, name, stride=1, dilation=1):
        kernel = jnp.asarray(state[f"{name}.weight"], jnp.float64)
        pad = dilation * (kernel.shape[-1] // 2)
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), ((pad, pad), (pad, pad)), rhs_dilation=(dilation, dilation)
        )

    def norm(x, name):
        scale, bias, mean, var = (
            jnp.asarray(state[f"{name}.{leaf}"], jnp.float64).reshape(1, -1, 1, 1)
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        if batch_statistics:
            flat = x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1)
            mean, var = flat.mean(1).reshape(1, -1, 1, 1), flat.var(1).reshape(1, -1, 1, 1)
            found[f"{name}.running_mean"] = flat.mean(1)
            found[f"{name}.running_var"] = flat.var(1, ddof=1)
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias

    def relu(x):
        return jnp.maximum(x, 0)

    x = jnp.asarray(x, jnp.float64).transpose(0, 3, 1, 2)
    x = relu(norm(conv(x, "conv1", 2), "bn1"))
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    height, width = (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2
    shifts = [padded[:, :, i::2, j::2][:, :, :height, :width] for i in range(3) for j in range(3)]
    x, maps = jnp.max(jnp.stack(shifts), axis=0), []
    for s, (stride, dilation) in enumerate(zip(strides, dilations, strict=True), start=1):
        j = 0
        while f"layer{s}.{j}.conv1.weight" in state:
            name = f"layer{s}.{j}"
            reach = dilation // 2 if j == 0 and dilation > 1 else dilation
            y = relu(norm(conv(x, f"{name}.conv1"), f"{name}.bn1"))
            y = relu(norm(conv(y, f"{name}.conv2", stride if j == 0 else 1, reach), f"{name}.bn2"))
            y = norm(conv(y, f"{name}.conv3"), f"{name}.bn3")
            if j == 0:
                x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x, j = relu(x + y), j + 1
        maps.append(x.transpose(0, 2, 3, 1))
    return maps, found


def test_outputs_and_statistics_equal_an_independent_forward():
    """With the 7x7 stem and an odd size; `tests/parity` compares the other stem."""
    v, kind = variables(**FOUR, stem="7x7"), "resnet_torchvision"
    state, model = export_torch(v, kind), ResNet(**FOUR, stem="7x7")

    def both(forward):
        return quick(lambda v, x: [forward(v, x, mode) for mode in ("eval", "train")])

    still, train = both(lambda v, x, mode: model.apply(v, x, mode, mutable=["moments"]))(v, image())
    with jax.enable_x64(True):
        theirs = both(
            lambda s, x, mode: reference(s, x, (1, 2, 1, 1), FOUR["dilations"], mode == "train")
        )(state, image())
    for (ours, _), (wanted, _) in zip((still, train), theirs, strict=True):
        for a, b in zip(ours, wanted, strict=True):
            near(a, b)
    folded = fold_moments(v["batch_stats"], train[1]["moments"], momentum=1.0)
    after = export_torch({"params": v["params"], "batch_stats": folded}, kind)
    stats = theirs[1][1]
    assert stats.keys() == {key for key in after if "running" in key}
    for key, value in stats.items():
        near(after[key], value)


def test_a_stage_of_one_block_stores_no_stack_and_the_others_start_behind_the_first(drawn):
    params = drawn["params"]
    assert set(params["layer1"]) == {"first"}
    assert set(params["layer2"]) == {"first", "rest"}
    for tree in (params["layer2"]["rest"], drawn["batch_stats"]["layer2"]["rest"]):
        assert {leaf.shape[0] for leaf in jax.tree.leaves(tree)} == {2}


@pytest.mark.parametrize("unroll", [True, False])
def test_stacked_blocks_and_their_moments_equal_a_loop_over_their_slices(drawn, unroll):
    model = ResNet(**NARROW, unroll=unroll)

    @quick
    def both(v, x):
        maps, state = model.apply(v, x, "train", mutable=["moments"])

        def block(x, at, stride, dilation, mine):
            module = Bottleneck(24, stride, dilation, shortcut=at is None, mode="train")
            return module.apply(mine, x, None, mutable=["moments"])

        first = {name: v[name]["layer2"]["first"] for name in v}
        (y, _), moments = block(maps[0], None, 2, 1, first)
        seen = [moments["moments"]]
        for i in range(2):
            mine = {
                name: jax.tree.map(lambda leaf, i=i: leaf[i], v[name]["layer2"]["rest"])
                for name in v
            }
            (y, _), moments = block(y, i, 1, 2, mine)
            seen.append(moments["moments"])
        return maps[1], state["moments"]["layer2"], y, seen

    stacked, moments, looped, seen = both(drawn, image())
    near(stacked, looped)
    jax.tree.map(near, moments["first"], seen[0])
    rest = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seen[1:])
    assert jax.tree.structure(rest) == jax.tree.structure(moments["rest"])
    jax.tree.map(near, moments["rest"], rest)


def loss(v, x, **fields):
    model = ResNet(**NARROW, **fields)
    maps, state = model.apply(v, x, "train", mutable=["moments"])
    return sum(jnp.square(f * jnp.cos(f)).mean() for f in maps), state["moments"]


def graded(v, x, **fields):
    def of_params(params):
        return loss({**v, "params": params}, x, **fields)

    return quick(jax.value_and_grad(of_params, has_aux=True))(v["params"])


@pytest.fixture(scope="module")
def plain(drawn):
    return graded(drawn, image())


def test_every_parameter_gets_a_gradient(plain):
    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.device_get(plain[1])):
        name = jax.tree_util.keystr(path)
        stacked = gradient if "rest" in name else gradient[None]
        assert all(np.abs(g).max() > 1e-6 for g in stacked), name


@pytest.mark.parametrize("fields", [{"unroll": False}, {"remat": "blocks"}, {"remat": "full"}])
def test_unroll_and_remat_change_neither_values_nor_gradients_nor_moments(drawn, plain, fields):
    other = graded(drawn, image(), **fields)
    assert jax.tree.structure(other) == jax.tree.structure(plain)
    # Gradients through batch statistics cancel: 1e-3 of the largest is rounding, see float64 below.
    jax.tree.map(lambda a, b: near(a, b, 1e-3), other, plain)


def test_remat_computes_the_blocks_again(drawn):
    def text(**fields):
        grad = jax.grad(lambda p: loss({**drawn, "params": p}, image(), **fields)[0])
        return str(jax.make_jaxpr(grad)(drawn["params"]))

    assert "remat" not in text()
    # Two first blocks and a stack.
    assert text(remat="blocks").count("remat") >= 3


class Twice(nn.Module):
    """One network on two pictures of different size within one apply."""

    unroll: bool
    remat: str

    @nn.compact
    def __call__(self, x, y):
        network = ResNet(**NARROW, unroll=self.unroll, remat=self.remat, name="net")
        return network(x, "train")[-1], network(y, "train")[-1]


@pytest.mark.parametrize(("unroll", "remat"), [(False, "none"), (True, "blocks")])
def test_two_calls_within_one_apply_hand_out_both_moments_in_order(drawn, unroll, remat):
    x, y = image((1, 33, 40, 3), seed=3), image((2, 24, 32, 3), seed=4)
    named = {collection: {"net": tree} for collection, tree in drawn.items()}
    twice = quick(lambda v: Twice(unroll, remat).apply(v, x, y, mutable=["moments"]))
    (first, second), state = twice(named)
    moments = state["moments"]["net"]
    for i, (picture, last) in enumerate(((x, first), (y, second))):
        maps, alone = run(drawn, picture, "train")
        near(last, maps[-1])
        mine = jax.tree.map(lambda e, i=i: (e[i],), moments, is_leaf=lambda e: isinstance(e, tuple))
        assert jax.tree.structure(mine) == jax.tree.structure(alone["moments"])
        jax.tree.map(near, mine, alone["moments"])
    entries = jax.tree.leaves(moments, is_leaf=lambda e: isinstance(e, tuple))
    assert {len(entry) for entry in entries} == {2}
    folded = fold_moments(drawn["batch_stats"], moments)
    assert jax.tree.structure(folded) == jax.tree.structure(drawn["batch_stats"])


def test_train_and_pseudo_use_the_batch_and_eval_the_running_averages(drawn):
    (train, moments), (pseudo, _) = run(drawn, image(), "train"), run(drawn, image(), "pseudo")
    still, none = run(drawn, image(), "eval")
    for a, b, c in zip(train, pseudo, still, strict=True):
        np.testing.assert_array_equal(a, b)
        assert float(jnp.abs(a - c).max()) > 1e-2
    assert not none
    assert jax.tree.structure(
        moments["moments"], is_leaf=lambda e: isinstance(e, tuple)
    ) == jax.tree.structure(drawn["batch_stats"])


def test_a_block_starts_as_its_shortcut():
    # Only the parameters leave it, so that nothing else is compiled.
    params = quick(lambda k: ResNet(**NARROW).init(k, image(), "train")["params"])(KEY)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        if name.endswith("['scale']"):
            np.testing.assert_array_equal(leaf, 0.0 if "['bn3']" in name and "layer" in name else 1)
    kernel = params["layer2"]["rest"]["conv2"]["kernel"]
    # Kaiming's rule on the output side; 648 numbers know their spread to 3 %.
    np.testing.assert_allclose(kernel.std(), (2 / (9 * kernel.shape[-1])) ** 0.5, rtol=0.15)


def test_bfloat16_computes_in_bfloat16_from_float32_parameters(drawn):
    model = ResNet(**NARROW, dtype=jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        maps, state = quick(lambda v, x: model.apply(v, x, "train", mutable=["moments"]))(
            drawn, image()
        )
    wide, _ = run(drawn, image(), "train")
    for a, b in zip(maps, wide, strict=True):
        assert a.dtype == jnp.bfloat16
        # 8 bits of mantissa through all blocks; outputs are of the order of 1.
        assert float(jnp.abs(a.astype(jnp.float32) - b).mean()) < 0.05
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state))


def test_float64_stays_float64_throughout(drawn):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda p: jnp.asarray(np.asarray(p), jnp.float64), drawn)
        x = image(dtype=jnp.float64)
        maps, _ = run(wide, x, "train")
        nudged, _ = run(wide, x + 1e-11 * image(dtype=jnp.float64, seed=5), "train")
    # A detour through float32 anywhere would round the nudge away.
    for a, b in zip(maps, nudged, strict=True):
        assert a.dtype == jnp.float64
        assert 0 < float(np.abs(np.asarray(a) - np.asarray(b)).max()) < 1e-8


def test_a_first_stride_without_the_stem_is_refused():
    with pytest.raises(ValueError, match="strides start with 2.*multiple of it, say 4"):
        ResNet(**{**NARROW, "strides": (2, 2, 1, 1)}).init(KEY, image(), "eval")
