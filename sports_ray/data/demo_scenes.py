"""The drawings of the demo set: a surface, and the things that make a sport. Several sports share a surface, so that
colour alone does not tell them apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

MARGIN = 0.3
"""Drawn beyond the frame on each side, in frames: room for the camera to turn and to step back."""
WHITE: Colour = (240, 240, 236)
BLACK: Colour = (24, 24, 28)


class Pen:
    """Draws on a square canvas whose frame is the unit square, x to the right and y down."""

    def __init__(self, side: int, rng: Random) -> None:
        self.rng, self._scale = rng, side
        whole = round(side * (1 + 2 * MARGIN))
        self.image = Image.new("RGB", (whole, whole))
        self._draw = ImageDraw.Draw(self.image)

    def _at(self, points: Sequence[Point]) -> list[Point]:
        return [((x + MARGIN) * self._scale, (y + MARGIN) * self._scale) for x, y in points]

    def _px(self, width: float) -> int:
        return max(1, round(width * self._scale))

    def box(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        fill: Colour | None,
        edge: Colour | None = None,
        width: float = 0.01,
    ) -> None:
        self._draw.rectangle([*self._at([(x0, y0), (x1, y1)])], fill, edge, self._px(width))

    def disc(
        self,
        x: float,
        y: float,
        r: float,
        fill: Colour | None,
        edge: Colour | None = None,
        width: float = 0.008,
        flat: float = 1,
    ) -> None:
        """A circle, or an ellipse of height `flat` x its width."""
        self._draw.ellipse([*self._at([(x - r, y - r * flat), (x + r, y + r * flat)])], fill, edge, self._px(width))

    def line(self, points: Sequence[Point], colour: Colour, width: float = 0.012) -> None:
        self._draw.line(self._at(points), colour, self._px(width), joint="curve")

    def poly(self, points: Sequence[Point], fill: Colour) -> None:
        self._draw.polygon(self._at(points), fill)

    def arc(
        self,
        x: float,
        y: float,
        r: float,
        start: float,
        end: float,
        colour: Colour,
        width: float = 0.01,
        flat: float = 1,
    ) -> None:
        """Part of an ellipse, in degrees clockwise from the right."""
        self._draw.arc([*self._at([(x - r, y - r * flat), (x + r, y + r * flat)])], start, end, colour, self._px(width))

    def any(self, low: float, high: float) -> float:
        return self.rng.uniform(low, high)

    def shade(self, colour: Colour, by: int = 18) -> Colour:
        """Nearly this colour."""
        red, green, blue = (min(255, max(0, value + self.rng.randint(-by, by))) for value in colour)
        return red, green, blue

    def vivid(self) -> Colour:
        """A colour of shirts and signs."""
        return self.shade(
            self.rng.choice(
                [
                    (200, 40, 40),
                    (40, 70, 180),
                    (235, 200, 50),
                    (240, 240, 240),
                    (30, 30, 34),
                    (40, 140, 70),
                    (230, 120, 30),
                    (120, 50, 140),
                ]
            )
        )


SURFACES: dict[str, Sequence[Colour]] = {
    "wood": [(206, 156, 98), (188, 134, 82), (220, 178, 124)],
    "grass": [(64, 134, 54), (84, 150, 62), (50, 112, 56)],
    "water": [(36, 120, 186), (44, 148, 196), (28, 94, 160)],
    "ice": [(222, 232, 240), (206, 220, 234), (234, 238, 242)],
    "sand": [(222, 198, 146), (206, 180, 128)],
    "hard": [(42, 100, 170), (60, 120, 84), (172, 92, 60)],
    "hall": [(70, 62, 66), (48, 54, 76), (92, 70, 58)],
    "street": [(128, 128, 130), (104, 106, 112)],
    "night": [(20, 24, 44), (30, 26, 40)],
    "carpet": [(150, 48, 56), (96, 52, 110)],
}


def surface(pen: Pen, kind: str) -> None:
    """Ground to the frame's edges, with its texture."""
    colour = pen.shade(pen.rng.choice(SURFACES[kind]), 12)
    pen.box(-1, -1, 2, 2, colour)
    step = pen.any(0.07, 0.16)
    for k in range(int(1.8 / step)):
        y = -0.35 + k * step
        tone = pen.shade(colour, 14)
        if kind == "water":
            wave = [(x / 10, y + 0.012 * math.sin(x * 1.9 + k)) for x in range(-4, 15)]
            pen.line(wave, tone, 0.012)
        elif kind in ("grass", "wood", "carpet"):
            pen.box(-1, y, 2, y + step * (0.5 if kind == "grass" else 0.9), tone)
        else:
            for _ in range(6):
                x, turn = pen.any(-0.3, 1.3), pen.any(-0.1, 0.1)
                pen.line([(x, y), (x + 0.1, y + turn)], tone, 0.006)


