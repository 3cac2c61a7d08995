"""Encoder and decoder as one network; what stands between them (the Rebuilder) comes in as a
function, not as parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import flax.linen as nn
import jax

from mrm_jax.ops.resize import resize
from mrm_jax.types import Array, Mode, Scale, SegOutput

Features = dict[Scale, tuple[jax.Array, ...]]
"""One map a stage, of the whole picture ("context") and, under HRDA, of its details."""

Transform = Callable[[tuple[jax.Array, ...], Scale], tuple[jax.Array, ...]]
"""(features, of what) -> features of the same shapes."""


class Network(Protocol):
    """What every network can do: encode, decode, and both in a row (`run_network`)."""

    def encode(self, image: Array, *, mode: Mode, offset: Array | None = None) -> Features:
        """The maps of a normalised picture f[B, H, W, 3]."""
        ...

    def decode(
        self,
        features: Features,
        *,
        size: tuple[int, int],
        mode: Mode,
        offset: Array | None = None,
    ) -> SegOutput:
        """The logits of the maps of a picture of `size`; `SegOutput.features` are the context's."""
        ...


def run_network(
    network: Network,
    image: Array,
    *,
    mode: Mode,
    transform: Transform | None,
    offset: Array | None,
) -> SegOutput:
    """`network` on normalised pictures f[B, H, W, 3], inside one `apply`.

    transform: applied to the maps of every scale before they are decoded; `SegOutput.features` are
    the encoder's own, untouched.
    """
    features = network.encode(image, mode=mode, offset=offset)
    decoded = features if transform is None else transformed(features, transform)
    size = (image.shape[1], image.shape[2])
    output = network.decode(decoded, size=size, mode=mode, offset=offset)
    return replace(output, features=features["context"])


def transformed(features: Features, transform: Transform) -> Features:
    """`features` with `transform` applied to those of every scale."""
    return {scale: transform(maps, scale) for scale, maps in features.items()}


class Segmentor(nn.Module):
    """`encoder(image, mode)` gives one map a stage, `neck(maps)` (None: nothing) makes the features
    of them, `decoder(features, mode)` gives logits.

    covers(height, width): px that the features of such a picture lie over, where the encoder pads
    it at the bottom and the right; None: the picture.
    """

    encoder: nn.Module
    decoder: nn.Module
    neck: nn.Module | None = None
    covers: Callable[[int, int], tuple[int, int]] | None = None

    def __call__(
        self,
        image: Array,
        *,
        mode: Mode,
        transform: Transform | None = None,
        offset: Array | None = None,
    ) -> SegOutput:
        """Logits `main` [B, h, w, K] at the decoder's stride, or at the picture's size where it is
        padded (at least float32), and the features.

        image, transform: see `run_network`. offset: a network of one resolution has no use for it.
        Needs rng "dropout" in mode "train" if a drop rate is above 0. In other modes than "eval"
        the collection `moments` can be asked for (mutable=["moments"]): batch statistics of every
        BatchNorm.
        """
        return run_network(self, image, mode=mode, transform=transform, offset=offset)

    def encode(
        self,
        image: Array,
        *,
        mode: Mode,
        offset: Array | None = None,
        hide: Array | None = None,
    ) -> Features:
        """See `Network`. hide: bool[B, rows, columns], tokens that an encoder which can do so
        replaces by its mask token."""
        del offset
        maps = self.encoder(image, mode, *(() if hide is None else (hide,)))
        return {"context": maps if self.neck is None else self.neck(maps)}

    def decode(
        self,
        features: Features,
        *,
        size: tuple[int, int],
        mode: Mode,
        offset: Array | None = None,
    ) -> SegOutput:
        """See `Network`."""
        del offset
        maps = features["context"]
        logits = self.decoder(maps, mode)
        covered = size if self.covers is None else self.covers(*size)
        if covered != tuple(size):
            logits = resize(logits, covered)[:, : size[0], : size[1]]
        return SegOutput({"main": logits}, maps)
