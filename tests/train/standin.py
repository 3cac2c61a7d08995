"""A network of a few dense layers with the interface of the real ones, and a batch for it.

The step must not care what it trains, and this compiles in a second.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax import config as options
from mrm_jax.config import (
    MRM,
    Classes,
    Config,
    Data,
    Method,
    Model,
    Optimizer,
    Train,
    detail_crop,
)
from mrm_jax.models.build import build_auxiliary
from mrm_jax.models.layers import BatchNorm, LayerNorm, dropout2d
from mrm_jax.models.multires import MultiResSegmentor
from mrm_jax.models.rebuilder import Blank
from mrm_jax.models.segmentor import Segmentor
from mrm_jax.train.state import Networks
from mrm_jax.train.step import build_step
from mrm_jax.types import Batch, Labelled, Unlabelled

CLASSES, CELL, WIDTH = 4, 4, 6
CROP = (8, 12)
GRID = (1, 3)
SIZE = (2, *CROP)
HRDA_CROP = (16, 24)  # what context and detail see is then as large as CROP


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, image, mode):
        del mode
        batch, height, width, _ = image.shape
        cells = image.reshape(batch, height // CELL, CELL, width // CELL, CELL, 3).mean((2, 4))
        embedded = nn.Dense(WIDTH, name="embed", dtype=image.dtype)(cells)
        return (LayerNorm(1e-6, name="norm")(jnp.tanh(embedded)),)


class Decoder(nn.Module):
    dropout: float

    @nn.compact
    def __call__(self, features, mode):
        feature = features[-1]
        # No bias: before a BatchNorm its true gradient is 0, and Adam would blow rounding up.
        x = nn.Dense(WIDTH, use_bias=False, name="fuse", dtype=feature.dtype)(feature)
        x = dropout2d(nn.relu(BatchNorm(name="bn")(x, mode)), self.dropout, mode)
        return nn.Dense(CLASSES, name="classify", dtype=feature.dtype)(x)


class Rebuilder(nn.Module):
    """Hidden cells become a learned vector mapped from the mean of what is visible."""

    stages = (0,)

    @nn.compact
    def __call__(self, features, uniforms, ratio):
        token = self.param("mask_token", nn.initializers.ones_init(), (WIDTH,), jnp.float32)
        shape = (*features[0].shape[:3], 1)
        visible = jax.image.resize((uniforms > ratio)[..., None], shape, "nearest")
        mean = jnp.where(visible, features[0], 0).mean((1, 2), keepdims=True)
        guess = nn.Dense(WIDTH, name="map", dtype=features[0].dtype)(
            mean + token.astype(features[0].dtype).reshape(1, 1, 1, -1)
        )
        guess = LayerNorm(1e-6, name="norm")(guess)
        return (jnp.where(visible, features[0], guess),)


def config(
    *,
    kind="dacs",
    mrm=True,
    images="target",
    augmented=False,
    hrda=False,
    threshold=0.0,
    **optimizer,
):
    """A run of the stand-in; the threshold of 0 gives every pseudo-label the weight 1."""
    names, crop = ("a", "b", "c", "d"), HRDA_CROP if hrda else CROP
    return Config(
        data=Data(classes=Classes(names, ((0, 0, 0),) * CLASSES), crop=crop),
        model=Model(multires=options.MultiRes(enabled=hrda, offset_multiple=CELL)),
        method=Method(
            kind=kind,
            augmented_source=augmented,
            threshold=threshold,
            mrm=MRM(enabled=mrm, images=images, grid=GRID, ratio=0.5),
        ),
        optimizer=Optimizer(**({"learning_rate": 1e-2, "decoder_multiplier": 1.0} | optimizer)),
        train=Train(steps=100),
    )


def program(run, dropout=0.0):
    """The step of the config `run` around the stand-in."""
    parts = (Encoder(), Decoder(dropout))
    network = Segmentor(*parts)
    if run.model.multires.enabled:
        network = MultiResSegmentor(*parts, Decoder(dropout), stride=CELL, detail=detail_crop(run))
    rebuilder = Blank((0,), GRID) if run.method.mrm.hidden == "blank" else Rebuilder()
    heads = build_auxiliary(run.method, CELL, CLASSES)
    return build_step(run, Networks(network, rebuilder if run.method.mrm.enabled else None, heads))


def batch(seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    return Batch(
        Labelled(
            rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, CLASSES, size, np.uint8)
        ),
        Unlabelled(rng.integers(0, 256, (*size, 3), np.uint8), np.ones(size, np.uint8)),
        np.arange(size[0], dtype=np.int32) + seed * size[0],
    )
