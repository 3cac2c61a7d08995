"""Pictures and labels of noise, for what is timed: what a network computes takes the same time
whatever the numbers are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mrm_jax.config import Config


class Noise(NamedTuple):
    """source, target u8[B, H, W, 3]; label u8[B, H, W] of every class."""

    source: np.ndarray
    target: np.ndarray
    label: np.ndarray


def noise(config: Config, seed: int = 0) -> Noise:
    """`train.batch` pictures of each domain, of the config's crop."""
    rng = np.random.default_rng(seed)
    shape = (config.train.batch, *config.data.crop)
    source, target = (rng.integers(0, 256, (*shape, 3), np.uint8) for _ in range(2))
    return Noise(source, target, rng.integers(0, len(config.data.classes.names), shape, np.uint8))
