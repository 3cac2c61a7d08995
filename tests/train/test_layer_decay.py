"""The layer of every parameter of an encoder, against tables written by hand."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

from mrm_jax.checks.model import check_model
from mrm_jax.config import Config, Encoder, Model, Optimizer, Train
from mrm_jax.models.build import build_encoder
from mrm_jax.registry import ENCODER_KINDS
from mrm_jax.train import optimizer
from mrm_jax.train.state import scalars

MIT = Encoder(
    "mit", (8, 8, 8, 8), (1, 2, 1, 2), heads=(1, 1, 1, 1), sr_ratios=(8, 4, 2, 1), drop_path=0.0
)
RESNET = Encoder("resnet", (8, 8, 8, 8), (2, 1, 3, 1), (4, 2, 1, 1))
INVERTED = Encoder(
    *("efficientnet_lite", (4, 4, 8, 8), (1, 2, 1, 1), (2, 2, 2, 2)),
    **{"kernels": (3, 3, 3, 3), "expansions": (1, 2, 2, 2), "stem_width": 4},
)
VIT = Encoder("dinov2", (8,), (3,), (7,), heads=(2,), mlp_ratios=(1,), registers=2, position_grid=3)
_STEM, _SIX = {"stem(_bn)?/": 6}, enumerate((5, 4, 3, 2, 1))
# Encoder -> how often the rate is multiplied by the decay, by how a path begins; a number for each
# block where they are stored stacked. What is not there has the full rate.
TABLES = {
    "mit": (
        MIT,
        {
            **{"patch_embed1/": 7, "block1/": [6], "norm1/": 6},
            **{"patch_embed2/": 5, "block2/": [5, 4], "norm2/": 4},
            **{"patch_embed3/": 3, "block3/": [3], "norm3/": 3},
            **{"patch_embed4/": 2, "block4/": [2, 1]},
        },
    ),
    "pvt_v2": (
        replace(MIT, depths=(1, 1, 1, 1), mlp_ratios=(8, 8, 4, 4)),
        {
            **{"patch_embed1/": 5, "block1/": [4], "norm1/": 4},
            **{"patch_embed2/": 3, "block2/": [3], "norm2/": 3},
            **{"patch_embed3/": 2, "block3/": [2], "norm3/": 2},
            **{"patch_embed4/": 1, "block4/": [1]},
        },
    ),
    "resnet": (
        RESNET,
        {
            **{"stem/": 8, "layer1/first/": 7, "layer1/rest/": [6], "layer2/first/": 5},
            **{"layer3/first/": 4, "layer3/rest/": [3, 2], "layer4/first/": 1},
        },
    ),
    "efficientnet_lite": (INVERTED, _STEM | {f"mbconv{i}/": n for i, n in _SIX}),
    "mobilenet_v2": (
        replace(INVERTED, kind="mobilenet_v2"),
        _STEM | {f"bottleneck{i}/": 5 - i for i in range(5)},
    ),
    "dinov2": (
        VIT,
        {
            **{"patch_embed/": 4, "cls_token": 4, "positions": 4, "mask_token": 4},
            **{"register_tokens": 4, "blocks/": [3, 2, 1]},
        },
    ),
}


def params_of(encoder, unroll=False):
    module = build_encoder(Model(encoder, unroll=unroll))
    picture = np.zeros((1, 64, 64, 3), np.float32)
    tree = jax.eval_shape(lambda key: module.init(key, picture, "eval"), jax.random.key(0))
    return {"segmentor": {"encoder": tree["params"], "decoder": {"w": 0}}, "rebuilder": {"w": 0}}


def with_decay(encoder, decay):
    return Config(model=Model(encoder), optimizer=Optimizer(layer_decay=decay))


@pytest.mark.parametrize("name", TABLES)
def test_the_rate_of_every_parameter_is_that_of_its_layer(name):
    encoder, table = TABLES[name]
    params = params_of(encoder)
    found = optimizer.layer_shares(params, with_decay(encoder, 0.5))
    used = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["segmentor"]["encoder"]):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        rows = [row for row in table if re.match(row, path)]
        used |= set(rows)
        share = found.pop(f"segmentor/encoder/{path}", np.ones(()))
        powers = np.array(table[rows[0]] if rows else 0)
        # Broadcast over the leaf, a stacked one has a number for each of its blocks.
        assert share.shape[1:] == (1,) * (leaf.ndim - 1 if powers.ndim else 0), path
        np.testing.assert_array_equal(share.ravel(), 0.5 ** powers.ravel().astype(float))
        assert not powers.ndim or len(powers) == leaf.shape[0], path
    assert not found, "only the encoder has layers"
    assert used == set(table)


def test_how_blocks_are_run_changes_no_rate():
    looped, unrolled = (
        optimizer.layer_shares(params_of(VIT, unroll), with_decay(VIT, 0.7))
        for unroll in (False, True)
    )
    assert looped.keys() == unrolled.keys()
    assert all(np.array_equal(looped[path], unrolled[path]) for path in looped)


def test_every_variant_has_as_many_layers_as_it_has_blocks():
    for kind in ENCODER_KINDS:
        for values in kind.variants.values():
            encoder = Encoder(kind.name, **values)
            layers = [layer for _, layer in kind.layers(encoder) if layer is not None]
            counted = sorted(
                n for layer in layers for n in (layer if isinstance(layer, range) else [layer])
            )
            assert set(counted) == set(range(1 + sum(encoder.depths))), (kind.name, values)


def test_a_stacked_leaf_moves_as_its_blocks_do_one_by_one():
    """AdamW of each block by numpy, at its own rate, weight decay included."""
    rng = np.random.default_rng(0)
    shapes = {"blocks": (3, 2, 4), "norm": (4,), "cls_token": (1, 4)}
    drawn = [{n: rng.normal(size=s) for n, s in shapes.items()} for _ in range(2)]
    tree, grads = (
        {
            "segmentor": {
                "encoder": {
                    "blocks": {"fc": {"kernel": jnp.float32(d["blocks"])}},
                    "norm": {"bias": jnp.float32(d["norm"])},
                    "cls_token": jnp.float32(d["cls_token"]),
                }
            },
            "rebuilder": {},
        }
        for d in drawn
    )
    options = Optimizer(learning_rate=0.1, warmup=0.0, layer_decay=0.6, decay_encoder_norms=True)
    config = Config(model=Model(VIT), optimizer=options, train=Train(steps=10**9))
    state = optimizer.adam(options).init(tree)
    moved, _ = optimizer.update(tree, grads, state, jnp.int32(0), scalars(config), config)
    encoder = moved["segmentor"]["encoder"]
    before, gradient = drawn

    def expected(leaf, slope, powers):
        step = slope / (np.abs(slope) + 1e-8) + 0.01 * leaf  # Adam's first step is the sign
        return leaf - 0.1 * 0.6**powers * step

    for block in range(3):
        one = expected(before["blocks"][block], gradient["blocks"][block], 3 - block)
        # 1 - 0.999 keeps five digits in float32.
        np.testing.assert_allclose(encoder["blocks"]["fc"]["kernel"][block], one, atol=1e-5)
    one = expected(before["cls_token"], gradient["cls_token"], 4)
    np.testing.assert_allclose(encoder["cls_token"], one, atol=1e-5)
    one = expected(before["norm"], gradient["norm"], 0)
    np.testing.assert_allclose(encoder["norm"]["bias"], one, atol=1e-5)


def test_a_parameter_that_no_row_covers_is_named():
    params = {"segmentor": {"encoder": {"tail": {"kernel": jnp.zeros(1)}}}}
    with pytest.raises(ValueError, match="tail/kernel"):
        optimizer.layer_shares(params, with_decay(VIT, 0.5))
    assert optimizer.layer_shares(params, with_decay(VIT, 1.0)) == {}


def test_an_encoder_without_layers_is_refused(monkeypatch):
    bare = replace(ENCODER_KINDS["dinov2"], layers=None)
    monkeypatch.setitem(ENCODER_KINDS._rows, "dinov2", bare)
    with refused("config.optimizer.layer_decay", 0.5, way_out="leave it at 1"):
        check_model(with_decay(VIT, 0.5))
    check_model(with_decay(VIT, 1.0))
