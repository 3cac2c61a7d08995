"""What stands still in a drawn scene: sky, ground, house fronts, walls, fences, hedges, and what
lines the kerb.

The same code and the same dice draw both looks; only the `Paint` differs. So layout statistics are
shared.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mrm_jax.data.drawn.canvas import Canvas, Dice, face_quads, spans, wall_quads
from mrm_jax.data.drawn.paint import Paint, shade

FAR = 110.0  # Metres at which the street ends in the background.
NEAR = 1.0
_STEPS = np.linspace(0, 1, 9)


class Street(NamedTuple):
    """Cross-section in metres: x of the two kerbs and of the two lines where lots begin."""

    left: float
    right: float
    left_lot: float
    right_lot: float
    verge: tuple[bool, bool]  # Whether grass lies between pavement and lot, left and right.

    def side(self, sign: int) -> tuple[float, float]:
        """(x of the kerb, x of the lot line) at the left (-1) or right (+1)."""
        return (self.left, self.left_lot) if sign < 0 else (self.right, self.right_lot)


def draw_street(dice: Dice) -> Street:
    """A street's cross-section; the camera drives at x = 0 in the right lane."""
    right, left = dice.u(2.4, 4.6), -dice.u(4.5, 7.5)
    return Street(
        left=left,
        right=right,
        left_lot=left - dice.u(2.6, 6.0),
        right_lot=right + dice.u(2.6, 6.0),
        verge=(dice.chance(0.6), dice.chance(0.6)),
    )


def strip(x0: float, x1: float, z0: float = NEAR, z1: float = FAR) -> np.ndarray:
    """A band of ground f[2n,3] between two x and two z, with enough points to follow the street's
    bend.
    """
    band = np.zeros((2 * len(_STEPS), 3))
    band[: len(_STEPS), 0], band[len(_STEPS) :, 0] = x0, x1
    band[: len(_STEPS), 2] = z0 * (z1 / z0) ** _STEPS
    band[len(_STEPS) :, 2] = band[len(_STEPS) - 1 :: -1, 2]
    return band


def draw_background(canvas: Canvas, paint: Paint, dice: Dice) -> None:
    """Sky with clouds, and a distant skyline of trees or houses on the horizon."""
    height, width = canvas.ids.shape
    horizon = canvas.camera.horizon
    sky = paint.new(canvas, "sky", depth=0.1)
    canvas.ids[:] = sky
    cloud = canvas.material("sky", paint.cloud(sky, canvas), (0.01, 0.05, 0.05), 0.1)
    for _ in range(dice.count(0, 3)):
        x, y, r = dice.u(0, width), dice.u(0, horizon * 0.7), dice.u(0.02, 0.05) * width
        for k in range(4):
            canvas.disc(x + (k - 1.5) * r, y + dice.u(-0.3, 0.3) * r, r * dice.u(0.5, 0.9), cloud)
    kind = dice.pick(("vegetation", "building", "both"))
    if kind != "vegetation":
        for _ in range(7):
            w, h = dice.u(0.05, 0.14) * width, dice.u(0.02, 0.11) * height
            x = dice.u(-0.05, 1) * width
            canvas.bar(x, horizon - h, x + w, horizon + 2, paint.new(canvas, "building", depth=70))
    if kind != "building":
        material = paint.new(canvas, "vegetation", depth=80)
        x = np.linspace(-2, width + 2, 24)
        top = horizon - height * (0.015 + 0.05 * np.array([dice.u() for _ in x]))
        outline = np.concatenate(
            [np.stack([x, top], 1), [[width + 2, horizon + 2], [-2, horizon + 2]]]
        )
        canvas.fill(outline.astype(np.int32)[None], material)


def draw_ground(canvas: Canvas, paint: Paint, dice: Dice, street: Street) -> None:
    """Grass, pavements with kerbs, and the road with its markings."""
    terrain = paint.new(canvas, "terrain")
    canvas.ids[int(canvas.camera.horizon) :] = terrain
    pavement = paint.new(canvas, "sidewalk")
    kerb = canvas.material("sidewalk", shade(paint.colour_of(canvas, pavement), 1.16))
    for sign, verge in zip((-1, 1), street.verge, strict=True):
        inner, lot = street.side(sign)
        outer = inner + sign * dice.u(1.4, 2.2) if verge else lot + sign * 12 * dice.chance(0.4)
        outer = outer if verge else max(abs(outer), abs(lot)) * sign
        canvas.polygons((strip(inner, outer), pavement), (strip(inner, inner + sign * 0.22), kerb))
    road = paint.new(canvas, "road")
    canvas.polygons((strip(street.left, street.right), road))
    _draw_markings(canvas, paint, dice, street, road)


