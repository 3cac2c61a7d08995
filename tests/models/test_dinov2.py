"""DINOv2: sizes, positions, hidden tokens, the pyramid, how pictures are fitted, precision."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

from mrm_jax import config
from mrm_jax.checks.method import check_feature_distance
from mrm_jax.checks.model import check_model
from mrm_jax.config import (
    MRM,
    Classes,
    Config,
    Data,
    Decoder,
    Encoder,
    FeatureDistance,
    Method,
    Model,
)
from mrm_jax.models.build import build_encoder, build_rebuilder, build_segmentor, feature_spec
from mrm_jax.models.dinov2 import DinoV2, Pyramid, fitted, position_weights
from mrm_jax.ops.resize import resize
from mrm_jax.types import SegOutput, View
from mrm_jax.uda.objectives import Call, contrast, weighted_cross_entropy
from mrm_jax.variants import ENCODERS

KEY = jax.random.key(0)
# Programs that run once: unoptimised code compiles several times faster.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
NARROW: dict = {"dim": 12, "depth": 2, "heads": 2, "hidden": 24, "patch": 7, "grid": 3}
ENCODER = Encoder("dinov2", (12,), (2,), (7,), heads=(2,), mlp_ratios=(2,), position_grid=3)


def image(*size, batch=2, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, *size, 3)), dtype)


def drawn(shapes, seed=1):
    """Numbers of which none is one that would hide a parameter."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        middle = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(middle + 0.3 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def params():
    model = DinoV2(**NARROW)
    return drawn(jax.eval_shape(lambda k: model.init(k, image(14, 21), "eval"), KEY))


def run(v, x, mode="eval", key=None, hide=None, **fields):
    model = DinoV2(**NARROW, **fields)
    rngs = None if key is None else {"dropout": jax.random.key(key)}
    return quick(lambda v, x: model.apply(v, x, mode, hide, rngs=rngs)[0])(v, x)


# As counted in Meta's code.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("dinov2_s14", 22_056_576),
        ("dinov2_b14", 86_580_480),
        ("dinov2_l14", 304_368_640),
        ("dinov2_g14", 1_136_480_768),
        ("dinov2_s14_reg", 22_058_112),
        ("dinov2_b14_reg", 86_583_552),
        ("dinov2_l14_reg", 304_372_736),
    ],
)
def test_parameter_counts_are_the_published_ones(name, count):
    model = build_encoder(Model(encoder=ENCODERS[name], unroll=False))
    shapes = jax.eval_shape(lambda key: model.init(key, image(28, 28), "eval"), KEY)
    assert sum(p.size for p in jax.tree.leaves(shapes)) == count


def test_vfm_udas_network_has_the_published_size():
    model = Model(encoder=ENCODERS["dinov2_b14"], decoder=Decoder("vit_light"), unroll=False)
    network = build_segmentor(model, 19)
    shapes = jax.eval_shape(lambda key: network.init(key, image(64, 64), mode="eval"), KEY)
    counts = {k: sum(p.size for p in jax.tree.leaves(v)) for k, v in shapes["params"].items()}
    assert counts == {"encoder": 86_580_480, "decoder": 1_811_520}


# Positions.


def test_position_weights_are_those_of_other_libraries_filters():
    """A cubic through the learned positions: weights of a place sum to 1, and without the offset
    are the identity at the learned size."""
    for how in ("offset", "resize", "antialias"):
        for count in (3, 9, 40):
            weights = position_weights(count, 9, how)
            np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)
    for how in ("resize", "antialias"):
        np.testing.assert_allclose(position_weights(9, 9, how), np.eye(9), atol=1e-12)
    ramp = position_weights(18, 9, "antialias") @ np.arange(9.0)
    np.testing.assert_allclose(np.diff(ramp[4:-4]), 0.5, atol=1e-12)  # as Keys' kernel does
    table = np.random.default_rng(0).normal(size=(9, 4))
    for count in (4, 20):
        with jax.enable_x64(True):
            theirs = jax.image.resize(jnp.asarray(table), (count, 4), "cubic", antialias=True)
        ours = position_weights(count, 9, "antialias") @ table
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_each_choice_of_positions_gives_other_features_but_at_the_learned_size(params):
    networks = [DinoV2(**NARROW, positions=how) for how in ("meta", "resize", "antialias")]

    @quick
    def every(v, x):
        return [network.apply(v, x, "eval")[0] for network in networks]

    first, *others = every(params, image(28, 35))
    assert all(float(jnp.abs(other - first).max()) > 1e-2 for other in others)
    first, *others = every(params, image(21, 21))
    assert all((other == first).all() for other in others)


