"""From material ids to a picture: colour, texture, shadows, weather, lens and sensor. Labels are
out of reach here.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mrm_jax.data.drawn_canvas import OVERSAMPLING, Canvas, Dice


@dataclass(frozen=True)
class Light:
    """Which of the two exposures; `hidden` scales how much of a camera picture soft patches take
    away.
    """

    camera: bool
    hidden: float = 1.0


def expose(canvas: Canvas, light: Light, rng: np.random.Generator) -> np.ndarray:
    """The picture u8[H,W,3] of a painted canvas."""
    dice = Dice(rng, 256)
    ids = np.ascontiguousarray(canvas.ids[1::OVERSAMPLING, 1::OVERSAMPLING])
    image = _colours(canvas)
    image *= _texture(canvas, ids, rng)[..., None]
    _shadows(image, canvas, ids, 0.45 if light.camera else 0.62)
    if not light.camera:
        image += rng.standard_normal(ids.shape, np.float32)[..., None] * 2.0
        return np.clip(image, 0, 255).astype(np.uint8)
    return _camera(image, canvas, ids, light, dice, rng)


def _colours(canvas: Canvas) -> np.ndarray:
    table = np.clip(canvas.colours, 0, 255).astype(np.uint8)
    painted = cv2.merge([cv2.LUT(canvas.ids, np.ascontiguousarray(table[:, c])) for c in range(3)])
    height, width = canvas.ids.shape
    small = cv2.resize(
        painted, (width // OVERSAMPLING, height // OVERSAMPLING), interpolation=cv2.INTER_AREA
    )
    return small.astype(np.float32)


def _noise(rng: np.random.Generator, size: tuple[int, int], cell: int) -> np.ndarray:
    """Smooth noise f32[H,W] of about unit strength whose grains are `cell` pixels wide."""
    if cell == 1:
        return rng.standard_normal(size, np.float32)
    rows, columns = size[0] // cell + 2, size[1] // cell + 2
    coarse = rng.standard_normal((rows, columns), np.float32)
    grown = cv2.resize(coarse, (columns * cell, rows * cell), interpolation=cv2.INTER_LINEAR)
    return grown[: size[0], : size[1]] * 1.4


def _texture(canvas: Canvas, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    unit = max(1, ids.shape[0] // 96)
    factor = np.ones(ids.shape, np.float32)
    for k, cell in enumerate((1, 3 * unit, 16 * unit)):
        table = np.ascontiguousarray(canvas.textures[:, k])
        factor += cv2.LUT(ids, table) * _noise(rng, ids.shape, cell)
    return np.maximum(factor, 0.3)


def _shadows(image: np.ndarray, canvas: Canvas, ids: np.ndarray, strength: float) -> None:
    mask = np.zeros(ids.shape, np.uint8)
    for points in canvas.shadows:
        cv2.fillPoly(mask, [points // OVERSAMPLING], 255)
    ground = cv2.LUT(ids, (canvas.depths == 0).astype(np.uint8))
    soft = cv2.blur(mask, (3, 3)) * ground
    image *= (1 - soft.astype(np.float32) * (strength / 255))[..., None]


def _camera(
    image: np.ndarray,
    canvas: Canvas,
    ids: np.ndarray,
    light: Light,
    dice: Dice,
    rng: np.random.Generator,
) -> np.ndarray:
    weather = dice.pick(("overcast", "fog", "rain", "dusk", "sun"))
    if weather == "rain":
        _reflect(image, canvas, ids, dice.u(0.2, 0.45))
    _haze(
        image, canvas, ids, dice.u(0.02, 0.05) if weather == "fog" else dice.u(0.002, 0.012), dice
    )
    _patches(image, dice, round(dice.count(4, 8) * light.hidden))
    if weather in ("sun", "dusk"):
        _glare(image, dice)
    if weather == "rain":
        _rain(image, dice)
    image = _lens(image, dice)
    gain = dice.u(0.45, 0.7) if weather == "dusk" else dice.u(0.8, 1.1)
    tint = np.array([dice.u(0.93, 1.07), 1.0, dice.u(0.9, 1.1)], np.float32)
    contrast = dice.u(0.7, 1.0)
    image = (image * contrast + 118 * (1 - contrast)) * (gain * tint)
    sigma = dice.u(4, 9)
    image += rng.standard_normal(image.shape, np.float32) * (0.6 * sigma)
    image += rng.standard_normal(ids.shape, np.float32)[..., None] * (0.7 * sigma)
    return np.clip(image, 0, 255).astype(np.uint8)


def _reflect(image: np.ndarray, canvas: Canvas, ids: np.ndarray, share: float) -> None:
    """Wet ground shows what stands above it, upside down."""
    horizon = int(canvas.camera.horizon / OVERSAMPLING) + 4
    rows = min(image.shape[0] - horizon, horizon)
    mirrored = cv2.blur(image[horizon - rows : horizon][::-1], (3, 9))
    ground = cv2.LUT(ids[horizon : horizon + rows], (canvas.depths == 0).astype(np.float32))
    image[horizon : horizon + rows] += (mirrored - image[horizon : horizon + rows]) * (
        share * ground
    )[..., None]


def _haze(image: np.ndarray, canvas: Canvas, ids: np.ndarray, density: float, dice: Dice) -> None:
    """Air light that grows with distance; the distance of ground follows from its row."""
    camera = canvas.camera
    rows = np.arange(ids.shape[0]) * OVERSAMPLING - camera.horizon
    ground = camera.focal * camera.height / np.maximum(rows, 4)
    depth = cv2.LUT(ids, canvas.depths)
    depth = np.where(depth == 0, ground[:, None].astype(np.float32), depth)
    share = 1 - np.exp(-density * np.minimum(depth, 150))
    bright = dice.u(165, 215)
    air = np.array([bright, bright * dice.u(0.98, 1.03), bright * dice.u(0.95, 1.08)], np.float32)
    image += (air - image) * share[..., None].astype(np.float32)


def _patches(image: np.ndarray, dice: Dice, count: int) -> None:
    """Soft patches that hide what is there: blur, haze, darkness or one flat colour, as dirt and
    light on a lens do.
    """
    height, width = image.shape[:2]
    small = (height // 4, width // 4)
    masks = {kind: np.zeros(small, np.float32) for kind in ("blur", "haze", "dark", "flat")}
    for _ in range(count):
        mask = masks[dice.pick(tuple(masks))]
        centre = (int(dice.u(0, small[1])), int(dice.u(0.1, 1) * small[0]))
        axes = (int(dice.u(0.1, 0.25) * small[0]) + 1, int(dice.u(0.08, 0.2) * small[0]) + 1)
        cv2.ellipse(mask, centre, axes, dice.u(0, 180), 0, 360, dice.u(0.7, 1.0), -1)
    grey = dice.u(120, 200)
    flat = (dice.u(60, 190), dice.u(60, 190), dice.u(60, 190))
    covers = {
        "blur": cv2.blur(image, (height // 8, height // 8)) if masks["blur"].any() else None,
        "haze": np.full(3, grey, np.float32),
        "dark": np.full(3, dice.u(10, 40), np.float32),
        "flat": np.array(flat, np.float32),
    }
    for kind, mask in masks.items():
        cover = covers[kind]
        if cover is None or not mask.any():
            continue
        share = cv2.resize(cv2.blur(mask, (3, 3)), (width, height), interpolation=cv2.INTER_LINEAR)
        image += (cover - image) * share[..., None]


def _glare(image: np.ndarray, dice: Dice) -> None:
    """A low sun or a lamp that washes out its surroundings."""
    height, width = image.shape[:2]
    x, y, radius = dice.u(0, width), dice.u(0.1, 0.6) * height, dice.u(0.25, 0.5) * height
    columns = np.exp(-(((np.arange(width) - x) / radius) ** 2)).astype(np.float32)
    rows = np.exp(-(((np.arange(height) - y) / radius) ** 2)).astype(np.float32)
    colour = np.array([255, dice.u(225, 245), dice.u(180, 225)], np.float32) * dice.u(0.4, 0.8)
    image += (rows[:, None] * columns)[..., None] * colour


def _rain(image: np.ndarray, dice: Dice) -> None:
    """Slanted streaks."""
    height, width = image.shape[:2]
    streaks = np.zeros((height, width), np.float32)
    slant = dice.u(-0.3, 0.3)
    for _ in range(40):
        x, y, length = dice.u(0, width), dice.u(-0.1, 1) * height, dice.u(0.06, 0.14) * height
        end = (int(x + slant * length), int(y + length))
        cv2.line(streaks, (int(x), int(y)), end, dice.u(0.1, 0.3), 1)
    image += (200 - image) * streaks[..., None]


def _lens(image: np.ndarray, dice: Dice) -> np.ndarray:
    """Out of focus, moved, or sharp."""
    unit = image.shape[0] / 96
    kind = dice.pick(("sharp", "soft", "moved"))
    if kind == "soft":
        sigma = dice.u(0.5, 1.0) * unit
        return cv2.GaussianBlur(image, (0, 0), sigma)
    if kind == "moved":
        return cv2.blur(image, (round(3 * unit), 1))
    return image
