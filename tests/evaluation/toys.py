"""A network small enough to compile in a second, and pictures for it."""

from dataclasses import replace
from functools import lru_cache, partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax import config
from mrm_jax.evaluation.evaluator import evaluate_networks
from mrm_jax.models.build import build_segmentor
from mrm_jax.types import SegOutput

NAMES = ("road", "car", "sky", "tree")
COLOURS = ((128, 64, 128), (0, 0, 142), (70, 130, 180), (107, 142, 35))

CONFIG = config.Config(
    data=config.Data(classes=config.Classes(names=NAMES, colours=COLOURS), crop=(32, 32)),
    model=config.Model(
        encoder=config.Encoder(
            dims=(8, 8),
            depths=(1, 1),
            heads=(1, 2),
            sr_ratios=(4, 1),
            strides=(4, 2),
            mlp_ratios=(1, 1),
        ),
        decoder=config.Decoder(channels=8, fusion="conv1"),
    ),
    evaluation=config.Evaluation(batch=2),
)


class Example(NamedTuple):
    name: str
    image: np.ndarray
    label: np.ndarray


def examples(*sizes: tuple[int, int], seed: int = 0) -> list[Example]:
    """Noise with noise labels, some of them 255."""
    rng = np.random.default_rng(seed)
    found = []
    for i, size in enumerate(sizes):
        label = rng.choice([*range(len(NAMES)), 255], size).astype(np.uint8)
        found.append(Example(f"noise_{i}", rng.integers(0, 256, (*size, 3), np.uint8), label))
    return found


@partial(jax.jit, static_argnums=0)
def forward(model, variables, image):
    """Logits of the bare network at its decoder's stride."""
    return model.apply(variables, image, mode="eval").logits["main"]


def network(seed: int = 0, **evaluation):
    """(config, model, variables) with statistics and classifier far from their initial values."""
    cfg = replace(CONFIG, evaluation=replace(CONFIG.evaluation, **evaluation))
    model = build_segmentor(cfg.model, len(NAMES))
    return cfg, model, _variables(model, seed)


def evaluate(config, model, variables, pictures, network="student"):
    """Scores of one set of variables."""
    return evaluate_networks(config, model, {network: variables}, pictures)[network]


@lru_cache
def _variables(model, seed):
    init = jax.jit(partial(model.init, mode="eval"))
    variables = init(jax.random.key(seed), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(seed)

    def moved(leaf: jax.Array) -> np.ndarray:
        return np.asarray(leaf) + 0.3 * np.abs(rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree.map(moved, {k: variables[k] for k in ("params", "batch_stats")})


class Pointwise(nn.Module):
    """Logits that depend on the pixel alone: windows cannot change them."""

    @nn.compact
    def __call__(self, image, *, mode):
        return SegOutput({"main": nn.Dense(4)(image)}, ())


class Brightness(nn.Module):
    """Logits that are the mean of what the network sees: every window gives its own."""

    def __call__(self, image, *, mode):
        mean = image.mean((1, 2), keepdims=True)
        return SegOutput({"main": jnp.broadcast_to(mean, image.shape)}, ())
