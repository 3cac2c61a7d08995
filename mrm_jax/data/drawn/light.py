"""From material ids to a picture: colour, texture, shadows, weather, lens and sensor. Labels are
out of reach here.
"""

from __future__ import annotations

import cv2
import numpy as np

from mrm_jax.data.drawn.canvas import GROUND_DEPTH, OVERSAMPLING, Canvas, Dice

PATCHES = 5.0
"""Mean number of soft patches on a camera picture."""

HARSHNESS = 0.35
"""Scale of the camera's haze, glare, darkness, loss of contrast, noise and blur."""


def expose(canvas: Canvas, rng: np.random.Generator, *, camera: bool) -> np.ndarray:
    """The picture u8[H,W,3] of a painted canvas, in camera light or in the rendered look's."""
    dice = Dice(rng, 256)
    ids = np.ascontiguousarray(canvas.ids[1::OVERSAMPLING, 1::OVERSAMPLING])
    # Planes f32[3,H,W]: numpy multiplies a plane by a map at full speed, pixels of three numbers
    # not.
    planes = _colours(canvas)
    planes *= _texture(canvas, ids, rng)
    _shadows(planes, canvas, ids, 0.45 if camera else 0.6)
    if camera:
        planes = _camera(planes, canvas, ids, dice, rng)
    else:
        planes += _grain(rng, ids.shape) * 2.0
    np.clip(planes, 0, 255, out=planes)
    return cv2.merge(list(planes.astype(np.uint8)))


