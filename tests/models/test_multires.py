"""HRDA's wrapper around stand-ins whose every output can be worked out by hand."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax import sharding
from mrm_jax.config import Config, Model, MultiRes, detail_crop
from mrm_jax.machine.plan import collectives
from mrm_jax.models import multires
from mrm_jax.models.build import build_segmentor
from mrm_jax.models.layers import BatchNorm
from mrm_jax.variants import DECODERS, ENCODERS

STRIDE = 4


class Means(nn.Module):
    """One map: the means of cells of 4x4 px, cells that reach over the border included."""

    def __call__(self, image: jax.Array, mode: str) -> tuple[jax.Array, ...]:
        batch, height, width, channels = image.shape
        below, right = -height % STRIDE, -width % STRIDE
        image = jnp.pad(image, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")
        shape = (batch, (height + below) // 4, 4, (width + right) // 4, 4, channels)
        return (image.reshape(shape).mean((2, 4)),)


class Channels(nn.Module):
    """The first two channels of the last map, shifted by `bias`."""

    bias: float = 0.0

    def __call__(self, features: Sequence[jax.Array], mode: str) -> jax.Array:
        return features[-1][..., :2] + self.bias


def network(detail: int = 16, attention: float = 0.0) -> multires.MultiResSegmentor:
    return multires.MultiResSegmentor(
        Means(), Channels(), Channels(attention), STRIDE, (detail, detail)
    )


def picture(height: int = 32, width: int = 32, batch: int = 2) -> jax.Array:
    return jax.random.normal(jax.random.key(height * width), (batch, height, width, 3))


def halved(x: np.ndarray) -> np.ndarray:
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def cells(x: np.ndarray) -> np.ndarray:
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 4, 4, width // 4, 4, channels).mean((2, 4))


def doubled(x: np.ndarray) -> np.ndarray:
    """Bilinear x2 with half-pixel centres: 3/4 of the nearer and 1/4 of the farther neighbour."""
    for axis in (1, 2):
        before = np.concatenate([x.take([0], axis), x.take(range(x.shape[axis] - 1), axis)], axis)
        after = np.concatenate([x.take(range(1, x.shape[axis]), axis), x.take([-1], axis)], axis)
        pair = np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
        x = pair.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
    return x


def test_a_training_forward_is_the_formula_around_the_crop():
    image, top, left = picture(), 8, 16
    out = network(attention=0.5).apply({}, image, mode="train", offset=jnp.array([top, left]))
    x = np.asarray(image, np.float64)
    context = cells(halved(x))[..., :2]
    detail = cells(x[:, top : top + 16, left : left + 16])[..., :2]
    inside = np.zeros((1, 4, 4, 1))
    inside[:, 1:3, 2:4] = 1
    attention = inside / (1 + np.exp(-context - 0.5))
    placed = np.zeros((2, 8, 8, 2))
    placed[:, 2:6, 4:8] = detail
    fused = doubled((1 - attention) * context) + doubled(attention) * placed
    np.testing.assert_allclose(out.logits["main"], fused, atol=1e-6)
    np.testing.assert_allclose(out.logits["context"], (1 - attention) * context, atol=1e-6)
    np.testing.assert_allclose(out.logits["detail"], detail, atol=1e-6)
    np.testing.assert_allclose(out.features[0], cells(halved(x)), atol=1e-6)
    assert out.extent == (16, 16)
    np.testing.assert_array_equal(out.offset, [top, left])


def test_without_attention_only_the_context_is_left():
    image = picture()
    context = doubled(cells(halved(np.asarray(image, np.float64)))[..., :2])
    for offset in (None, jnp.array([8, 8])):
        out = network(attention=-100.0).apply({}, image, mode="eval", offset=offset)
        np.testing.assert_allclose(out.logits["main"], context, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (16, 16), (33, 45)])
def test_overlapping_crops_of_a_local_network_average_to_the_whole_picture(size):
    image = picture(*size)
    out = network(attention=100.0).apply({}, image, mode="eval")
    whole = np.asarray(Means()(image, "eval")[0])[..., :2]
    if all(side % STRIDE == 0 for side in size):
        np.testing.assert_allclose(out.logits["main"], whole, atol=1e-6)
    assert out.logits["main"].shape == whole.shape
    assert np.isfinite(out.logits["main"]).all()


def test_crops_run_as_one_batch_and_their_overlaps_are_averaged():
    """32 px, crops of 16 every 8: corners are covered once, edges twice, the inside four times."""
    seen = []

    class Numbered(nn.Module):
        """Logits that tell which crop of the batch they came from."""

        def __call__(self, features: Sequence[jax.Array], mode: str) -> jax.Array:
            maps = features[-1]
            seen.append(maps.shape)
            number = jnp.arange(maps.shape[0]) % 9
            return jnp.broadcast_to(number.reshape(-1, 1, 1, 1), (*maps.shape[:3], 2)) * 1.0

    model = multires.MultiResSegmentor(Means(), Numbered(), Channels(100.0), STRIDE, (16, 16))
    out = np.asarray(model.apply({}, picture(), mode="pseudo").logits["main"])[0, :, :, 0]
    assert seen == [(2, 4, 4, 3), (18, 4, 4, 3)]
    # Nine crops, row by row; cells of 4 px, so a crop is 4 cells every 2.
    assert (out[0, 0], out[0, 7], out[7, 0], out[7, 7]) == (0, 2, 6, 8)
    assert out[0, 2] == (0 + 1) / 2
    assert out[3, 3] == (0 + 1 + 3 + 4) / 4


def test_crops_of_a_picture_stay_on_its_device():
    if jax.device_count() < 2:
        pytest.skip("needs two devices; tests/conftest.py asks XLA for two unless XLA_FLAGS is set")
    rows = sharding.over_batch(sharding.mesh(2))
    apply = partial(network().apply, {}, mode="pseudo")
    slid = jax.jit(lambda image: apply(image).logits["main"], in_shardings=rows, out_shardings=rows)
    text = slid.lower(jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)).compile().as_text()
    assert "num_partitions=2" in text
    assert collectives(text) == {}


def test_a_transform_meets_the_features_of_both_scales_and_needs_a_crop():
    seen = []

    def transform(features, scale):
        seen.append((scale, features[0].shape))
        return tuple(f * 0 for f in features)

    image = picture()
    out = network().apply({}, image, mode="train", transform=transform, offset=jnp.array([0, 0]))
    assert seen == [("context", (2, 4, 4, 3)), ("detail", (2, 4, 4, 3))]
    assert not np.asarray(out.logits["main"]).any()
    assert np.asarray(out.features[0]).any()
    with pytest.raises(ValueError, match="offset"):
        network().apply({}, image, mode="train", transform=transform)


def test_moments_of_the_context_come_before_those_of_the_detail():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, features, mode):
            return BatchNorm(name="bn")(features[-1], mode)

    model = multires.MultiResSegmentor(Means(), Normed(), Normed(), STRIDE, (16, 16))
    image, offset = picture(), jnp.array([8, 16])
    variables = model.init(jax.random.key(0), image, mode="eval", offset=offset)
    _, moved = model.apply(variables, image, mode="train", offset=offset, mutable=["moments"])
    x = np.asarray(image, np.float64)
    context, detail = cells(halved(x)), cells(x[:, 8:24, 16:32])
    found = moved["moments"]["decoder"]["bn"]["mean"]
    np.testing.assert_allclose(found, [context.mean((0, 1, 2)), detail.mean((0, 1, 2))], atol=1e-6)
    assert len(moved["moments"]["attention"]["bn"]["mean"]) == 1


@pytest.mark.parametrize(
    ("encoder", "decoder", "expected"),
    [("mit_b5", "daformer", 85_685_990), ("resnet101", "deeplabv2", 43_920_300)],
)
def test_it_has_the_published_size(encoder, decoder, expected):
    model = Model(
        encoder=ENCODERS[encoder],
        decoder=DECODERS[decoder],
        multires=MultiRes(enabled=True),
        unroll=False,
    )
    network = build_segmentor(model, 19, (512, 512))
    image = jnp.zeros((1, 1024, 1024, 3))
    shapes = jax.eval_shape(
        lambda key: network.init(key, image, mode="eval", offset=jnp.zeros(2, jnp.int32)),
        jax.random.key(0),
    )
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(shapes["params"])) == expected


def test_logits_of_deeplabv2_are_placed_by_rounding_offsets_down():
    """At stride 8 an offset of 8 is half a cell of the context: the reference truncates."""
    model = multires.MultiResSegmentor(Means(), Channels(), Channels(100.0), 8, (16, 16))
    # `Means` has stride 4, so every map is twice as fine as the stride says; only places matter.
    inside = model._inside(jnp.ones((1, 4, 4, 1)), jnp.array([8, 24]), (16, 16))
    np.testing.assert_array_equal(np.argwhere(np.asarray(inside)[0, :, :, 0]), [[0, 1]])


def test_the_detail_crop_is_half_the_training_crop_unless_named():
    assert detail_crop(Config()) == (256, 256)
    named = replace(Config(), model=Model(multires=MultiRes(detail=(128, 64))))
    assert detail_crop(named) == (128, 64)
