"""The Rebuilder: sizes, what its mask lets through, and where gradients go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax.config import MRM
from mrm_jax.models.build import build_rebuilder, feature_spec
from mrm_jax.models.rebuilder import Blank, Rebuilder, doublings, sine_cosine_table
from mrm_jax.ops.resize import resize
from mrm_jax.types import FeatureSpec
from mrm_jax.variants import ENCODERS

KEY = jax.random.key(0)
SPEC = FeatureSpec(channels=(4, 6, 8, 10), strides=(4, 8, 16, 32))
GRID = (2, 4)


def features(crop=(64, 128), spec=SPEC, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return tuple(
        jnp.asarray(rng.normal(size=(2, crop[0] // s, crop[1] // s, c)), dtype)
        for s, c in zip(spec.strides, spec.channels, strict=True)
    )


def small(**fields):
    fields = {"stages": (0, 1, 2, 3), "grid": GRID, "dim": 16, "depth": 1, "heads": 2} | fields
    return Rebuilder(spec=SPEC, nominal=(64, 128), **fields)


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(lambda k: small().init(k, features(), uniforms(), 0.4), KEY)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype) * 0.3, shapes)


def uniforms(seed=2):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(2, *GRID)), jnp.float32)


def run(variables, inputs, ratio, draws=None):
    draws = uniforms() if draws is None else draws
    return jax.jit(small().apply)(variables, inputs, draws, ratio)


def abstract(encoder, decoder_kind, crop=(512, 512), stages="auto"):
    spec = feature_spec(ENCODERS[encoder])
    model = build_rebuilder(MRM(stages=stages), spec, decoder_kind, crop)
    inputs = [
        jax.ShapeDtypeStruct((1, crop[0] // s, crop[1] // s, c), jnp.float32)
        for s, c in zip(spec.strides, spec.channels, strict=True)
    ]
    init = jax.eval_shape(lambda k, f: model.init(k, f, jnp.zeros((1, 16, 16)), 0.4), KEY, inputs)
    return init["params"]


def count(tree):
    return sum(p.size for p in jax.tree.leaves(tree))


# As counted in the released module.
@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ("mit_b5", (14_545_280, 2_893_248, 2_639_104, 2_180_288, 263_680)),
        ("mit_b0", (14_228_352, 2_889_056, 2_630_720, 2_138_848, 131_840)),
    ],
)
def test_parameter_counts_are_the_published_ones(encoder, expected):
    params = abstract(encoder, "daformer")
    counts = [count(params)] + [count(params[f"projector{i}"]) for i in (1, 2, 3, 4)]
    assert tuple(counts) == expected
    assert count(abstract(encoder, "segformer")) == expected[0]


def test_a_decoder_that_reads_the_last_stage_alone_gets_one_projector_of_the_published_size():
    params = abstract("resnet101", "deeplabv2")
    assert count(params) == 10_246_016
    assert [name for name in params if name.startswith("projector")] == ["projector4"]


@pytest.mark.parametrize(
    ("stages", "expected"), [("auto", ["projector4"]), ("multi", ["projector1", "projector4"])]
)
def test_deeplabv3plus_has_its_last_stage_rebuilt_and_its_first_one_on_request(stages, expected):
    params = abstract("resnet101", "deeplabv3plus", stages=stages)
    assert [name for name in params if name.startswith("projector")] == expected
    if stages == "multi":  # a factor of 8 to the stride-4 map of 256 channels
        assert {f"deconv{i}" for i in range(3)} <= set(params["projector1"])
        assert params["projector1"]["conv"]["kernel"].shape == (128, 256)


@pytest.mark.parametrize(
    ("size", "expected"), [(2, 0), (4, 0), (5, 1), (8, 1), (16, 2), (20, 3), (32, 3), (100, 3)]
)
def test_doublings_are_the_published_ones_at_whole_factors(size, expected):
    assert doublings((size, size), (4, 4)) == expected


def test_the_layout_depends_on_the_nominal_crop_not_on_the_picture(variables):
    other = features((96, 160))
    out = run(variables, other, 0.4)
    assert [o.shape for o in out] == [f.shape for f in other]
    shapes = jax.eval_shape(lambda k: small().init(k, other, uniforms(), 0.4), KEY)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)


def test_all_visible_gives_the_input_back_exactly(variables):
    for a, b in zip(run(variables, features(), -1.0), features(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_all_hidden_gives_the_same_whatever_the_features_are(variables):
    hidden = run(variables, features(), 1.0)
    other = run(variables, tuple(3 * f + 1 for f in features()), 1.0)
    for a, b, f in zip(hidden, other, features(), strict=True):
        assert a.shape == f.shape
        np.testing.assert_array_equal(a, b)


def test_hidden_cells_are_the_blocks_of_hidden_tokens(variables):
    out = run(variables, features(), 0.4)
    visible = np.asarray(uniforms() > 0.4)
    assert 0 < visible.sum() < visible.size
    for a, f in zip(out, features(), strict=True):
        factor = f.shape[1] // GRID[0]
        shown = visible.repeat(factor, 1).repeat(factor, 2)
        np.testing.assert_array_equal(np.asarray(a == f).all(-1), shown)


def test_gradient_is_zero_at_hidden_cells_and_one_at_visible_ones(variables):
    inputs = features()
    out, pull = jax.vjp(lambda f: run(variables, f, 0.4), inputs)
    cotangent = features((64, 128))
    (grads,) = pull(cotangent)
    for i, (grad, given) in enumerate(zip(grads, cotangent, strict=True)):
        shown = np.asarray(resize(uniforms()[..., None] > 0.4, given.shape[1:3], method="nearest"))
        hidden = np.broadcast_to(~shown, given.shape)
        assert not np.asarray(grad)[hidden].any()
        if i < 3:
            np.testing.assert_array_equal(np.asarray(grad)[~hidden], np.asarray(given)[~hidden])
        else:
            # The last stage is seen by the transformer as well.
            extra = np.asarray(grad - given)[~hidden]
            assert np.abs(extra).max() > 1e-3
    assert len(out) == 4


def test_without_antialias_only_the_inner_cells_of_a_fine_last_stage_reach_the_tokens():
    spec = FeatureSpec(channels=(10,), strides=(8,))
    model = Rebuilder(
        spec=spec, nominal=(64, 128), stages=(0,), grid=GRID, dim=16, depth=1, heads=2
    )
    inputs = features(spec=spec)
    shapes = jax.eval_shape(lambda k: model.init(k, inputs, uniforms(), 0.4), KEY)
    rng = np.random.default_rng(3)
    v = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype) * 0.3, shapes)
    weight = jnp.asarray(rng.normal(size=inputs[0].shape), jnp.float32)
    grad = jax.jit(jax.grad(lambda f: jnp.sum(model.apply(v, f, uniforms(), 0.4)[0] * weight)))(
        inputs
    )[0]
    shown = np.asarray(resize(uniforms()[..., None] > 0.4, (8, 16), method="nearest"))
    extra = np.abs(np.asarray(grad) - np.where(shown, weight, 0)).max(-1)
    inner = np.zeros((8, 16), bool)
    for i in (1, 2):
        for j in (1, 2):
            inner[i::4, j::4] = True
    assert not extra[:, ~inner].any()
    assert (extra[np.broadcast_to(inner, extra.shape) & shown[..., 0]] > 0).all()


def test_maps_that_are_not_rebuilt_pass_unchanged(variables):
    model = small(stages=(3,))
    params = {k: v for k, v in variables["params"].items() if k[-1] not in "123"}
    out = model.apply({"params": params}, features(), uniforms(), 1.0)
    for i in range(3):
        np.testing.assert_array_equal(out[i], features()[i])
    assert float(jnp.abs(out[3] - features()[3]).max()) > 1e-2


def test_rebuilt_vectors_are_normalised_over_channels_after_any_resize(variables):
    plain = jax.tree.map(lambda p: p, variables)
    for i in (1, 2, 3, 4):
        norm = plain["params"][f"projector{i}"]["norm"]
        plain["params"][f"projector{i}"]["norm"] = {
            "scale": jnp.ones_like(norm["scale"]),
            "bias": jnp.zeros_like(norm["bias"]),
        }
    for out in run(plain, features((96, 160)), 1.0):
        np.testing.assert_allclose(out.mean(-1), 0, atol=1e-5)
        np.testing.assert_allclose(out.std(-1), 1, atol=1e-2)


# Entries and sums of the published 16x16 table (the released module).
def test_the_position_table_is_the_published_one():
    table = sine_cosine_table((16, 16), 512).astype(np.float64)
    entry = table[3 * 16 + 5, [0, 1, 127, 128, 256, 384]]
    expected = [0.141120, 0.342782, 0.000322, -0.989992, -0.958924, 0.283662]
    np.testing.assert_allclose(entry, expected, atol=1e-6)
    np.testing.assert_allclose(table.sum(), 59700.68, atol=0.01)
    np.testing.assert_allclose((table**2).sum(), 65536, atol=0.01)


def test_a_position_table_of_another_shape_is_made_of_the_same_vectors():
    square, wide = sine_cosine_table((6, 6), 16), sine_cosine_table((2, 6), 16)
    np.testing.assert_array_equal(wide, square[:12])


def test_the_dtype_of_the_features_is_kept(variables):
    for a in run(variables, features(dtype=jnp.bfloat16), 0.4):
        assert a.dtype == jnp.bfloat16
    with jax.enable_x64(True):
        inputs = features(dtype=jnp.float64)
        wide = jax.tree.map(lambda p: jnp.asarray(np.asarray(p), jnp.float64), variables)
        out = run(wide, inputs, 0.4)
    assert all(a.dtype == jnp.float64 for a in out)


def test_draws_on_another_grid_are_refused(variables):
    with pytest.raises(ValueError, match=r"grid \(4, 4\), the module \(2, 4\)"):
        small().apply(variables, features(), jnp.zeros((2, 4, 4)), 0.4)


@pytest.mark.parametrize("stages", ["auto", "multi"])
@pytest.mark.parametrize("decoder", ["daformer", "deeplabv2", "deeplabv3plus"])
def test_what_is_blanked_without_rebuilding_is_what_would_be_rebuilt(decoder, stages):
    """So that the ablation differs from MRM in what stands there alone."""
    spec = feature_spec(ENCODERS["resnet50"])
    rebuilt, blanked = (
        build_rebuilder(MRM(stages=stages, hidden=hidden), spec, decoder, (512, 512))
        for hidden in ("rebuilt", "blank")
    )
    assert isinstance(blanked, Blank)
    assert blanked.stages == rebuilt.stages
    maps = tuple(jnp.ones((1, 4, 4, c)) for c in (2, 3, 4, 5))
    visible = jnp.arange(16.0).reshape(1, 4, 4) / 16
    found = Blank(blanked.stages, (4, 4)).apply({}, maps, visible, 0.5)
    for stage, (given, got) in enumerate(zip(maps, found, strict=True)):
        shown = (visible > 0.5)[..., None] if stage in blanked.stages else True
        np.testing.assert_array_equal(got, jnp.where(shown, given, 0))