def _draw_markings(canvas: Canvas, paint: Paint, dice: Dice, street: Street, road: int) -> None:
    base = paint.colour_of(canvas, road)
    patch = canvas.material("road", shade(base, dice.u(0.8, 0.92)), paint.texture("road"))
    for _ in range(dice.count(0, 3)):
        x, z = dice.u(street.left + 0.5, street.right - 2), dice.u(4, 25)
        canvas.polygons((strip(x, x + dice.u(0.8, 2.0), z, z + dice.u(1.5, 6)), patch))
    white = canvas.material("road", paint.marking(base), (0.03, 0.05, 0.02))
    middle = (street.left + street.right) / 2 + 0.3
    dash = dice.u(2.0, 3.5)
    dashes = np.arange(dice.u(1.5, 6), 45, 2 * dash + 1)
    lines = [strip(middle - 0.09, middle + 0.09, z, z + dash) for z in dashes]
    canvas.polygons((np.stack(lines), white))
    if dice.chance(0.25):
        z = dice.u(6, 16)
        stripes = [
            strip(x, x + 0.5, z, z + 2.6)
            for x in np.arange(street.left + 0.4, street.right - 0.5, 1.05)
        ]
        canvas.polygons((np.stack(stripes), white))


def draw_lots(canvas: Canvas, paint: Paint, dice: Dice, street: Street) -> None:
    """Both sides from far to near: house fronts, walls, fences, hedges and gaps with trees."""
    for sign in (-1, 1):
        _, lot = street.side(sign)
        segments = []
        z = NEAR
        while z < 75:
            roll = dice.u()
            kind = (
                *("building",) * 7,
                *("wall",) * 5,
                *("fence",) * 5,
                "hedge",
                *("gap",) * 2,
            )[int(roll * 20)]
            length = dice.u(9, 18) if kind == "building" else dice.u(7, 14)
            segments.append((kind, z, z + length))
            z += length
        for kind, z0, z1 in reversed(segments):
            _LOTS[kind](canvas, paint, dice, sign, lot, z0, z1)


def _draw_building(
    canvas: Canvas, paint: Paint, dice: Dice, sign: int, x: float, z0: float, z1: float
) -> None:
    floors = dice.count(2, 5)
    height, storey = floors * 3.0 + dice.u(0.3, 1.2), 3.0
    x += sign * dice.u(0, 1.0)
    depth = (z0 + z1) / 2
    front = paint.new(canvas, "building", depth=depth)
    base = paint.colour_of(canvas, front)
    gable = canvas.material("building", shade(base, 0.78), paint.texture("building"), z0)
    glass = canvas.material("building", paint.glass(), (0.02, 0.06, 0.05), depth)
    trim = canvas.material("building", shade(base, dice.pick((0.7, 1.2))), (0.03, 0.02, 0), depth)
    y = spans(0.5, height - 0.4, storey, dice.u(0.4, 0.55))
    whole, up = np.array([[z0, z1]]), np.array([[0, height]])
    layers = []
    if z0 > NEAR:
        end = x + sign * 14
        layers.append((face_quads(np.array([[x, end]]), up, z0), gable))
        layers.append((face_quads(spans(x, end, sign * 3.2, 0.4), y, z0), glass))
    layers.append((wall_quads(x, whole, up), front))
    layers.append((wall_quads(x, spans(z0, z1, dice.u(2.4, 3.6), dice.u(0.4, 0.6)), y), glass))
    band = [[height - 0.35, height]] if dice.chance(0.6) else [[3.0, 3.25]]
    layers.append((wall_quads(x, whole, np.array(band)), trim))
    if dice.chance(0.5):
        z = dice.u(z0, z1 - 2)
        layers.append((wall_quads(x, np.array([[z, z + 1.4]]), np.array([[0, 2.4]])), trim))
    canvas.polygons(*layers)


