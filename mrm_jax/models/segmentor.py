"""Encoder and decoder as one network; what stands between them (the Rebuilder) comes in as a
function, not as parameters."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

from mrm_jax.types import Mode, Scale, SegOutput

Transform = Callable[[tuple[jax.Array, ...], Scale], tuple[jax.Array, ...]]
"""(features, of what) -> features of the same shapes."""


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
        decoded; `SegOutput.features` are the encoder's own, untouched. offset: a network of one
        resolution has no use for it. Needs rng "dropout" in mode "train" if a drop rate
        is above 0. In other modes than "eval" the collection `moments` can be asked for
        (mutable=["moments"]): batch statistics of every BatchNorm.
        """
        del offset
        features = self.encoder(image, mode)
        decoded = features if transform is None else transform(features, "context")
        return SegOutput({"main": self.decoder(decoded, mode)}, features)
