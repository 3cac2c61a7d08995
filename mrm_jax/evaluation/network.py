"""A trained network, ready to segment pictures: the one object that verbs and Python use.

It is data (a config, a module, its variables) and what a config says about pictures: how they are
fitted, at which scales they are read, what a class is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mrm_jax.config import Config, evaluation_domain, input_stats, smallest_picture
from mrm_jax.data.labels import colourise
from mrm_jax.data.transforms import keep_ratio_size, resize_image
from mrm_jax.errors import UsageError
from mrm_jax.evaluation import inference
from mrm_jax.evaluation.overlay import overlay
from mrm_jax.ops.precision import multiplying
from mrm_jax.sharding import over_batch
from mrm_jax.types import Tree


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """`module` with `variables` {"params", "batch_stats"} of the segmentor, under the protocol of
    `config`. `name`: student or teacher. `step`: steps trained."""

    config: Config = field(repr=False)  # a notebook that shows a network prints no weights
    module: nn.Module = field(repr=False)
    variables: Tree = field(repr=False)
    name: str = "student"
    step: int = 0

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by train id."""
        return self.config.data.classes.names

    @property
    def colours(self) -> np.ndarray:
        """RGB u8[K,3] by train id."""
        return np.array(self.config.data.classes.colours, np.uint8).reshape(-1, 3)

    @overload
    def predict(self, images: np.ndarray) -> Prediction: ...
    @overload
    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]: ...
    def predict(self, images: np.ndarray | Sequence[np.ndarray]) -> Prediction | list[Prediction]:
        """What the network sees in a picture RGB u8[H,W,3], or in several of any sizes, in the same
        order. Pictures of equal size that follow each other go through together, up to
        `config.evaluation.batch`. Raises UsageError for an array that is no such picture."""
        if not isinstance(images, Sequence) and np.ndim(images) != 4:
            return self._together([_checked(images, "the picture")])[0]
        pictures = [_checked(image, f"picture {i}") for i, image in enumerate(images)]
        found: list[Prediction] = []
        while len(found) < len(pictures):
            first = len(found)
            rows = pictures[first : first + self.config.evaluation.batch]
            equal = next((i for i, p in enumerate(rows) if p.shape != rows[0].shape), len(rows))
            found += self._together(rows[:equal])
        return found

    def _together(self, images: list[np.ndarray]) -> list[Prediction]:
        size = images[0].shape[:2]
        versions = stacked([self.versions(image) for image in images], len(images))
        ids, confidence = self.classified(versions, (size[0], size[1]))
        rows = zip(images, ids, confidence, strict=True)
        return [Prediction(self, *row) for row in rows]

    def versions(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """The picture u8[H,W,3] as the network reads it, at each of `evaluation.scales`."""
        height, width = image.shape[:2]
        box, found = input_box(self.config), []
        for scale in self.config.evaluation.scales:
            if box is not None:
                size = keep_ratio_size(height, width, (scale * box[0], scale * box[1]))  # type: ignore[arg-type]
            else:
                size = max(1, round(height * scale)), max(1, round(width * scale))
            found.append(resize_image(image, size))
        return tuple(found)

    def reference(self, versions: Sequence[np.ndarray]) -> np.ndarray:
        """The one of `versions` that is nearest to the size of the protocol."""
        scales = self.config.evaluation.scales
        return versions[min(range(len(scales)), key=lambda i: abs(scales[i] - 1))]

    def strips(
        self,
        versions: Sequence[np.ndarray],
        size: tuple[int, int],
        what: inference.What = "classes",
    ) -> Iterator[inference.Strip]:
        """The result at `size` for stacked `versions` u8[B,H,W,3]; see `inference.strips`."""
        smallest = smallest_picture(self.config.model)
        how: Any = {"stats": input_stats(self.config.model), "smallest": smallest}

        def forward(windows: Any) -> jax.Array:
            (windows,) = spread_rows(self.variables, windows)
            with multiplying(self.config.model.precision):
                return inference.maps(self.module, self.variables, windows, **how)

        protocol = self.config.evaluation
        return inference.strips(
            forward, versions, protocol=protocol, size=size, smallest=smallest, what=what
        )

    def classified(
        self, versions: Sequence[np.ndarray], size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Train ids u8[B,h,w] and the probability f32[B,h,w] of each at `size`, on the host."""
        # Handing results out is the purpose here, whatever guards a training step.
        with jax.transfer_guard("allow"):
            parts = [strip.cut() for strip in self.strips(versions, size)]
        ids, confidence = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        return ids, confidence


@dataclass(frozen=True, eq=False)
class Prediction:
    """What `network` sees in `image` RGB u8[H,W,3]: train `ids` u8[H,W] and `confidence` f32[H,W],
    the probability of each pixel's class."""

    network: TrainedNetwork
    image: np.ndarray
    ids: np.ndarray
    confidence: np.ndarray

    @cached_property
    def probabilities(self) -> np.ndarray:
        """f32[H,W,K]; the picture goes through the network once more for them."""
        net, size = self.network, (self.image.shape[0], self.image.shape[1])
        with jax.transfer_guard("allow"):
            strips = net.strips(stacked([net.versions(self.image)], 1), size, "probabilities")
            return np.concatenate([strip.cut()[0] for strip in strips])

    def colour(self) -> np.ndarray:
        """RGB u8[H,W,3]: each pixel in the colour of its class."""
        return colourise(self.ids, self.network.config.data.classes)

    def overlay(self, opacity: float = 0.5, legend: bool = False) -> np.ndarray:
        """RGB u8[H,W,3]: the classes' colours over the picture, `opacity` 0..1 of them; with a
        legend of the classes that are seen, the largest first."""
        return overlay(self.image, self.ids, self.network.config.data.classes, opacity, legend)


def _checked(image: Any, name: str) -> np.ndarray:
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3 or not array.size:
        raise UsageError.at(
            name, f" is {array.dtype}{list(array.shape)}", "give RGB of uint8 as [H, W, 3]."
        )
    return array


def input_box(config: Config) -> tuple[int, int] | None:
    """(long, short) px that pictures are fitted into, as in evaluation, or None."""
    domain = evaluation_domain(config)
    if domain.resize is not None:
        return domain.resize
    return (max(domain.size), min(domain.size)) if domain.kind == "drawn" else None


def stacked(pictures: Sequence[Sequence[np.ndarray]], rows: int) -> tuple[np.ndarray, ...]:
    """Versions u8[rows,H,W,3] of several pictures of equal size, black ones behind them."""
    filled = [*pictures, *[[np.zeros_like(v) for v in pictures[0]]] * (rows - len(pictures))]
    return tuple(np.stack(version) for version in zip(*filled, strict=True))


def on_device(variables: Tree) -> Tree:
    """`variables` on the device: numpy arrays, as a checkpoint gives them, are moved once."""
    if isinstance(jax.tree.leaves(variables)[0], jax.Array):
        return variables
    return jax.device_put(variables)


def spread_rows(variables: Tree, *arrays: np.ndarray) -> tuple[Any, ...]:
    """`arrays` [B,...] spread over the devices of `variables` where B divides evenly."""
    leaves = jax.tree.leaves(variables)
    lying = leaves[0].sharding if leaves and isinstance(leaves[0], jax.Array) else None
    mesh = lying.mesh if isinstance(lying, NamedSharding) else None
    if not isinstance(mesh, Mesh) or len(arrays[0]) % mesh.size:
        return arrays
    rows = over_batch(mesh)
    return tuple(jax.device_put(array, rows) for array in arrays)