def _behind(
    canvas: Canvas, paint: Paint, dice: Dice, sign: int, x: float, z0: float, z1: float
) -> None:
    """Trees and a set-back house behind an enclosure."""
    if dice.chance(0.4):
        _draw_building(canvas, paint, dice, sign, x + sign * dice.u(6, 9), max(z0, 4), z1)
    for _ in range(dice.count(0, 2)):
        draw_tree(canvas, paint, dice, x + sign * dice.u(1.5, 5), max(5, dice.u(z0, z1)))


def _draw_wall(
    canvas: Canvas, paint: Paint, dice: Dice, sign: int, x: float, z0: float, z1: float
) -> None:
    _behind(canvas, paint, dice, sign, x, z0, z1)
    height, depth = dice.u(2.0, 3.6), (z0 + z1) / 2
    wall = paint.new(canvas, "wall", depth=depth)
    base = paint.colour_of(canvas, wall)
    joint = canvas.material("wall", shade(base, 0.84), paint.texture("wall"), depth)
    cap = canvas.material("wall", shade(base, 1.15), paint.texture("wall"), depth)
    whole = np.array([[z0, z1]])
    canvas.polygons(
        (wall_quads(x, whole, np.array([[0, height]])), wall),
        (wall_quads(x, whole, spans(0.1, height - 0.2, 0.65, 0.14)), joint),
        (wall_quads(x, whole, np.array([[height - 0.2, height]])), cap),
    )


def _draw_fence(
    canvas: Canvas, paint: Paint, dice: Dice, sign: int, x: float, z0: float, z1: float
) -> None:
    _behind(canvas, paint, dice, sign, x, z0, z1)
    height, depth = dice.u(1.8, 3.0), (z0 + z1) / 2
    slat = paint.new(canvas, "fence", depth=depth)
    gap = canvas.material(
        "fence", shade(paint.colour_of(canvas, slat), 0.55), paint.texture("fence"), depth
    )
    whole = np.array([[z0, z1]])
    bars = spans(z0, z1, dice.u(0.45, 0.8), 0.55)
    canvas.polygons(
        (wall_quads(x, whole, np.array([[0, height]])), gap),
        (wall_quads(x, bars, np.array([[0.1, height]])), slat),
        (wall_quads(x, whole, np.array([[height * 0.7, height * 0.8]])), slat),
    )


def _draw_hedge(
    canvas: Canvas, paint: Paint, dice: Dice, sign: int, x: float, z0: float, z1: float
) -> None:
    _behind(canvas, paint, dice, sign, x, z0, z1)
    height, depth = dice.u(1.2, 2.2), (z0 + z1) / 2
    leaf = paint.new(canvas, "vegetation", depth=depth)
    canvas.polygons((wall_quads(x, np.array([[z0, z1]]), np.array([[0, height]])), leaf))
    for z in np.arange(max(z0, 3), z1, 1.2):
        column, row, scale = canvas.camera.at(x, height, z)
        canvas.disc(column, row, 0.45 * scale * dice.u(0.7, 1.2), leaf)


def _draw_gap(
    canvas: Canvas, paint: Paint, dice: Dice, sign: int, x: float, z0: float, z1: float
) -> None:
    for _ in range(dice.count(1, 3)):
        draw_tree(canvas, paint, dice, x + sign * dice.u(0.5, 6), max(5, dice.u(z0, z1)))


_LOTS = {
    "building": _draw_building,
    "wall": _draw_wall,
    "fence": _draw_fence,
    "hedge": _draw_hedge,
    "gap": _draw_gap,
}