def _colours(canvas: Canvas) -> np.ndarray:
    table = np.clip(canvas.table(canvas.colours, np.float32), 0, 255).astype(np.uint8)
    height, width = (side // OVERSAMPLING for side in canvas.ids.shape)
    planes = np.empty((3, height, width), np.float32)
    for c in range(3):
        painted = cv2.LUT(canvas.ids, np.ascontiguousarray(table[:, c]))
        planes[c] = cv2.resize(painted, (width, height), interpolation=cv2.INTER_AREA)
    return planes


def _grain(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Independent noise f32 of unit strength: the sum of two bytes, a fifth of the price of normal
    numbers.
    """
    count = int(np.prod(shape))
    pairs = np.frombuffer(rng.bytes(2 * count), np.uint8).reshape(2, *shape)
    noise = pairs[0].astype(np.float32)
    noise += pairs[1]
    noise -= 255.0
    noise *= 1 / 104.5  # The standard deviation of the sum of two bytes.
    return noise


def _noise(rng: np.random.Generator, size: tuple[int, int], cell: int) -> np.ndarray:
    """Smooth noise f32[H,W] of about unit strength whose grains are `cell` pixels wide."""
    if cell == 1:
        return _grain(rng, size)
    rows, columns = size[0] // cell + 2, size[1] // cell + 2
    coarse = _grain(rng, (rows, columns)) * 1.4
    grown = cv2.resize(coarse, (columns * cell, rows * cell), interpolation=cv2.INTER_LINEAR)
    return grown[: size[0], : size[1]]


def _texture(canvas: Canvas, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    unit = max(1, ids.shape[0] // 96)
    factor = np.ones(ids.shape, np.float32)
    tables = canvas.table(canvas.textures, np.float32)
    for k, cell in enumerate((1, 3 * unit, 16 * unit)):
        table = np.ascontiguousarray(tables[:, k])
        factor += cv2.LUT(ids, table) * _noise(rng, ids.shape, cell)
    return np.maximum(factor, 0.3)


def _ground(canvas: Canvas, ids: np.ndarray) -> np.ndarray:
    """f32[H,W]: 1 where the ground lies open."""
    depths = canvas.table(canvas.depths, np.float32)
    return cv2.LUT(ids, (depths == GROUND_DEPTH).astype(np.float32))


def _shadows(planes: np.ndarray, canvas: Canvas, ids: np.ndarray, strength: float) -> None:
    mask = np.zeros(ids.shape, np.uint8)
    for points in canvas.shadows:
        cv2.fillPoly(mask, [points // OVERSAMPLING], 255)
    soft = cv2.blur(mask, (3, 3)).astype(np.float32)
    planes *= 1 - soft * (_ground(canvas, ids) * (strength / 255))


def _camera(
    planes: np.ndarray,
    canvas: Canvas,
    ids: np.ndarray,
    dice: Dice,
    rng: np.random.Generator,
) -> np.ndarray:
    weather = dice.pick(("overcast", "fog", "rain", "dusk", "sun"))
    if weather == "rain":
        _reflect(planes, canvas, ids, dice.u(0.2, 0.45))
    density = dice.u(0.02, 0.045) if weather == "fog" else dice.u(0.002, 0.012)
    _haze(planes, canvas, ids, HARSHNESS * density, dice)
    _patches(planes, dice, round(dice.u(0.6, 1.4) * PATCHES))
    if weather in ("sun", "dusk"):
        _glare(planes, dice)
    if weather == "rain":
        _rain(planes, dice)
    planes = _lens(planes, dice)
    gain = 1 - HARSHNESS * dice.u(0.3, 0.5) if weather == "dusk" else dice.u(0.9, 1.1)
    contrast = 1 - HARSHNESS * dice.u(0, 0.3)
    tint = np.array([dice.u(0.93, 1.07), 1.0, dice.u(0.9, 1.1)], np.float32) * gain
    planes *= (contrast * tint)[:, None, None]
    planes += (118 * (1 - contrast) * tint)[:, None, None]
    sigma = HARSHNESS * dice.u(4, 9)
    grain = _grain(rng, ids.shape) * sigma
    for shift, plane in enumerate(planes):
        # Grey noise with some colour: every channel shares a part of it and has another, moved, for
        # its own. The shifts are far from any texture's size.
        plane += 0.75 * grain
        plane += 0.6 * np.roll(grain, (17 + 13 * shift, 31 + 29 * shift), (0, 1))
    return planes


def _cover(planes: np.ndarray, colour: tuple[float, float, float], share: np.ndarray) -> None:
    """Lays `share` f32[H,W] of one colour over the picture."""
    planes *= 1 - share
    for plane, value in zip(planes, colour, strict=True):
        plane += share * value


def _reflect(planes: np.ndarray, canvas: Canvas, ids: np.ndarray, share: float) -> None:
    """Wet ground shows what stands above it, upside down."""
    horizon = int(canvas.camera.horizon / OVERSAMPLING) + 4
    rows = min(planes.shape[1] - horizon, horizon)
    here = slice(horizon, horizon + rows)
    weight = _ground(canvas, ids)[here] * share
    for plane in planes:
        mirrored = cv2.blur(np.ascontiguousarray(plane[horizon - rows : horizon][::-1]), (3, 9))
        plane[here] += (mirrored - plane[here]) * weight


def _haze(planes: np.ndarray, canvas: Canvas, ids: np.ndarray, density: float, dice: Dice) -> None:
    """Air light that grows with distance; the distance of ground follows from its row."""
    camera = canvas.camera
    rows = np.arange(ids.shape[0]) * OVERSAMPLING - camera.horizon
    ground = np.minimum(camera.focal * camera.height / np.maximum(rows, 4), 150)
    near = (1 - np.exp(-density * ground)).astype(np.float32)
    depths = canvas.table(canvas.depths, np.float32)
    share = cv2.LUT(ids, 1 - np.exp(-density * depths))
    share += near[:, None] * _ground(canvas, ids)
    bright = dice.u(165, 215)
    _cover(planes, (bright, bright * dice.u(0.98, 1.03), bright * dice.u(0.95, 1.08)), share)


def _patches(planes: np.ndarray, dice: Dice, count: int) -> None:
    """Soft patches that hide what is there: blur, haze, darkness or dirt, as wet and dirty lenses
    do.
    """
    height, width = planes.shape[1:]
    small = (height // 4, width // 4)
    masks: dict[str, np.ndarray] = {}
    for _ in range(count):
        kind = dice.pick(("blur", "blur", "blur", "haze", "haze", "dark", "dirt", "dirt"))
        mask = masks.setdefault(kind, np.zeros(small, np.float32))
        x, y, strength = dice.u(0, small[1]), dice.u(0.15, 1) * small[0], dice.u(0.75, 1.0)
        for _ in range(2):
            axes = (int(dice.u(0.09, 0.22) * small[0]) + 1, int(dice.u(0.06, 0.16) * small[0]) + 1)
            centre = (int(x + dice.u(-0.1, 0.1) * small[0]), int(y + dice.u(-0.1, 0.1) * small[0]))
            cv2.ellipse(mask, centre, axes, dice.u(0, 180), 0, 360, strength, -1)
    brown, grey, dark = dice.u(70, 150), dice.u(130, 200), dice.u(15, 50)
    colours = {
        "haze": (grey, grey, grey),
        "dark": (dark, dark, dark),
        "dirt": (brown, brown * dice.u(0.86, 0.98), brown * dice.u(0.7, 0.95)),
    }
    for kind in ("blur", *colours):
        if kind not in masks:
            continue
        soft = cv2.GaussianBlur(masks[kind], (5, 5), 0)
        share = cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR)
        if kind == "blur":
            for plane in planes:
                plane += (cv2.blur(plane, (height // 7, height // 7)) - plane) * share
        else:
            _cover(planes, colours[kind], share)


def _glare(planes: np.ndarray, dice: Dice) -> None:
    """A low sun or a lamp that washes out its surroundings."""
    height, width = planes.shape[1:]
    x, y, radius = dice.u(0, width), dice.u(0.1, 0.6) * height, dice.u(0.25, 0.5) * height
    columns = np.exp(-(((np.arange(width) - x) / radius) ** 2)).astype(np.float32)
    rows = np.exp(-(((np.arange(height) - y) / radius) ** 2)).astype(np.float32)
    strength = HARSHNESS * dice.u(0.4, 0.9)
    for plane, value in zip(planes, (255, dice.u(225, 245), dice.u(180, 225)), strict=True):
        plane += (rows * strength * value)[:, None] * columns


def _rain(planes: np.ndarray, dice: Dice) -> None:
    """Slanted streaks."""
    height, width = planes.shape[1:]
    streaks = np.zeros((height, width), np.float32)
    slant = dice.u(-0.3, 0.3)
    for _ in range(40):
        x, y, length = dice.u(0, width), dice.u(-0.1, 1) * height, dice.u(0.06, 0.14) * height
        end = (int(x + slant * length), int(y + length))
        cv2.line(streaks, (int(x), int(y)), end, dice.u(0.1, 0.3), 1)
    _cover(planes, (200, 200, 200), streaks)


def _lens(planes: np.ndarray, dice: Dice) -> np.ndarray:
    """Out of focus, moved, or sharp."""
    unit = planes.shape[1] / 96
    kind = dice.pick(("sharp", "soft", "moved"))
    if kind == "sharp":
        return planes
    sigma, width = HARSHNESS * dice.u(0.6, 1.1) * unit, round(3 * unit)
    for k in range(3):
        soft = (
            cv2.GaussianBlur(planes[k], (0, 0), sigma)
            if kind == "soft"
            else cv2.blur(planes[k], (width, 1))
        )
        planes[k] = soft
    return planes