# Sizes.


@pytest.mark.parametrize(
    ("how", "size", "tokens"),
    [
        ("native", (1024, 512), (74, 37)),
        ("native", (1022, 518), (73, 37)),
        ("1.1", (1024, 1024), (80, 80)),
        ("1.1", (64, 100), (5, 7)),
    ],
)
def test_a_picture_gets_whole_patches_and_the_map_sizes_say_how_many(how, size, tokens):
    encoder = replace(ENCODERS["dinov2_s14"], resize=how)
    assert config.map_sizes(encoder, *size) == (tokens,)
    rows, columns = tokens
    pyramid = ((4 * rows, 4 * columns), (2 * rows, 2 * columns), tokens)
    pyramid = (*pyramid, ((rows + 1) // 2, (columns + 1) // 2))
    assert config.map_sizes(replace(encoder, pyramid=True), *size) == pyramid
    x = image(*size, batch=1)
    found = fitted(x, how, 14)
    assert found.shape[1:3] == (14 * rows, 14 * columns)
    if how == "native":
        np.testing.assert_array_equal(found[:, : size[0], : size[1]], x)
        assert not found[:, size[0] :].any()
        assert not found[:, :, size[1] :].any()
    else:
        np.testing.assert_array_equal(found, resize(x, found.shape[1:3]))


def test_the_steps_between_cells_are_said_for_what_needs_one_number():
    assert feature_spec(ENCODERS["dinov2_s14"]).strides == (14,)
    assert feature_spec(replace(ENCODERS["dinov2_s14"], resize="1.1")).strides == (12,)
    assert feature_spec(replace(ENCODERS["dinov2_s14"], pyramid=True)).strides == (3, 7, 14, 28)


def _network(**fields):
    """(module, variables) of a segmentor with the light head, or DAFormer's on a pyramid."""
    encoder = replace(ENCODER, drop_path=0.0, **fields)
    head = Decoder(channels=6, fusion="conv1") if encoder.pyramid else Decoder("vit_light")
    network = build_segmentor(Model(encoder, head, unroll=False), 4)
    shapes = jax.eval_shape(lambda k: network.init(k, image(30, 20), mode="eval"), KEY)
    return network, drawn(shapes)


@pytest.mark.parametrize("pyramid", [False, True], ids=["light", "pyramid"])
def test_padding_is_cut_off_the_logits_which_lie_on_the_picture(pyramid):
    """The same as padding by hand; at whole patches nothing is done at all."""
    network, variables = _network(pyramid=pyramid)

    @quick
    def logits(v, x):
        return network.apply(v, x, mode="eval").logits["main"]

    x = image(30, 20)
    by_hand = logits(variables, jnp.pad(x, ((0, 0), (0, 5), (0, 1), (0, 0))))
    assert by_hand.shape[1:3] == (20, 12)
    found = logits(variables, x)
    assert found.shape[1:3] == (30, 20)
    np.testing.assert_allclose(found, resize(by_hand, (35, 21))[:, :30, :20], atol=1e-5)


def test_ways_to_a_resized_picture_agree():
    """`resize` 1.1 is the native network on the picture resized before, its logits left at their
    grid: whoever resizes them to the picture resizes them back."""
    network, variables = _network(resize="1.1")
    native, _ = _network()
    x, small = image(64, 50), (70, 49)

    @quick
    def both(v, x):
        found = network.apply(v, x, mode="eval")
        plain = native.apply(v, resize(x, small), mode="eval")
        return found.logits["main"], plain.logits["main"]

    found, plain = both(variables, x)
    np.testing.assert_allclose(found, plain, atol=1e-5)
    assert found.shape[1:3] == (40, 28)


def test_the_pyramid_hands_out_the_map_itself_and_half_of_it_by_maximum():
    x = image(5, 4)[..., :1] * jnp.ones(8)
    v = drawn(jax.eval_shape(lambda k: Pyramid().init(k, (x,)), KEY))
    four, two, one, half = Pyramid().apply(v, (x,))
    assert [m.shape[1:] for m in (four, two)] == [(20, 16, 2), (10, 8, 4)]
    np.testing.assert_array_equal(one, x)
    assert half.shape[1:] == (3, 2, 8)
    np.testing.assert_array_equal(half[:, 0, 0, 0], x[:, :2, :2, 0].max((1, 2)))
    np.testing.assert_array_equal(half[:, 2, 1, 0], x[:, 4:, 2:, 0].max((1, 2)))


# Hidden tokens.


def test_what_is_hidden_reaches_no_output_and_the_mask_token_learns(params):
    x, hide = image(14, 21), np.array([[[1, 0, 0], [0, 1, 0]], [[0, 0, 0], [1, 1, 1]]], bool)
    pixels = jnp.asarray(hide.repeat(7, 1).repeat(7, 2))[..., None]
    found = run(params, x, hide=hide)
    np.testing.assert_array_equal(found, run(params, jnp.where(pixels, 9.0, x), hide=hide))
    assert float(jnp.abs(found - run(params, x)).max()) > 1e-2
    np.testing.assert_array_equal(run(params, x), run(params, x, hide=np.zeros_like(hide)))

    def loss(v, x):
        return jnp.square(jnp.cos(DinoV2(**NARROW).apply(v, x, "eval", hide)[0])).sum()

    grads, of_image = quick(jax.grad(loss, (0, 1)))(params, x)
    assert float(jnp.abs(grads["params"]["mask_token"]).max()) > 1e-3
    of_image = np.abs(np.asarray(of_image)).max(-1)
    assert (of_image[np.asarray(pixels[..., 0])] == 0).all()
    assert (of_image[~np.asarray(pixels[..., 0])] > 0).all()


# How it runs.


def loss(v, x, **fields):
    fields = {"drop_path": 0.3, "gated": True, "registers": 2, **fields}
    out = DinoV2(**NARROW, **fields).apply(v, x, "train", rngs={"dropout": jax.random.key(3)})
    return jnp.square(out[0] * jnp.cos(out[0])).mean()


def test_unroll_and_remat_change_neither_values_nor_gradients():
    model, x = DinoV2(**NARROW, gated=True, registers=2), image(14, 21)
    v = drawn(jax.eval_shape(lambda k: model.init(k, x, "eval"), KEY))
    ways = ({}, {"unroll": False}, {"remat": "blocks"})
    every = [jax.value_and_grad(functools.partial(loss, **way)) for way in ways]
    first, *others = quick(lambda v, x: [one(v, x) for one in every])(v, x)
    for other in others:
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True):
            # Another order of float32 sums.
            np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-4)


