"""`model.remat`: what is computed again changes neither values, gradients, moments nor draws, and
takes memory off the backward pass."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler import QUICK

from mrm_jax.config import MRM, Decoder, Encoder, Model, MultiRes
from mrm_jax.models.build import build_rebuilder, build_segmentor, feature_spec

CROP, CLASSES = (64, 64), 3
MIT = Encoder(dims=(8, 16), depths=(2, 2), heads=(1, 2), sr_ratios=(4, 2), strides=(4, 2))
RESNET = Encoder(kind="resnet", dims=(16, 32), depths=(1, 2), strides=(4, 2), dilations=(1, 2))
LITE = Encoder(
    "efficientnet_lite",
    dims=(8, 12),
    depths=(1, 2),
    strides=(4, 2),
    kernels=(3, 5),
    expansions=(1, 2),
    stem_width=8,
)
MODELS = {
    "daformer": Model(MIT, Decoder(channels=16, dilations=(1, 2))),
    "segformer": Model(MIT, Decoder("segformer", channels=16)),
    "deeplabv2": Model(RESNET, Decoder("deeplabv2", dilations=(1, 2))),
    "deeplabv3plus": Model(
        RESNET, Decoder("deeplabv3plus", channels=16, dilations=(1, 2), low_channels=8, norm=True)
    ),
    "efficientnet_lite": Model(LITE, Decoder("segformer", channels=16)),
    "hrda": Model(
        MIT,
        Decoder(channels=16, dilations=(1, 2)),
        MultiRes(enabled=True, attention_channels=8),
    ),
}
MASK = MRM(grid=(4, 4), dim=16, depth=1, heads=2)


def _parts(name, remat):
    """(loss(params) -> (value, moments), abstract params) of the model, with features rebuilt."""
    model = replace(MODELS[name], remat=remat, unroll=False)
    segmentor = build_segmentor(model, CLASSES, (32, 32))
    kind, spec = model.decoder.kind, feature_spec(model.encoder)
    rebuilder = build_rebuilder(MASK, spec, kind, CROP, unroll=False, remat=remat)
    rng = np.random.default_rng(0)
    image = rng.normal(0, 1, (2, *CROP, 3)).astype(np.float32)
    uniforms = rng.uniform(0, 1, (2, *MASK.grid)).astype(np.float32)
    offset = jnp.zeros(2, jnp.int32) if model.multires.enabled else None

    def init():
        variables = segmentor.init(jax.random.key(0), image, mode="eval", offset=offset)
        features = segmentor.apply(variables, image, mode="eval", offset=offset, method="encode")[
            "context"
        ]
        fresh = rebuilder.init(jax.random.key(1), features, uniforms, 0.4)
        stats = variables.get("batch_stats", {})
        return {"segmentor": variables["params"], "rebuilder": fresh["params"]}, stats

    def loss(params, stats):
        def rebuild(maps, scale):
            return rebuilder.apply({"params": params["rebuilder"]}, maps, uniforms, 0.4)

        output, found = segmentor.apply(
            {"params": params["segmentor"], "batch_stats": stats},
            image,
            mode="train",
            transform=rebuild,
            offset=offset,
            rngs={"dropout": jax.random.key(2)},
            mutable=["moments"],
        )
        logits = [output.logits[key] for key in sorted(output.logits)]
        return sum(jnp.sin(x).mean() for x in logits), found.get("moments", {})

    return init, loss


def _compiled(name, remat):
    init, loss = _parts(name, remat)
    abstract = jax.eval_shape(init)
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)
    return gradient.lower(*abstract).compile()


@functools.cache
def _outcome(name, remat):
    """(loss, moments), gradients and bytes of temporaries; variables drawn, so all is alive."""
    compiled = _compiled(name, remat)
    init, _ = _parts(name, remat)
    rng = np.random.default_rng(3)
    params, stats = jax.tree.map(
        lambda leaf: rng.normal(0.2, 0.2, leaf.shape).astype(np.float32), jax.eval_shape(init)
    )
    return jax.device_get(compiled(params, stats)), compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", ["daformer", "deeplabv3plus"])
def test_neither_values_nor_gradients_nor_moments_nor_draws_change(name):
    (plain, _), (other, _) = _outcome(name, "none"), _outcome(name, "full")
    assert jax.tree.structure(plain) == jax.tree.structure(other)
    # The same sums in another order, in float32; dropout with another mask would differ by far.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            b, a, rtol=2e-3, atol=2e-5 * np.abs(a).max() + 1e-7
        ),
        plain,
        other,
    )


def test_a_backward_pass_that_computes_again_keeps_less_in_memory():
    (_, plain), (_, least) = _outcome("daformer", "none"), _outcome("daformer", "full")
    # Two blocks a stage, of which one is alive at a time.
    assert least < 0.8 * plain


def _recomputed(name, remat):
    """How many parts of the model are marked to be computed again, and its abstract variables."""
    init, loss = _parts(name, remat)
    abstract = jax.eval_shape(init)
    return str(jax.make_jaxpr(loss)(*abstract)).count(" remat"), abstract


@pytest.mark.parametrize("name", MODELS)
def test_full_also_computes_decoder_and_projectors_again_under_the_same_paths(name):
    none, plain = _recomputed(name, "none")
    blocks, _ = _recomputed(name, "blocks")
    full, other = _recomputed(name, "full")
    assert none == 0
    assert blocks > 0
    # HRDA: the decoder at two resolutions, the attention, and the projectors of both.
    projectors = 1 if name.startswith("deeplab") else 2
    assert full - blocks == (3 + 2 * projectors if name == "hrda" else 1 + projectors)
    assert jax.tree.structure(plain) == jax.tree.structure(other)
