"""What passes look at."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax.config import MIC, MRM, Config, Method
from mrm_jax.ops.normalise import normalise
from mrm_jax.registry import IMAGENET
from mrm_jax.train.state import scalars
from mrm_jax.types import Batch, Labelled, Unlabelled
from mrm_jax.uda.draws import draw
from mrm_jax.uda.methods import passes
from mrm_jax.uda.pseudo_label import PseudoLabel
from mrm_jax.uda.views import make_views, normalise_batch, strong_augment

AUGMENTED = ("mixed", "augmented", "augmented_target")
NAMES = ("source", "target", *AUGMENTED)
SHAPE = (2, 8, 10)


def _views(jitter_u, blur_u, method=None):
    rng = np.random.default_rng(0)
    batch = Batch(
        Labelled(rng.integers(0, 256, (*SHAPE, 3), np.uint8), rng.integers(0, 4, SHAPE, np.uint8)),
        Unlabelled(rng.integers(0, 256, (*SHAPE, 3), np.uint8), np.ones(SHAPE, np.uint8)),
        np.arange(2, dtype=np.int32),
    )
    batch.source.label[:, :2] = 255
    pseudo = PseudoLabel(jnp.full(SHAPE, 5, jnp.int32), jnp.full(SHAPE, 0.25), jnp.float32(0.25))
    draws = draw(np.zeros(2, np.uint32), 0, batch.index, passes=passes(Method()), grid=(1, 1))
    jitter = draws.augment["mixed"].replace(jitter_u=jitter_u, blur_u=blur_u)
    draws = draws.replace(augment=dict.fromkeys(AUGMENTED, jitter))
    views = make_views(
        pseudo,
        normalise_batch(batch, IMAGENET, jnp.float32),
        draws,
        scalars(Config()),
        names=NAMES,
        method=method or Method(),
        num_classes=6,
        stats=IMAGENET,
    )
    return batch, views


def test_mixed_is_source_under_the_mask_and_target_elsewhere():
    batch, views = _views(1.0, 1.0)
    mixed, pasted = views["mixed"], np.asarray(views["mixed"].weight) == 1
    assert 0 < pasted.mean() < 1
    np.testing.assert_array_equal(mixed.label, np.where(pasted, batch.source.label, 5))
    np.testing.assert_array_equal(mixed.weight, np.where(pasted, 1, 0.25))
    source, target = (normalise(d.image, IMAGENET) for d in (batch.source, batch.target))
    np.testing.assert_array_equal(mixed.image, np.where(pasted[..., None], source, target))


def test_mrms_augmented_pictures_are_those_of_the_stored_draws_and_keep_their_labels():
    batch, _ = _views(1.0, 1.0)
    method = Method(mrm=MRM(enabled=True, images="both", image="augmented"))
    names, numbers = ("source", "target", "augmented", "augmented_target"), scalars(Config())
    sure = {f"method.augment.{name}_probability": 1.0 for name in ("jitter", "blur")}
    numbers = {**numbers, **sure}
    draws = draw(np.zeros(2, np.uint32), 0, batch.index, passes=passes(method), grid=(1, 1))
    assert draws.augment.keys() == set(AUGMENTED)
    pseudo = PseudoLabel(jnp.full(SHAPE, 5, jnp.int32), jnp.full(SHAPE, 0.25), jnp.float32(0.25))
    normal = normalise_batch(batch, IMAGENET, jnp.float32)
    views = make_views(
        pseudo, normal, draws, numbers, names=names, method=method, num_classes=6, stats=IMAGENET
    )
    for plain, name in zip(names[:2], names[2:], strict=True):
        image = views[plain].image
        expected = strong_augment(image, draws.augment[name], numbers, method.augment, IMAGENET)
        np.testing.assert_array_equal(views[name].image, expected)
        assert not np.allclose(expected, image, atol=1e-2)
        np.testing.assert_array_equal(views[name].label, views[plain].label)
        np.testing.assert_array_equal(views[name].weight, views[plain].weight)


def test_only_mixed_and_augmented_pictures_are_ever_augmented():
    (_, off), (_, on) = _views(1.0, 1.0), _views(0.0, 0.0)
    for name in NAMES:
        changed = not np.allclose(off[name].image, on[name].image, atol=1e-3)
        assert changed == (name in AUGMENTED), name
        np.testing.assert_array_equal(off[name].label, on[name].label)


@pytest.mark.parametrize(("jitter_u", "applied"), [(0.79, True), (0.8, False)])
def test_jitter_is_applied_below_its_probability(jitter_u, applied):
    (_, off), (_, views) = _views(1.0, 1.0), _views(np.float32(jitter_u), 1.0)
    assert applied != np.allclose(off["mixed"].image, views["mixed"].image, atol=1e-3)


def test_no_gradient_leaves_through_a_view():
    batch, _ = _views(1.0, 1.0)
    draws = draw(np.zeros(2, np.uint32), 0, batch.index, passes=passes(Method()), grid=(1, 1))
    normal = normalise_batch(batch, IMAGENET, jnp.float32)

    def total(weight):
        pseudo = PseudoLabel(jnp.zeros(SHAPE, jnp.int32), weight, weight.mean())
        views = make_views(
            pseudo,
            normal,
            draws,
            scalars(Config()),
            names=("mixed", "target"),
            method=Method(),
            num_classes=6,
            stats=IMAGENET,
        )
        return views["mixed"].weight.sum() + views["target"].weight.sum()

    np.testing.assert_array_equal(jax.grad(total)(jnp.ones(SHAPE)), np.zeros(SHAPE))


def _masked(images, hide):
    """MIC's view, the pictures it is made of, its draws and the ratio, which is one of them; all
    pictures are jittered and blurred."""
    batch, _ = _views(1.0, 1.0)
    rows = passes(Method(kind="mic"))
    draws = draw(np.zeros(2, np.uint32), 0, batch.index, passes=rows, grid=(1, 1), blocks=(4, 5))
    drawn = np.asarray(draws.mask["masked"])
    ratio = float(np.sort(drawn, axis=None)[24])
    method = Method(kind="mic", mic=MIC(images=images, hide=hide, ratio=ratio))
    sure = {f"method.augment.{name}_probability": 1.0 for name in ("jitter", "blur")}
    numbers = {**scalars(Config(method=method)), **sure}
    pseudo = PseudoLabel(jnp.full(SHAPE, 5, jnp.int32), jnp.full(SHAPE, 0.25), jnp.float32(0.25))
    normal = normalise_batch(batch, IMAGENET, jnp.float32)
    names = ("source", "target", "masked")
    views = make_views(
        pseudo, normal, draws, numbers, names=names, method=method, num_classes=6, stats=IMAGENET
    )
    plain, jitter = views["target"], draws.augment["masked"]
    if images == "both":
        plain = jax.tree.map(lambda s, t: jnp.stack([s[0], t[0]]), views["source"], plain)
        return views["masked"], plain, drawn, ratio
    image = strong_augment(plain.image, jitter, numbers, method.augment, IMAGENET)
    return views["masked"], replace(plain, image=image), drawn, ratio


@pytest.mark.parametrize("images", ["target", "both"])
def test_mics_pictures_have_hidden_blocks_or_are_whole_with_hidden_tokens(images):
    pixels, plain, drawn, ratio = _masked(images, "pixels")
    blocks = (drawn <= ratio).repeat(2, 1).repeat(2, 2)[..., None]
    assert pixels.hide is None
    np.testing.assert_array_equal(pixels.image, np.where(blocks, 0, plain.image))
    tokens, plain, _, _ = _masked(images, "tokens")
    np.testing.assert_array_equal(tokens.image, plain.image)
    np.testing.assert_array_equal(tokens.hide, drawn < ratio)  # not at the ratio, as a block is
    assert tokens.hide.sum() == 24
    for view in (pixels, tokens):
        np.testing.assert_array_equal(view.label, plain.label)
        np.testing.assert_array_equal(view.weight, plain.weight)