def test_only_training_drops_paths_and_only_at_a_rate_above_zero(params):
    x = image(14, 21)
    plain = run(params, x)
    np.testing.assert_array_equal(plain, run(params, x, "pseudo", drop_path=0.9))
    np.testing.assert_array_equal(plain, run(params, x, "train"))
    dropped = run(params, x, "train", key=5, drop_path=0.9)
    assert float(jnp.abs(plain - dropped).max()) > 1e-3


def test_bfloat16_computes_in_bfloat16_from_float32_parameters(params):
    x = image(14, 21)
    out, plain = run(params, x, dtype=jnp.bfloat16), run(params, x)
    assert out.dtype == jnp.bfloat16
    # 8 bits of mantissa through all blocks; outputs are of the order of 1.
    assert float(jnp.abs(out.astype(jnp.float32) - plain).mean()) < 0.05


# The Rebuilder, which knows the maps by their sizes alone.


@pytest.mark.parametrize(
    ("fields", "decoder", "projectors"),
    [
        ({}, "vit_light", (1,)),
        ({"resize": "1.1"}, "vit_light", (1,)),
        ({"pyramid": True}, "daformer", (1, 2, 3, 4)),
        ({"pyramid": True, "resize": "1.1"}, "segformer", (1, 2, 3, 4)),
        ({"pyramid": True}, "vit_light", (4,)),
    ],
)
def test_the_rebuilder_has_a_projector_for_every_map_that_the_decoder_reads(
    fields, decoder, projectors
):
    encoder = replace(ENCODERS["dinov2_b14"], **fields)
    spec, crop = feature_spec(encoder), (512, 512)
    rebuilder = build_rebuilder(MRM(), spec, decoder, crop)
    maps = tuple(
        jax.ShapeDtypeStruct((1, *size, width), jnp.float32)
        for size, width in zip(spec.sizes(*crop), spec.channels, strict=True)
    )
    uniforms = jax.ShapeDtypeStruct((1, 16, 16), jnp.float32)
    out, made = jax.eval_shape(
        lambda m, u: rebuilder.init_with_output(KEY, m, u, 0.4), maps, uniforms
    )
    assert [leaf.shape for leaf in out] == [leaf.shape for leaf in maps]
    found = {name for name in made["params"] if name.startswith("projector")}
    assert found == {f"projector{i}" for i in projectors}