def crowd(pen: Pen, horizon: float) -> None:
    """Stands, boards or sky above the horizon."""
    kind = pen.rng.choice(["crowd", "boards", "plain"])
    pen.box(
        -1, -1, 2, horizon, pen.shade(pen.rng.choice([(70, 74, 84), (150, 190, 225), (40, 44, 56), (176, 170, 160)]))
    )
    if kind == "crowd":
        for _ in range(110):
            pen.disc(pen.any(-0.3, 1.3), pen.any(-0.3, horizon - 0.02), pen.any(0.012, 0.022), pen.vivid())
    elif kind == "boards":
        x = -0.35
        while x < 1.3:
            width = pen.any(0.15, 0.4)
            pen.box(x, horizon - 0.09, x + width, horizon, pen.vivid())
            x += width + 0.01


def player(pen: Pen, x: float, y: float, tall: float, shirt: Colour | None = None, reach: Point | None = None) -> None:
    """A figure whose feet stand at (x, y); one hand goes to `reach`."""
    shirt, skin = shirt or pen.vivid(), pen.rng.choice([(236, 196, 160), (196, 146, 106), (120, 80, 56)])
    hip, neck = y - 0.48 * tall, y - 0.8 * tall
    lean, spread = pen.any(-0.08, 0.08) * tall, pen.any(0.08, 0.2) * tall
    for side in (-1, 1):
        pen.line(
            [(x, hip), (x + side * spread * 0.8, y - 0.24 * tall), (x + side * spread, y)],
            pen.shade((40, 40, 48)),
            0.09 * tall,
        )
    hands = [
        reach or (x + pen.any(0.15, 0.35) * tall, y - pen.any(0.4, 1.0) * tall),
        (x - pen.any(0.15, 0.3) * tall, y - pen.any(0.4, 0.9) * tall),
    ]
    for hand in hands:
        pen.line([(x + lean, neck), hand], skin, 0.07 * tall)
    pen.line([(x, hip), (x + lean, neck)], shirt, 0.2 * tall)
    pen.disc(x + lean, neck - 0.11 * tall, 0.085 * tall, skin)


def ball(pen: Pen, x: float, y: float, r: float, colours: Sequence[Colour], seams: Colour) -> None:
    """A ball with curved seams; more than one colour gives panels."""
    pen.disc(x, y, r, colours[0])
    turn = pen.any(0, 360)
    for k, colour in enumerate(colours[1:]):
        pen.arc(x, y, r * 0.72, turn + 130 * k, turn + 130 * k + 95, colour, r * 0.5)
    for k in range(3):
        pen.arc(
            x + r * 0.5 * math.cos(turn + 2.1 * k),
            y + r * 0.5 * math.sin(turn + 2.1 * k),
            r * 0.62,
            turn + 70 * k,
            turn + 70 * k + 170,
            seams,
            r * 0.09,
        )
    pen.disc(x, y, r, None, seams, r * 0.09)


def net(pen: Pen, x0: float, x1: float, y: float, high: float, colour: Colour = WHITE) -> None:
    """A net across, with its tape and posts."""
    meshes = max(6, round((x1 - x0) / 0.05))
    for k in range(meshes + 1):
        x = x0 + (x1 - x0) * k / meshes
        pen.line([(x, y), (x, y + high)], colour, 0.004)
    for k in range(1, 5):
        pen.line([(x0, y + high * k / 5), (x1, y + high * k / 5)], colour, 0.004)
    pen.line([(x0, y), (x1, y)], colour, 0.018)


Scene = Callable[[Pen], None]
