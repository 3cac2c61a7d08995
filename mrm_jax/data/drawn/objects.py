"""What moves in a drawn scene: cars, lorries, buses, people, cyclists and bicycles, each at a place
on the street.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mrm_jax.data.drawn.canvas import Canvas, Dice, face_quads, spans, wall_quads
from mrm_jax.data.drawn.paint import Paint, shade


class Vehicle(NamedTuple):
    """Metres. `body`, `roof`: heights of the belt line and of the top; `inset`: how far the cabin's
    front leans back.
    """

    name: str
    width: float
    length: float
    body: float
    roof: float
    inset: float


CAR = Vehicle("car", 1.85, 4.3, 0.95, 1.55, 0.55)
BUS = Vehicle("bus", 2.5, 10.0, 1.3, 3.2, 0.0)
TRUCK = Vehicle("truck", 2.5, 7.5, 1.0, 3.4, 0.0)
CAB_LENGTH, CAB_ROOF = 2.0, 2.5
Layers = list[tuple[np.ndarray, int]]


def shadow(canvas: Canvas, x0: float, x1: float, z0: float, z1: float) -> None:
    """Remembers a patch of ground that lies in shadow; drawn with the light, on ground materials
    only.
    """
    corners = np.array([[x0, 0, z0], [x1, 0, z0], [x1, 0, z1], [x0, 0, z1]], float)
    canvas.shadows.append(canvas.camera.project(corners))


def draw_vehicle(
    canvas: Canvas, paint: Paint, dice: Dice, kind: Vehicle, x: float, z: float, oncoming: bool
) -> None:
    """A vehicle whose near end stands at (x, z): first the side that shows, then the end that faces
    us.
    """
    shadow(canvas, x - kind.width * 0.58, x + kind.width * 0.58, z - 0.4, z + kind.length + 0.3)
    body = paint.new(canvas, kind.name, depth=z)
    base = paint.colour_of(canvas, body)
    parts = {
        "body": body,
        "side": canvas.material(kind.name, shade(base, 0.8), paint.texture(kind.name), z),
        "glass": canvas.material(kind.name, paint.windscreen(), (0.02, 0.03, 0.02), z),
        "dark": canvas.material(kind.name, (38, 38, 40), (0.03, 0.02, 0), z),
        "lamp": canvas.material(
            kind.name, (255, 244, 200) if oncoming else (210, 40, 36), (0.02, 0, 0), z
        ),
    }
    half = kind.width / 2
    inner = x + half if x + half < 0 else x - half if x - half > 0 else None
    if kind is TRUCK:
        layers = _truck(parts, x, z, inner, oncoming)
    else:
        side = [] if inner is None else _side(parts, kind, inner, z, oncoming)
        layers = [*side, *(_car_end if kind is CAR else _bus_end)(parts, kind, x, z, oncoming)]
    canvas.polygons(*layers)


def _plane(
    x: float, outline: list[tuple[float, float]], z: float, length: float, flip: bool
) -> np.ndarray:
    """A polygon f[P,3] in the plane of one x, from (share of the length, height) pairs."""
    return np.array([[x, y, z + length * (1 - t if flip else t)] for t, y in outline])


_RING = np.linspace(0, 2 * math.pi, 11)[:-1]
_RING = np.stack([np.zeros(10), 1 + np.sin(_RING), np.cos(_RING)], 1)


def _wheels(x: float, z: float, length: float, radius: float) -> np.ndarray:
    """Two wheels f[2,10,3] on the side of a vehicle."""
    rings = np.stack([_RING, _RING]) * radius
    rings[..., 0] = x
    rings[0, :, 2] += z + 0.19 * length
    rings[1, :, 2] += z + 0.81 * length
    return rings


def _side(parts: dict[str, int], kind: Vehicle, x: float, z: float, oncoming: bool) -> Layers:
    length, flip = kind.length, oncoming
    if kind is CAR:
        roof, belt = kind.roof, kind.body
        hull = [(0, 0.3), (0, 0.85), (0.05, belt), (0.17, roof), (0.6, roof), (0.77, belt)]
        hull += [(0.98, 0.8), (1, 0.3)]
        pane = [(0.1, belt), (0.19, roof - 0.1), (0.57, roof - 0.1), (0.71, belt)]
        return [
            (_plane(x, hull, z, length, flip), parts["side"]),
            (_plane(x, pane, z, length, flip), parts["glass"]),
            (_wheels(x, z, length, 0.34), parts["dark"]),
        ]
    whole, panes = np.array([[z, z + length]]), spans(z + 0.4, z + length - 0.4, 1.6, 0.8)
    return [
        (wall_quads(x, whole, np.array([[0.3, kind.roof]])), parts["side"]),
        (wall_quads(x, panes, np.array([[kind.body, kind.roof - 0.45]])), parts["glass"]),
        (_wheels(x, z, length, 0.48), parts["dark"]),
    ]


def _pair(x: float, half: float, inset: float, width: float) -> np.ndarray:
    """f[2,2]: two spans of `width` at the left and right of a vehicle, `inset` from its edges."""
    outer = half - inset
    return np.array([[x - outer, x - outer + width], [x + outer - width, x + outer]])


def _car_end(parts: dict[str, int], kind: Vehicle, x: float, z: float, _: bool) -> Layers:
    half, near, top, belt = kind.width / 2, z + kind.inset, kind.roof, kind.body
    cabin = [[x - half * 0.92, belt, near], [x - half * 0.72, top, near + 0.2]]
    cabin += [[x + half * 0.72, top, near + 0.2], [x + half * 0.92, belt, near]]
    pane = [[x - half * 0.8, belt, near], [x - half * 0.65, top - 0.1, near + 0.1]]
    pane += [[x + half * 0.65, top - 0.1, near + 0.1], [x + half * 0.8, belt, near]]
    hull = np.array([[x - half, x + half]])
    return [
        (face_quads(_pair(x, half, 0, 0.3), np.array([[0, 0.4]]), z), parts["dark"]),
        (np.array(cabin), parts["body"]),
        (np.array(pane), parts["glass"]),
        (face_quads(hull, np.array([[0.28, belt]]), z), parts["body"]),
        (face_quads(hull, np.array([[0.28, 0.42]]), z), parts["dark"]),
        (face_quads(_pair(x, half, 0.08, 0.37), np.array([[0.6, 0.8]]), z), parts["lamp"]),
    ]


def _bus_end(parts: dict[str, int], kind: Vehicle, x: float, z: float, oncoming: bool) -> Layers:
    half = kind.width / 2
    hull = np.array([[x - half, x + half]])
    pane = np.array([[1.1 if oncoming else 1.7, kind.roof - 0.4]])
    return [
        (face_quads(_pair(x, half, 0, 0.3), np.array([[0, 0.4]]), z), parts["dark"]),
        (face_quads(hull, np.array([[0.3, kind.roof]]), z), parts["body"]),
        (face_quads(hull + [[0.15, -0.15]], pane, z), parts["glass"]),
        (face_quads(_pair(x, half, 0.08, 0.37), np.array([[0.6, 0.9]]), z), parts["lamp"]),
    ]


def _truck(
    parts: dict[str, int], x: float, z: float, inner: float | None, oncoming: bool
) -> Layers:
    """A box behind a cab: going our way the box is near, coming towards us the cab is."""
    length, half = TRUCK.length, TRUCK.width / 2
    box_z = (z + CAB_LENGTH, z + length) if oncoming else (z, z + length - CAB_LENGTH)
    cab_z = (z, z + CAB_LENGTH) if oncoming else (z + length - CAB_LENGTH, z + length)
    hull, box_y = np.array([[x - half, x + half]]), np.array([[0.7, TRUCK.roof]])
    layers: Layers = []
    if inner is not None:
        pane = np.array([[cab_z[0] + 0.4, cab_z[1] - 0.4]])
        layers = [
            (wall_quads(inner, np.array([cab_z]), np.array([[0.4, CAB_ROOF]])), parts["side"]),
            (wall_quads(inner, pane, np.array([[1.4, 2.2]])), parts["glass"]),
            (wall_quads(inner, np.array([box_z]), box_y), parts["side"]),
        ]
    layers.append((face_quads(hull, box_y, box_z[0]), parts["body"]))
    if oncoming:
        pane = hull + [[0.2, -0.2]]
        layers.append((face_quads(hull, np.array([[0.4, CAB_ROOF]]), z), parts["side"]))
        layers.append((face_quads(pane, np.array([[1.35, 2.25]]), z), parts["glass"]))
    else:
        split = np.array([[x - 0.05, x + 0.05]])
        layers.append((face_quads(split, np.array([[0.8, TRUCK.roof - 0.1]]), z), parts["side"]))
    if inner is not None:
        layers.append((_wheels(inner, z, length, 0.5), parts["dark"]))
    lamps = face_quads(_pair(x, half, 0.1, 0.4), np.array([[0.7, 0.95]]), z)
    tyres = face_quads(_pair(x, half, 0, 0.4), np.array([[0, 0.7]]), z)
    return [*layers, (tyres, parts["dark"]), (lamps, parts["lamp"])]


def draw_person(canvas: Canvas, paint: Paint, dice: Dice, x: float, z: float) -> None:
    """Somebody standing or walking."""
    column, foot, scale = canvas.camera.at(x, 0, z)
    shadow(canvas, x - 0.35, x + 0.35, z - 0.3, z + 0.3)
    m = scale * dice.u(1.05, 1.25)
    coat = paint.new(canvas, "person", depth=z)
    legs = canvas.material("person", paint.trousers(), (0.03, 0.02, 0), z)
    skin = canvas.material("person", paint.skin(), (0.02, 0, 0), z)
    stride, hip, neck = dice.u(0.06, 0.3) * m, foot - 0.85 * m, foot - 1.42 * m
    for side in (-1, 1):
        canvas.stroke(
            (column + side * 0.08 * m, hip), (column + side * stride, foot), 0.19 * m, legs
        )
        hand = column + side * (0.3 * m + 0.3 * stride)
        canvas.stroke((column + side * 0.22 * m, neck + 0.1 * m), (hand, hip), 0.14 * m, coat)
    canvas.shape(
        [
            (column - 0.26 * m, neck),
            (column + 0.26 * m, neck),
            (column + 0.21 * m, hip + 0.1 * m),
            (column - 0.21 * m, hip + 0.1 * m),
        ],
        coat,
    )
    canvas.disc(column, neck - 0.17 * m, 0.15 * m, skin)


def draw_bicycle(
    canvas: Canvas, paint: Paint, dice: Dice, x: float, z: float, *, rider: bool
) -> None:
    """A bicycle seen from the side, with somebody on it or leaning somewhere."""
    column, foot, scale = canvas.camera.at(x, 0, z)
    m, way = scale * 1.25, dice.pick((-1, 1))
    shadow(canvas, x - 0.8, x + 0.8, z - 0.25, z + 0.25)
    frame = paint.new(canvas, "bicycle", depth=z)
    base = paint.colour_of(canvas, frame)
    spokes = canvas.material("bicycle", shade(base, 1.5), (0.06, 0.04, 0), z)
    hub = foot - 0.36 * m
    for side in (-1, 1):
        canvas.disc(column + side * 0.55 * m, hub, 0.36 * m, frame)
        canvas.disc(column + side * 0.55 * m, hub, 0.25 * m, spokes)
    rear, front, crank = column - way * 0.55 * m, column + way * 0.55 * m, column - way * 0.05 * m
    saddle, bar = (
        (column - way * 0.2 * m, foot - 0.95 * m),
        (column + way * 0.4 * m, foot - 1.05 * m),
    )
    width = max(2.0, 0.09 * m)
    for start, end in (
        ((rear, hub), saddle),
        (saddle, bar),
        (bar, (front, hub)),
        ((crank, hub), saddle),
        ((crank, hub), bar),
        ((rear, hub), (crank, hub)),
    ):
        canvas.stroke(start, end, width, frame)
    if rider:
        _draw_rider(canvas, paint, z, m, (crank, hub), saddle, bar, way)


def _draw_rider(
    canvas: Canvas,
    paint: Paint,
    z: float,
    m: float,
    crank: tuple[float, float],
    saddle: tuple[float, float],
    bar: tuple[float, float],
    way: int,
) -> None:
    coat = paint.new(canvas, "rider", depth=z)
    legs = canvas.material("rider", paint.trousers(), (0.03, 0.02, 0), z)
    skin = canvas.material("rider", paint.skin(), (0.02, 0, 0), z)
    knee = (crank[0] + way * 0.3 * m, (crank[1] + saddle[1]) / 2 - 0.05 * m)
    canvas.stroke(saddle, knee, 0.22 * m, legs)
    canvas.stroke(knee, (crank[0], crank[1] + 0.1 * m), 0.17 * m, legs)
    shoulder = (saddle[0] + way * 0.22 * m, saddle[1] - 0.52 * m)
    canvas.stroke((saddle[0], saddle[1] - 0.05 * m), shoulder, 0.38 * m, coat)
    canvas.stroke(shoulder, bar, 0.13 * m, coat)
    canvas.disc(shoulder[0] + way * 0.06 * m, shoulder[1] - 0.32 * m, 0.17 * m, skin)
