"""The sheet that drawn scenes are painted on: a map of material ids, a perspective camera and a
stream of dice.

A pixel holds one material id; its class, colour, texture and distance follow by table. So a label
can never disagree with what was painted, and all later light, weather and blur touch the picture
alone. Painted at twice the size: the picture is averaged down (smooth edges), the label takes one
of every four pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

from mrm_jax.data.labels import DRAWN

OVERSAMPLING = 2
CLASS = {name: i for i, name in enumerate(DRAWN.names)}
# Depth of a material that lies on the ground: its distance follows from the row.
GROUND_DEPTH = 0.0
Colour = tuple[float, float, float]
Texture = tuple[float, float, float]


class Dice:
    """Uniform numbers of a numpy generator, handed out one at a time: ten times cheaper than asking
    it for each.
    """

    def __init__(self, rng: np.random.Generator, block: int = 1024) -> None:
        self._rng, self._block = rng, block
        self._numbers: list[float] = []

    def u(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number uniform in [low, high)."""
        if not self._numbers:
            self._numbers = self._rng.random(self._block).tolist()
        return low + (high - low) * self._numbers.pop()

    def chance(self, probability: float) -> bool:
        """True with that probability."""
        return self.u() < probability

    def pick(self, choices):
        """One of a sequence, each equally likely."""
        return choices[int(self.u(0, len(choices)))]

    def count(self, low: int, high: int) -> int:
        """An integer in low..high, both included."""
        return int(self.u(low, high + 1))


class Camera(NamedTuple):
    """A pinhole camera above a flat street. Metres: x to the right, y up from the ground, z ahead;
    painted pixels out.
    """

    focal: float
    centre: float
    horizon: float
    height: float
    curve: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """i32[...,2] pixel (column, row) of f[...,3] points; the street bends by `curve` * z**2."""
        z = points[..., 2]
        scale = self.focal / z
        out = np.empty((*points.shape[:-1], 2), np.int32)
        out[..., 0] = points[..., 0] * scale + (z * (self.curve * self.focal) + self.centre)
        out[..., 1] = (self.height - points[..., 1]) * scale + self.horizon
        return out

    def at(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        """(column, row, pixels a metre) of one point."""
        scale = self.focal / z
        return (
            self.centre + (x + self.curve * z * z) * scale,
            self.horizon + (self.height - y) * scale,
            scale,
        )


@dataclass
class Canvas:
    """Material ids u8[2H,2W] and their tables; entry k of every list belongs to id k."""

    ids: np.ndarray
    camera: Camera
    classes: list[int] = field(default_factory=list)
    colours: list[Colour] = field(default_factory=list)
    textures: list[Texture] = field(default_factory=list)
    depths: list[float] = field(default_factory=list)
    shadows: list[np.ndarray] = field(default_factory=list)

    def material(
        self,
        name: str,
        colour: Colour,
        texture: Texture = (0.03, 0.02, 0.0),
        depth: float = GROUND_DEPTH,
    ) -> int:
        """A new id: class name, RGB 0..255, relative strength of fine, middle and coarse texture,
        distance in metres.

        The 256th material and all after it share an id with the last one of their class.
        """
        number = CLASS[name]
        if len(self.classes) == 256:
            return 255 - self.classes[::-1].index(number)
        self.classes.append(number)
        self.colours.append(colour)
        self.textures.append(texture)
        self.depths.append(depth)
        return len(self.classes) - 1

    def table(self, values: list, dtype: type) -> np.ndarray:
        """256 entries of `dtype` for cv2.LUT: one of the lists, filled up with zeros."""
        out = np.zeros((256, *np.shape(values[0])), dtype)
        out[: len(values)] = values
        return out

    def polygons(self, *layers: tuple[np.ndarray, int]) -> None:
        """Fills layers of (world polygons f[N,P,3] or one f[P,3], material), first ones lowest.

        All are projected at once: half of the time of a scene is the cost of calling numpy.
        """
        flat = [points.reshape(-1, 3) for points, _ in layers]
        projected = self.camera.project(np.concatenate(flat) if len(flat) > 1 else flat[0])
        start = 0
        for points, material in layers:
            count = points.size // 3
            part = projected[start : start + count].reshape(-1, points.shape[-2], 2)
            cv2.fillPoly(self.ids, list(part), material)
            start += count

    def fill(self, points: np.ndarray, material: int) -> None:
        """Fills pixel polygons i32[N,P,2]; polygons of one call must not overlap."""
        cv2.fillPoly(self.ids, list(points), material)

    def shape(self, points: list[tuple[float, float]], material: int) -> None:
        """Fills one polygon of pixel (column, row) pairs."""
        cv2.fillPoly(self.ids, [np.array(points, np.int32)], material)

    def bar(self, x0: float, y0: float, x1: float, y1: float, material: int) -> None:
        """Fills an upright pixel rectangle, at least one painted pixel wide and high."""
        cv2.rectangle(
            self.ids,
            (int(x0), int(y0)),
            (max(int(x0), int(x1) - 1), max(int(y0), int(y1) - 1)),
            material,
            -1,
        )

    def stroke(
        self, start: tuple[float, float], end: tuple[float, float], width: float, material: int
    ) -> None:
        """A line of `width` painted pixels."""
        cv2.line(
            self.ids,
            (int(start[0]), int(start[1])),
            (int(end[0]), int(end[1])),
            material,
            max(1, round(width)),
        )

    def disc(self, x: float, y: float, radius: float, material: int) -> None:
        """A filled circle."""
        cv2.circle(self.ids, (int(x), int(y)), max(1, round(radius)), material, -1)


def wall_quads(x: float, z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """f[N*M,4,3]: rectangles in the plane of one x, for N spans z[N,2] and M spans y[M,2]."""
    n, m = len(z), len(y)
    out = np.empty((n, m, 4, 3))
    out[..., 0] = x
    out[..., 0, 1] = out[..., 3, 1] = y[None, :, 0]
    out[..., 1, 1] = out[..., 2, 1] = y[None, :, 1]
    out[..., 0, 2] = out[..., 1, 2] = z[:, None, 0]
    out[..., 2, 2] = out[..., 3, 2] = z[:, None, 1]
    return out.reshape(n * m, 4, 3)


def face_quads(x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
    """f[N*M,4,3]: rectangles facing the camera at distance z, for N spans x[N,2] and M spans
    y[M,2].
    """
    n, m = len(x), len(y)
    out = np.empty((n, m, 4, 3))
    out[..., 2] = z
    out[..., 0, 1] = out[..., 3, 1] = y[None, :, 0]
    out[..., 1, 1] = out[..., 2, 1] = y[None, :, 1]
    out[..., 0, 0] = out[..., 1, 0] = x[:, None, 0]
    out[..., 2, 0] = out[..., 3, 0] = x[:, None, 1]
    return out.reshape(n * m, 4, 3)


def spans(start: float, end: float, pitch: float, share: float) -> np.ndarray:
    """f[N,2]: as many equal spans as fit between start and end at about `pitch`, each filling
    `share` of its cell.
    """
    n = max(1, round((end - start) / pitch))
    cell = (end - start) / n
    left = start + cell * (np.arange(n) + (1 - share) / 2)
    return np.stack([left, left + cell * share], axis=1)