@pytest.mark.parametrize("fields", [{}, {"pyramid": True}], ids=["light", "pyramid"])
def test_masked_cells_of_a_vits_maps_are_those_of_hidden_tokens(fields):
    """Maps of 5 x 4 patches are no multiple of 3 x 3 tokens: a cell is of the token that its corner
    lies in. Visible cells come through as they are, with all of their gradient, hidden ones with
    none of it."""
    spec = feature_spec(replace(ENCODER, **fields))
    kind = "daformer" if fields else "vit_light"
    mask = MRM(grid=(3, 3), dim=8, depth=1, heads=2)
    rebuilder = build_rebuilder(mask, spec, kind, (35, 28), unroll=False)
    rng = np.random.default_rng(0)
    maps = tuple(
        jnp.asarray(rng.normal(size=(2, *size, width)), jnp.float32)
        for size, width in zip(spec.sizes(30, 28), spec.channels, strict=True)
    )
    uniforms = jnp.asarray(rng.uniform(size=(2, 3, 3)), jnp.float32)
    v = drawn(jax.eval_shape(lambda k: rebuilder.init(k, maps, uniforms, 0.4), KEY))

    @quick
    def both(v, maps):
        out, pull = jax.vjp(lambda m: rebuilder.apply(v, m, uniforms, 0.4), maps)
        # Of the last map the gradient also comes through the tokens that are visible.
        return out, pull(tuple(jnp.ones_like(m) for m in out[:-1]) + (0 * out[-1],))[0]

    out, grads = both(v, maps)
    visible = np.asarray(uniforms > 0.4)
    for i, (found, given) in enumerate(zip(out, maps, strict=True)):
        rows, columns = (np.arange(n) * 3 // n for n in given.shape[1:3])
        shown = visible[:, rows][:, :, columns]
        assert 0 < shown.sum() < shown.size
        np.testing.assert_array_equal(np.asarray(found == given).all(-1), shown)
        if i + 1 < len(maps):
            np.testing.assert_array_equal(np.asarray(grads[i] == 1).all(-1), shown)
            np.testing.assert_array_equal(np.asarray(grads[i] == 0).all(-1), ~shown)


# Losses that ask which pixels a cell has.


def test_contrast_takes_a_cells_label_from_its_middle_where_cells_are_no_whole_pixels():
    label = np.arange(30)[None, :, None] % 4 + np.zeros((1, 30, 28), int)
    view = View(np.zeros((1, 30, 28, 3), np.float32), label, np.ones((1, 30, 28), np.float32))
    cosines = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 4)), jnp.float32)
    scalars = {"method.contrast.temperature": 1.0, "method.contrast.weight": 1.0}
    call = Call(SegOutput({}, (cosines,)), view, scalars, heads={"prototypes": lambda x: x})
    rows = [3, 11, 18, 26]  # the middles of 7.5 px each
    picked = jnp.asarray(label[:, rows][:, :, [3, 10, 17, 24]])
    wanted = weighted_cross_entropy(cosines, picked)
    np.testing.assert_allclose(contrast(call, KEY)[0], wanted, rtol=1e-6)


def test_the_feature_distance_of_classes_needs_crops_of_whole_cells():
    distance = FeatureDistance(weight=1.0, classes=("a",))
    made = Config(
        model=Model(replace(ENCODERS["dinov2_s14"], weights="file"), Decoder("vit_light")),
        method=Method(feature_distance=distance),
        data=Data(classes=Classes(("a",), ((0, 0, 0),)), crop=(512, 512)),
    )
    with refused("config.data.crop", (512, 512), way_out="whole cells"):
        check_feature_distance(made)
    check_feature_distance(replace(made, data=replace(made.data, crop=(518, 1036))))


# What is refused.


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (
            {name: (12, 12) for name in ("dims", "depths", "strides", "heads", "mlp_ratios")},
            "dims",
        ),
        ({"heads": (5,)}, "dims"),
        ({"dims": (6,), "pyramid": True}, "dims"),
        ({"heads": (1, 2)}, "heads"),
        ({"mlp_ratios": (4, 4, 4, 4)}, "mlp_ratios"),
    ],
)
def test_fields_that_do_not_fit_each_other_are_refused(fields, field):
    encoder = replace(ENCODER, **fields)
    made = Config(model=Model(encoder=encoder, decoder=Decoder("vit_light")))
    with pytest.raises(ValueError, match=rf"config\.model\.encoder\.{field}"):
        check_model(made)