def draw_tree(canvas: Canvas, paint: Paint, dice: Dice, x: float, z: float) -> None:
    """A trunk and a crown of overlapping discs, lit from above; all of it vegetation."""
    height = dice.u(4.0, 7.5)
    column, foot, scale = canvas.camera.at(x, 0, z)
    trunk = canvas.material("vegetation", paint.bark(), (0.08, 0.05, 0), z)
    leaf = paint.new(canvas, "vegetation", depth=z)
    base = paint.colour_of(canvas, leaf)
    dark = canvas.material("vegetation", shade(base, 0.72), paint.texture("vegetation"), z)
    light = canvas.material("vegetation", shade(base, 1.2), paint.texture("vegetation"), z)
    canvas.bar(
        column - 0.16 * scale, foot - height * 0.6 * scale, column + 0.16 * scale, foot, trunk
    )
    crown, spread = foot - height * 0.72 * scale, height * 0.26 * scale
    for material, shift in ((dark, 0.25), (leaf, 0.0), (light, -0.3)):
        for _ in range(4):
            angle = dice.u(0, 2 * math.pi)
            canvas.disc(
                column + spread * 0.75 * math.cos(angle),
                crown + spread * (shift + 0.55 * math.sin(angle)),
                spread * dice.u(0.4, 0.65) * (0.7 if material == light else 1.0),
                material,
            )


def draw_lamp(canvas: Canvas, paint: Paint, dice: Dice, x: float, z: float, sign: int) -> None:
    """A lamp post with an arm over the road; pole."""
    column, foot, scale = canvas.camera.at(x, 0, z)
    pole = paint.new(canvas, "pole", depth=z)
    height, half = dice.u(4.5, 7.5) * scale, max(2.0, 0.16 * scale)
    canvas.bar(column - half, foot - height, column + half, foot, pole)
    if dice.chance(0.7):
        arm = -sign * dice.u(1.0, 2.2) * scale
        canvas.stroke((column, foot - height), (column + arm, foot - height), 1.4 * half, pole)


def draw_sign(canvas: Canvas, paint: Paint, dice: Dice, x: float, z: float) -> None:
    """A traffic sign on its pole: disc, triangle, square or board."""
    column, foot, scale = canvas.camera.at(x, 0, z)
    pole = paint.new(canvas, "pole", depth=z)
    half = max(2.0, 0.08 * scale)
    r = dice.u(0.56, 0.8) * scale
    centre = foot - dice.u(2.3, 2.9) * scale
    canvas.bar(column - half, centre, column + half, foot, pole)
    plate = paint.new(canvas, "sign", depth=z)
    inner = canvas.material("sign", paint.symbol(), (0.02, 0.02, 0), z)
    kind = dice.pick(("disc", "triangle", "square", "board"))
    if kind == "disc":
        canvas.disc(column, centre, r, plate)
        canvas.disc(column, centre, r * 0.55, inner)
    elif kind == "triangle":
        for size, material in ((1.25, plate), (0.6, inner)):
            top, foot_row = centre - r * size, centre + r * size * 0.75
            canvas.shape(
                [(column, top), (column + r * size, foot_row), (column - r * size, foot_row)],
                material,
            )
    else:
        wide = r * (1.7 if kind == "board" else 0.9)
        canvas.bar(column - wide, centre - r * 0.9, column + wide, centre + r * 0.9, plate)
        canvas.bar(
            column - wide * 0.6, centre - r * 0.3, column + wide * 0.6, centre + r * 0.3, inner
        )


def draw_light(canvas: Canvas, paint: Paint, dice: Dice, x: float, z: float, sign: int) -> None:
    """Traffic lights on their pole, some on an arm over the road."""
    column, foot, scale = canvas.camera.at(x, 0, z)
    pole = paint.new(canvas, "pole", depth=z)
    half, top = max(2.0, 0.09 * scale), dice.u(3.3, 4.0)
    canvas.bar(column - half, foot - top * scale, column + half, foot, pole)
    places = [(column, foot - (top - 0.5) * scale)]
    if dice.chance(0.4):
        end = column - sign * dice.u(1.8, 3.0) * scale
        row = foot - (top + 0.6) * scale
        canvas.bar(column - half, row, column + half, foot, pole)
        canvas.stroke((column, row), (end, row), 1.6 * half, pole)
        places.append((end, row + 0.4 * scale))
    lit = dice.count(0, 2)
    box = paint.new(canvas, "light", depth=z)
    lamps = [canvas.material("light", colour, (0.02, 0, 0), z) for colour in paint.lamps(lit)]
    for x0, y0 in places:
        w, h = 0.42 * scale, 1.0 * scale
        canvas.bar(x0 - w, y0 - h, x0 + w, y0 + h, box)
        for k, lamp in enumerate(lamps):
            canvas.disc(x0, y0 + (k - 1) * 0.62 * scale, 0.26 * scale, lamp)
