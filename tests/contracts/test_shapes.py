"""Shapes of every named encoder with every named decoder, plain and HRDA, with and without MRM, at
full size, uncomputed.

A network is put together from parts that know each other only by `FeatureSpec`, so each part is
traced once, and the networks that share it share the answer: parts are told apart by the modules
that `build_networks` builds, never by name.
"""

import functools
import math
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from refusals import refused

from mrm_jax import recipes, sharding
from mrm_jax.checks.model import check_crops
from mrm_jax.config import Classes, Config, Data, Model, detail_crop
from mrm_jax.models.build import feature_spec
from mrm_jax.train.state import build_networks
from mrm_jax.variants import DECODERS, ENCODERS

BATCH, CLASSES, PLAIN, HRDA = 2, 19, 512, 1024
PATCHES = 518  # of 14 px: nothing is padded
NAMES = tuple(f"class{i}" for i in range(CLASSES))
BASE = Config(data=Data(classes=Classes(NAMES, ((0, 0, 0),) * CLASSES)), model=Model(unroll=False))

# Said here once more, apart from the code. Strides of the maps, px.
STRIDES = {
    "mit": (4, 8, 16, 32),
    "resnet": (4, 8, 8, 8),
    "efficientnet_lite": (4, 8, 16, 32),
    "mobilenet_v2": (4, 8, 16, 32),
    "dinov2": (14,),
}
# The stages that give the maps, where not every one does.
MAPPED = {"efficientnet_lite": (1, 2, 4, 6), "mobilenet_v2": (1, 2, 4, 6)}
# The stage that logits are as large as, and how many cells a side they have in one of it.
LOGITS_AT = {"daformer": 0, "segformer": 0, "deeplabv2": -1, "deeplabv3plus": 0, "vit_light": -1}
FINER = {"vit_light": 4}
# Stages that are rebuilt, for MRM.stages "auto" and "multi".
ALL, LAST, ENDS = (0, 1, 2, 3), (-1,), (0, -1)
REBUILT = {
    "daformer": {"auto": ALL, "multi": ALL},
    "segformer": {"auto": ALL, "multi": ALL},
    "deeplabv2": {"auto": LAST, "multi": LAST},
    "deeplabv3plus": {"auto": LAST, "multi": ENDS},
    "vit_light": {"auto": LAST, "multi": LAST},
}


@pytest.fixture(autouse=True)
def on_a_mesh():
    """On the mesh of a run the forms of other platforms are not traced."""
    with jax.sharding.use_abstract_mesh(sharding.mesh(1).abstract_mesh):
        yield


class Blank(nn.Module):
    """Stands where a part has no say in what is traced."""


def config(encoder, decoder, hrda, mrm="off"):
    """The named run; `mrm` is off, auto or multi."""
    plain = PATCHES if encoder.startswith("dinov2") else PLAIN
    crop, switch = HRDA if hrda else plain, str(mrm != "off").lower()
    text = f"dacs,encoder={encoder},decoder={decoder},hrda={str(hrda).lower()},crop={crop}"
    made = recipes.apply(BASE, f"{text},mrm={switch}")
    stages = replace(made.method.mrm, stages="auto" if mrm == "off" else mrm)
    return replace(made, method=replace(made.method, mrm=stages))


