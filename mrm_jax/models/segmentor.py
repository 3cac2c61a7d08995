"""Encoder and decoder as one network; what stands between them (the Rebuilder) comes in as a
function, not as parameters."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

from mrm_jax.types import Mode, SegOutput

Transform = Callable[[tuple[jax.Array, ...]], tuple[jax.Array, ...]]


class Segmentor(nn.Module):
    """`encoder(image, mode)` gives one map a stage, `decoder(features, mode)` gives logits."""

    encoder: nn.Module
    decoder: nn.Module

    def __call__(
        self,
        image: jax.Array,
        *,
        mode: Mode,
        transform: Transform | None = None,
        offset: jax.Array | None = None,
    ) -> SegOutput:
        """Logits `main` [B, h, w, K] at the decoder's stride (at least float32), and the encoder's
        features.

        image: f[B, H, W, 3], normalised. transform: applied to the features before they are
        decoded; `SegOutput.features` are the encoder's own, untouched. offset: handed through; a
        single-scale network has no use for it. Needs rng "dropout" in mode "train" if a drop rate
        is above 0. In other modes than "eval" the collection `moments` can be asked for
        (mutable=["moments"]): batch statistics of every BatchNorm.
        """
        features = self.encoder(image, mode)
        decoded = features if transform is None else transform(features)
        return SegOutput({"main": self.decoder(decoded, mode)}, features, offset)
