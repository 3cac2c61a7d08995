"""Colours and textures of the two looks. "rendered" is tidy: saturated hues and clean surfaces.
"camera" is faded and rough: road, pavement, wall and house are nearly one stone, leaves are
autumnal, clothes and vehicles dull. Its hues still differ by class, so a network that learns from
them can tell.

`gap` in 0..1 says how far the camera's colours lie from the rendered ones; textures and light have
their own strengths.
"""

from __future__ import annotations

from mrm_jax.data.drawn.canvas import GROUND_DEPTH, Canvas, Colour, Dice, Texture

RENDERED: dict[str, tuple[Colour, ...]] = {
    "road": ((92, 90, 100), (82, 84, 92), (98, 94, 98)),
    "sidewalk": ((188, 172, 170), (176, 168, 178), (196, 184, 166)),
    "building": ((196, 112, 82), (214, 170, 120), (186, 92, 84), (222, 196, 156)),
    "wall": ((140, 148, 170), (152, 152, 162), (126, 136, 160)),
    "fence": ((176, 124, 74), (190, 142, 88), (160, 112, 72)),
    "pole": ((70, 74, 84), (84, 86, 92)),
    "light": ((52, 54, 46), (60, 60, 50)),
    "sign": ((244, 208, 30), (40, 96, 210), (226, 40, 36)),
    "vegetation": ((58, 142, 52), (72, 156, 60), (46, 126, 60)),
    "terrain": ((120, 188, 72), (136, 196, 84), (110, 176, 66)),
    "sky": ((110, 178, 238), (128, 190, 244), (96, 164, 232)),
    "person": ((208, 52, 50), (226, 92, 40), (196, 40, 84)),
    "rider": ((250, 150, 30), (246, 176, 40)),
    "car": ((36, 66, 190), (196, 30, 34), (238, 238, 242), (52, 52, 60)),
    "truck": ((236, 128, 36), (60, 140, 76), (216, 214, 206)),
    "bus": ((24, 140, 146), (242, 190, 40)),
    "bicycle": ((116, 24, 40), (34, 34, 40)),
}
"""Base colours of the rendered look, RGB."""

CAMERA: dict[str, tuple[Colour, ...]] = {
    "road": ((98, 86, 74), (108, 96, 84), (90, 80, 72)),
    "sidewalk": ((134, 122, 106), (146, 132, 116), (126, 116, 104)),
    "building": ((166, 160, 152), (138, 144, 154), (190, 180, 160), (176, 168, 166)),
    "wall": ((132, 116, 106), (142, 124, 106), (122, 112, 106)),
    "fence": ((122, 136, 92), (112, 124, 92)),
    "pole": ((116, 108, 96), (100, 94, 86)),
    "light": ((46, 48, 46), (60, 60, 50)),
    "sign": ((232, 210, 70), (50, 96, 200), (214, 54, 48)),
    "vegetation": ((142, 126, 40), (154, 112, 42), (112, 120, 46)),
    "terrain": ((180, 160, 92), (166, 148, 86)),
    "sky": ((220, 222, 226), (206, 212, 222), (226, 218, 206)),
    "person": ((110, 50, 96), (150, 62, 60), (60, 72, 124)),
    "rider": ((190, 190, 50), (160, 196, 60)),
    "car": ((84, 104, 150), (130, 52, 50), (196, 198, 202), (58, 60, 66)),
    "truck": ((196, 140, 84), (104, 146, 132), (190, 188, 180)),
    "bus": ((90, 164, 84), (214, 158, 76)),
    "bicycle": ((66, 40, 76), (36, 42, 60)),
}
"""Base colours of the camera look at full gap, RGB."""

ROUGHNESS: dict[str, Texture] = {
    "road": (0.05, 0.04, 0.04),
    "sidewalk": (0.05, 0.04, 0.04),
    "building": (0.04, 0.04, 0.04),
    "wall": (0.05, 0.04, 0.04),
    "fence": (0.05, 0.05, 0.03),
    "vegetation": (0.12, 0.14, 0.06),
    "terrain": (0.10, 0.08, 0.05),
    "sky": (0.0, 0.02, 0.05),
}
"""Relative strength of fine, middle and coarse texture on camera surfaces; anything else: `PLAIN`.
"""