def abstract(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def shapes(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree)


def sides(size, stride):
    return tuple(math.ceil(side / stride) for side in size)


def maps_of(made, batch, size):
    """The shapes that the maps of pictures of `size` must have."""
    encoder = made.model.encoder
    stages = MAPPED.get(encoder.kind, range(len(encoder.dims)))
    return tuple(
        (batch, *sides(size, stride), encoder.dims[stage])
        for stride, stage in zip(STRIDES[encoder.kind], stages, strict=True)
    )


def scales_of(made, crops=1):
    """The shapes of the maps of every scale; `crops`: detail crops a picture."""
    height, width = made.data.crop
    if not made.model.multires.enabled:
        return {"context": maps_of(made, BATCH, (height, width))}
    context = maps_of(made, BATCH, (height // 2, width // 2))
    return {"context": context, "detail": maps_of(made, crops * BATCH, detail_crop(made))}


@functools.cache
def encoded(network, crop, offset):
    """Shapes of `network.encode`, of which `network` holds the encoder alone."""

    def encode(image, corner):
        given = corner if offset else None
        maps, _ = network.init_with_output(
            jax.random.key(0), image, mode="eval", offset=given, method="encode"
        )
        return maps

    corner = jax.ShapeDtypeStruct((2,), jnp.int32)
    return shapes(jax.eval_shape(encode, abstract(BATCH, *crop, 3), corner))


@functools.cache
def decoded(network, scales, crop, offset, mode):
    """(shapes of the logits, extent) of `network.decode`, of which the encoder is blank."""
    extents = []

    def decode(maps, corner):
        given = corner if offset else None
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        output, _ = network.init_with_output(
            keys, maps, size=crop, mode=mode, offset=given, method="decode"
        )
        extents.append(output.extent)
        return output.logits

    maps = {name: tuple(abstract(*shape) for shape in found) for name, found in scales}
    logits = jax.eval_shape(decode, maps, jax.ShapeDtypeStruct((2,), jnp.int32))
    return shapes(logits), extents[-1]


@functools.cache
def rebuilt(rebuilder, maps):
    """(shapes that the Rebuilder returns for such maps, stages that it returns untouched)."""
    untouched = []

    def rebuild(maps, uniforms):
        out, _ = rebuilder.init_with_output(jax.random.key(0), maps, uniforms, 0.4)
        untouched.append([i for i, (a, b) in enumerate(zip(maps, out, strict=True)) if a is b])
        return out

    given = tuple(abstract(*shape) for shape in maps)
    out = jax.eval_shape(rebuild, given, abstract(maps[0][0], *rebuilder.grid))
    return shapes(out), untouched[-1]


def without_heads(made, network):
    """`network` without what encoding has no use for."""
    blank = {"decoder": Blank()}
    if made.model.multires.enabled:
        blank |= {"attention": Blank(), "stride": None}
    return network.clone(**blank)


def check_encoder(made, network):
    found = encoded(without_heads(made, network), made.data.crop, True)
    assert found == scales_of(made)
    spec, context = feature_spec(made.model.encoder), found["context"]
    divisor = 2 if made.model.multires.enabled else 1
    size = tuple(side // divisor for side in made.data.crop)
    assert [shape[1:3] for shape in context] == [sides(size, s) for s in spec.strides]
    assert tuple(shape[3] for shape in context) == spec.channels


def check_decoder(made, network):
    crop, kind = made.data.crop, made.model.encoder.kind
    stride = STRIDES[kind][LOGITS_AT[made.model.decoder.kind]]
    finer = FINER.get(made.model.decoder.kind, 1)
    network, hrda = network.clone(encoder=Blank()), made.model.multires.enabled
    scales = tuple(scales_of(made).items())
    logits, extent = decoded(network, scales, crop, True, "train")
    main = (BATCH, *(finer * side for side in sides(crop, stride)), CLASSES)
    if not hrda:
        assert (logits, extent) == ({"main": main}, None)
        return
    half = (BATCH, *sides(crop, 2 * stride), CLASSES)
    # The crop is half of the picture, as the context is of its size, so both have equal logits.
    assert logits == {"main": main, "context": half, "detail": half}
    assert extent == detail_crop(made)
    # 3 x 3 crops that overlap by half cover the picture for teacher and test.
    scales = tuple(scales_of(made, crops=9).items())
    assert decoded(network, scales, crop, False, "eval") == ({"main": main}, None)


def check_rebuilder(made, rebuilder, stages):
    for maps in scales_of(made).values():
        found, untouched = rebuilt(rebuilder, maps)
        assert found == maps
        count = len(maps)
        expected = {i % count for i in REBUILT[made.model.decoder.kind][stages] if i < count}
        assert sorted((*untouched, *expected)) == list(range(count))


@pytest.mark.parametrize("hrda", [False, True], ids=["plain", "hrda"])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_maps_logits_and_rebuilt_maps_have_the_shapes_that_the_feature_spec_says(
    encoder, decoder, hrda
):
    made = config(encoder, decoder, hrda)
    if hrda and (encoder.startswith("dinov2") or decoder == "vit_light"):
        with refused("config.model.multires.enabled", None, way_out="set it to False."):
            check_crops(made)
        return
    plain = build_networks(made)
    assert plain.rebuilder is None
    check_encoder(made, plain.segmentor)
    check_decoder(made, plain.segmentor)
    for stages in ("auto", "multi"):
        masked = build_networks(config(encoder, decoder, hrda, stages))
        # MRM adds a Rebuilder and changes nothing in the network that is kept.
        assert masked.segmentor == plain.segmentor
        check_rebuilder(made, masked.rebuilder, stages)


@pytest.mark.parametrize("encoder", ["mit_b0", "resnet50"])
def test_hrda_without_an_offset_encodes_the_crops_of_all_pictures_as_one_batch(encoder):
    made = config(encoder, "daformer", True)
    network = without_heads(made, build_networks(made).segmentor)
    assert encoded(network, made.data.crop, False) == scales_of(made, crops=9)
