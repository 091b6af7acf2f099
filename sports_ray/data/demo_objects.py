"""A drawn multi-label set: pictures that show several pieces of sports equipment, or one, or none, and labels.csv."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image

from sports_ray.data.demo import MARK, DemoReport, clear, photographed, take_folder
from sports_ray.data.demo_scenes import BLACK, SURFACES, WHITE, Pen, ball, net, surface
from sports_ray.data.label_sets import word_of
from sports_ray.data.near import SAME_CLASS_BITS, phash
from sports_ray.errors import DataError

LIST = "labels.csv"
COLUMNS = ("path", "labels", "split")

Piece = Callable[[Pen, float, float, float], None]
"""Draws one piece about (x, y); it reaches about r away from there."""


def basketball(pen: Pen, x: float, y: float, r: float) -> None:
    ball(pen, x, y, 0.8 * r, [pen.shade((224, 116, 40))], BLACK)


def racket(pen: Pen, x: float, y: float, r: float) -> None:
    turn, frame = pen.any(-0.9, 0.9), pen.vivid()
    pen.line([(x, y), (x + 1.5 * r * math.sin(turn), y + 1.5 * r * math.cos(turn))], frame, 0.2 * r)
    pen.disc(x, y - 0.2 * r, 0.7 * r, WHITE, frame, 0.16 * r)
    for k in range(-2, 3):
        half = math.sqrt(1 - (k / 3) ** 2) * 0.7 * r
        pen.line([(x + k * 0.23 * r, y - 0.2 * r - half), (x + k * 0.23 * r, y - 0.2 * r + half)], BLACK, 0.03 * r)
        pen.line([(x - half, y + (k * 0.23 - 0.2) * r), (x + half, y + (k * 0.23 - 0.2) * r)], BLACK, 0.03 * r)


def target(pen: Pen, x: float, y: float, r: float) -> None:
    for k, colour in enumerate([WHITE, BLACK, (40, 130, 200), (210, 44, 44), (244, 210, 50)]):
        pen.disc(x, y, r * (1 - k / 5), colour)


def cone(pen: Pen, x: float, y: float, r: float) -> None:
    orange = pen.shade((236, 104, 32))
    pen.box(x - 0.9 * r, y + 0.7 * r, x + 0.9 * r, y + 0.9 * r, orange)
    pen.poly([(x, y - r), (x - 0.6 * r, y + 0.7 * r), (x + 0.6 * r, y + 0.7 * r)], orange)
    stripe = [(-0.26, -0.2), (0.26, -0.2), (0.4, 0.2), (-0.4, 0.2)]
    pen.poly([(x + right * r, y + down * r) for right, down in stripe], WHITE)


def pin(pen: Pen, x: float, y: float, r: float) -> None:
    pen.disc(x, y + 0.4 * r, 0.42 * r, WHITE, BLACK, 0.03 * r, flat=1.4)
    pen.line([(x, y + 0.2 * r), (x, y - 0.6 * r)], WHITE, 0.34 * r)
    pen.line([(x - 0.17 * r, y - 0.25 * r), (x + 0.17 * r, y - 0.25 * r)], (210, 40, 40), 0.14 * r)
    pen.disc(x, y - 0.7 * r, 0.26 * r, WHITE, BLACK, 0.03 * r)


def flag(pen: Pen, x: float, y: float, r: float) -> None:
    side = pen.rng.choice([-1, 1])
    pen.line([(x - 0.5 * side * r, y - r), (x - 0.5 * side * r, y + r)], BLACK, 0.1 * r)
    pen.poly([(x - 0.5 * side * r, y - r), (x + 0.8 * side * r, y - 0.5 * r), (x - 0.5 * side * r, y)], pen.vivid())


def dumbbell(pen: Pen, x: float, y: float, r: float) -> None:
    turn = pen.any(-0.6, 0.6)
    ends = [(x + side * 0.7 * r * math.cos(turn), y + side * 0.7 * r * math.sin(turn)) for side in (-1, 1)]
    pen.line(ends, (150, 152, 158), 0.16 * r)
    for end in ends:
        pen.disc(*end, 0.4 * r, BLACK, (120, 120, 126), 0.06 * r)


def goal(pen: Pen, x: float, y: float, r: float) -> None:
    net(pen, x - 0.9 * r, x + 0.9 * r, y - 0.6 * r, 1.2 * r)
    frame = [
        (x - 0.9 * r, y + 0.6 * r),
        (x - 0.9 * r, y - 0.6 * r),
        (x + 0.9 * r, y - 0.6 * r),
        (x + 0.9 * r, y + 0.6 * r),
    ]
    pen.line(frame, pen.shade((206, 40, 44)), 0.16 * r)


def shuttlecock(pen: Pen, x: float, y: float, r: float) -> None:
    for k in range(-2, 3):
        pen.line([(x, y + 0.6 * r), (x + 0.32 * k * r, y - 0.8 * r)], WHITE, 0.16 * r)
    pen.line([(x - 0.45 * r, y - 0.2 * r), (x + 0.45 * r, y - 0.2 * r)], (60, 120, 200), 0.06 * r)
    pen.disc(x, y + 0.65 * r, 0.26 * r, pen.shade((222, 178, 110)))


def puck(pen: Pen, x: float, y: float, r: float) -> None:
    pen.box(x - 0.8 * r, y, x + 0.8 * r, y + 0.35 * r, BLACK)
    pen.disc(x, y + 0.35 * r, 0.8 * r, BLACK, flat=0.35)
    pen.disc(x, y, 0.8 * r, (56, 58, 64), (110, 112, 120), 0.05 * r, flat=0.35)


PIECES: dict[str, Piece] = {
    "basketball": basketball,
    "target": target,
    "cone": cone,
    "dumbbell": dumbbell,
    "goal": goal,
    "racket": racket,
    "flag": flag,
    "bowling pin": pin,
    "shuttlecock": shuttlecock,
    "puck": puck,
}
"""What can be drawn; the further behind, the rarer."""

_COUNTS = (0.05, 0.30, 0.35, 0.20, 0.10)
"""Chance of a picture with no piece, one, two, three and four."""
_RAREST = 0.3
"""Chance of the last class over that of the first."""
_ATTEMPTS = 20
_PLACES = ((0.3, 0.3), (0.7, 0.3), (0.3, 0.7), (0.7, 0.7))


def draw_objects(
    folder: Path | str,
    *,
    classes: int = 6,
    per_class: int = 40,
    size: int = 128,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> DemoReport:
    """Draw classes x per_class pictures of train, and a quarter as many of val and test, of size x size px, and their list
    labels.csv with columns path, labels, split.

    Each picture shows none to four different pieces; each class is in every split. The same arguments give the same bytes.
    Raises DataError for a folder that holds anything but a demo set, and for sizes that make no sense."""
    folder = Path(folder)
    if not 2 <= classes <= len(PIECES):
        raise DataError("classes of a multi-label demo set", got=classes, want=f"2 to {len(PIECES)}")
    take_folder(folder, per_class, size)
    names = tuple(PIECES)[:classes]
    held = max(1, per_class // 4) * classes
    images = {"train": per_class * classes, "val": held, "test": held}
    clear(folder)
    (folder / MARK).write_text(json.dumps({"drawn by": "sports-ray data demo --multilabel", "seed": seed}))
    done = itertools.count(1)
    jobs = [(split, number) for split, count in images.items() for number in range(count)]
    for split in images:
        (folder / split).mkdir(parents=True)

    def draw(job: tuple[str, int], attempt: int = 0) -> _Drawn:
        split, number = job
        rng = Random(f"{seed}/{split}/{number}/{attempt}")
        shown = shown_in(number, names, rng)
        path = f"{split}/{number:05d}.jpg"
        data = photographed(lambda pen: _scene(pen, shown), size, rng)
        (folder / path).write_bytes(data)
        if progress and not attempt:
            progress(next(done), len(jobs))
        code = phash(np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1).copy())
        return _Drawn((path, word_of(shown), split), code)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        drawn = list(pool.map(draw, jobs))
    rows = [_apart(drawn, place, job, draw).row for place, job in enumerate(jobs)]
    with (folder / LIST).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    report = DemoReport(str(folder), names, images)
    (folder / MARK).write_text(json.dumps(asdict(report), indent=1) + "\n")
    return report


class _Drawn(NamedTuple):
    row: tuple[str, str, str]
    """Of the list."""
    code: int
    """phash."""


def _apart(
    drawn: list[_Drawn], place: int, job: tuple[str, int], draw: Callable[[tuple[str, int], int], _Drawn]
) -> _Drawn:
    """The picture at a place; drawn again while it is nearly one before it: a clean set has no leaks."""
    for attempt in range(1, _ATTEMPTS):
        code = drawn[place].code
        if all((code ^ other.code).bit_count() > SAME_CLASS_BITS for other in drawn[:place]):
            break
        drawn[place] = draw(job, attempt)
    return drawn[place]


def shown_in(number: int, names: tuple[str, ...], rng: Random) -> list[str]:
    """The classes that a picture of a split shows; one of the first pictures shows each class for sure."""
    count = rng.choices(range(len(_COUNTS)), _COUNTS)[0]
    weights = [1.0 - (1.0 - _RAREST) * place / (len(names) - 1) for place in range(len(names))]
    shown = [names[number]] if number < len(names) else []
    while len(shown) < min(count, len(names)):
        name = rng.choices(names, weights)[0]
        if name not in shown:
            shown.append(name)
    return shown


def _scene(pen: Pen, shown: list[str]) -> None:
    surface(pen, pen.rng.choice(sorted(SURFACES)))
    places = pen.rng.sample(_PLACES, len(shown))
    for name, (x, y) in zip(shown, places, strict=True):
        PIECES[name](pen, x + pen.any(-0.06, 0.06), y + pen.any(-0.06, 0.06), pen.any(0.13, 0.18))