PLAIN: Texture = (0.03, 0.03, 0.02)
RENDERED_ROUGHNESS = 0.45  # Rendered surfaces carry this share of the camera's texture.


def shade(colour: Colour, factor: float) -> Colour:
    """The colour, lighter or darker."""
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """`share` of the second colour in the first."""
    return (
        first[0] + share * (second[0] - first[0]),
        first[1] + share * (second[1] - first[1]),
        first[2] + share * (second[2] - first[2]),
    )


class Paint:
    """Colours of one scene. Draws from its own dice, so that the layout's dice do not depend on the
    look.
    """

    def __init__(self, dice: Dice, gap: float) -> None:
        self._dice, self._gap = dice, gap
        rough = RENDERED_ROUGHNESS if gap == 0 else 1.0
        self._textures: dict[str, Texture] = {}
        for name in RENDERED:
            fine, middle, coarse = ROUGHNESS.get(name, PLAIN)
            self._textures[name] = (rough * fine, rough * middle, rough * coarse)

    def texture(self, name: str) -> Texture:
        """Fine, middle and coarse texture of a class."""
        return self._textures[name]

    def colour(self, name: str) -> Colour:
        """A base colour of a class, a little different every time."""
        dice = self._dice
        # One number picks from both tables, so that a blue sign fades and does not turn yellow.
        where, bright = dice.u(), dice.u(0.9, 1.1)
        first, second = (
            colours[int(where * len(colours))] for colours in (RENDERED[name], CAMERA[name])
        )
        tint = (dice.u(-8, 8), dice.u(-8, 8), dice.u(-8, 8))
        mixed = shade(blend(first, second, self._gap), bright)
        return (mixed[0] + tint[0], mixed[1] + tint[1], mixed[2] + tint[2])

    def new(self, canvas: Canvas, name: str, depth: float = GROUND_DEPTH) -> int:
        """A new material of a class in one of its colours."""
        return canvas.material(name, self.colour(name), self.texture(name), depth)

    def colour_of(self, canvas: Canvas, material: int) -> Colour:
        """The RGB that a material was given."""
        return canvas.colours[material]

    def cloud(self, sky: int, canvas: Canvas) -> Colour:
        """Lighter than the sky."""
        return blend(self.colour_of(canvas, sky), (250, 250, 250), 0.6 - 0.3 * self._gap)

    def marking(self, road: Colour) -> Colour:
        """White paint on the road, worn off in the camera look."""
        return blend(road, (240, 238, 232), self._dice.u(0.75, 0.95) * (1 - 0.5 * self._gap))

    def glass(self) -> Colour:
        """Windows of houses: dark, sometimes bright with sky."""
        bright = self._dice.chance(0.3)
        rendered: Colour = (176, 206, 226) if bright else (74, 92, 116)
        camera: Colour = (158, 160, 160) if bright else (70, 70, 70)
        return shade(blend(rendered, camera, self._gap), self._dice.u(0.85, 1.1))

    def windscreen(self) -> Colour:
        """Windows of vehicles."""
        return shade(blend((44, 58, 78), (58, 62, 64), self._gap), self._dice.u(0.8, 1.4))

    def bark(self) -> Colour:
        """Trunks."""
        return shade(blend((108, 74, 46), (84, 76, 66), self._gap), self._dice.u(0.8, 1.15))

    def symbol(self) -> Colour:
        """The inner part of a sign."""
        return shade(self._dice.pick(((245, 245, 240), (30, 30, 34))), 1 - 0.2 * self._gap)

    def skin(self) -> Colour:
        """Faces and hands."""
        return self._dice.pick(((226, 178, 146), (186, 134, 100), (120, 82, 60)))

    def trousers(self) -> Colour:
        """Legs."""
        rendered, camera = self._dice.pick(((46, 52, 92), (60, 48, 44))), (56, 56, 62)
        return shade(blend(rendered, camera, self._gap), self._dice.u(0.8, 1.3))

    def lamps(self, lit: int) -> tuple[Colour, Colour, Colour]:
        """Red, amber and green from top to bottom, one of them lit."""
        bright = ((255, 60, 40), (255, 190, 50), (70, 255, 130))
        dim = 0.32 + 0.1 * self._gap
        red, amber, green = (c if i == lit else shade(c, dim) for i, c in enumerate(bright))
        return red, amber, green
