"""A drawn photograph set of mini-sports, to try everything without a download.

Learnable in seconds, and not by colour alone: several sports share a court, a pool or a field, and viewpoint, light,
shirts, clutter, noise and JPEG quality vary from picture to picture."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from sports_ray.data import demo_sports as sports
from sports_ray.data.demo_scenes import MARGIN, Pen, Scene, surface
from sports_ray.data.near import SAME_CLASS_BITS, phash
from sports_ray.errors import DataError

SPORTS: dict[str, tuple[Scene, tuple[str, ...]]] = {
    "basketball": (sports.basketball, ("wood", "hard")),
    "swimming": (sports.swimming, ("water",)),
    "tennis": (sports.tennis, ("hard", "grass")),
    "ice hockey": (sports.ice_hockey, ("ice",)),
    "football": (sports.football, ("grass",)),
    "archery": (sports.archery, ("grass", "wood", "hall")),
    "volleyball": (sports.volleyball, ("wood", "sand")),
    "water polo": (sports.water_polo, ("water",)),
    "table tennis": (sports.table_tennis, ("carpet", "wood", "hall")),
    "surfing": (sports.surfing, ("water",)),
    "golf": (sports.golf, ("grass",)),
    "skiing": (sports.skiing, ("ice",)),
    "bowling": (sports.bowling, ("wood",)),
    "boxing": (sports.boxing, ("hard", "ice")),
    "cricket": (sports.cricket, ("grass",)),
    "billiards": (sports.billiards, ("hall", "carpet")),
}
"""Scene and usual surfaces of each sport."""

PLACES = {
    "beach": "sand",
    "night": "night",
    "street": "street",
    "snow": "ice",
    "indoor": "wood",
    "pool": "water",
    "carpet": "carpet",
}
"""Where a sport may be played besides: with these there are enough classes for any demonstration."""

MARK = "sports-ray-demo.json"
"""Lies in the folder's top and says that the folder is a demo set, which may be drawn over."""

_ATTEMPTS = 20


@dataclass(frozen=True)
class DemoReport:
    folder: str
    classes: tuple[str, ...]
    images: dict[str, int]
    """Of each split, planted defects not counted."""
    planted: tuple[dict[str, str], ...] = ()
    """With dirty: what was planted, as in planted.json: kind, path, and `of` for a copy."""


def draw_demo(
    folder: Path | str,
    *,
    classes: int = 6,
    per_class: int = 40,
    size: int = 128,
    seed: int = 0,
    dirty: bool = False,
    imbalance: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> DemoReport:
    """Draw train/ with per_class pictures a class, val/ and test/ with a quarter of that, each of size x size px.

    The same arguments give the same bytes. imbalance: the largest class of train gets about 70 times the smallest.
    dirty: one of every defect that scan knows is planted, and listed in planted.json.

    Raises DataError for a folder that holds anything but a demo set, and for sizes that make no sense."""
    folder = Path(folder)
    most = len(SPORTS) * (1 + len(PLACES))
    if not 2 <= classes <= most:
        raise DataError("classes of a demo set", got=classes, want=f"2 to {most}")
    take_folder(folder, per_class, size)
    names = class_names(classes)
    sizes = _sizes(classes, per_class, imbalance)
    held = max(1, per_class // 4)
    clear(folder)
    (folder / MARK).write_text(json.dumps({"drawn by": "sports-ray data demo", "seed": seed}))
    images = {"train": sum(sizes), "val": held * classes, "test": held * classes}
    total, done = sum(images.values()), itertools.count(1)

    def draw(name: str, count: int) -> None:
        for _ in _draw_class(folder, name, {"train": count, "val": held, "test": held}, size, seed):
            if progress:
                progress(next(done), total)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(draw, names, sizes))
    report = DemoReport(str(folder), names, images, _plant(folder, names, size, seed) if dirty else ())
    (folder / MARK).write_text(json.dumps(asdict(report), indent=1) + "\n")
    return report


def class_names(count: int) -> tuple[str, ...]:
    """The first `count` classes: the sports, then the sports in other places."""
    return tuple(([*SPORTS] + [f"{place} {sport}" for place in PLACES for sport in SPORTS])[:count])


def picture(name: str, size: int, rng: Random) -> Image.Image:
    """One RGB picture of a class, size x size px."""
    place, _, sport = name.partition(" ") if name not in SPORTS else ("", "", name)
    scene, surfaces = SPORTS[sport]

    def draw(pen: Pen) -> None:
        surface(pen, PLACES[place] if place else rng.choice(surfaces))
        scene(pen)

    return _taken(draw, size, rng)


def photographed(scene: Scene, size: int, rng: Random) -> bytes:
    """A drawn scene under clutter as the bytes of a JPEG, size x size px, seen by some camera in some light."""
    return _jpeg(_taken(scene, size, rng), rng)


def _taken(scene: Scene, size: int, rng: Random) -> Image.Image:
    pen = Pen(2 * size, rng)
    scene(pen)
    for _ in range(rng.randint(0, 3)):  # clutter: somebody's bag, a sign, a cable
        x, y = rng.uniform(-0.1, 1.1), rng.uniform(-0.1, 1.1)
        pen.box(x, y, x + rng.uniform(0.02, 0.1), y + rng.uniform(0.02, 0.06), pen.vivid())
    return _light(_camera(pen.image, size, rng), rng)


def encoded(name: str, size: int, rng: Random) -> bytes:
    """The same as the bytes of a JPEG."""
    return _jpeg(picture(name, size, rng), rng)


def _jpeg(image: Image.Image, rng: Random) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=rng.randint(60, 94))
    return sink.getvalue()


def _draw_class(folder: Path, name: str, counts: dict[str, int], size: int, seed: int) -> Iterator[Path]:
    """Draw a class. What comes out nearly as an earlier picture is drawn again: a clean set has no leaks."""
    seen: list[int] = []
    for split, count in counts.items():
        (folder / split / name).mkdir(parents=True)
        for number in range(count):
            for attempt in range(_ATTEMPTS):
                data = encoded(name, size, Random(f"{seed}/{split}/{name}/{number}/{attempt}"))
                code = phash(np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1).copy())
                if all((code ^ other).bit_count() > SAME_CLASS_BITS for other in seen):
                    break
            seen.append(code)
            path = folder / split / name / f"{number:04d}.jpg"
            path.write_bytes(data)
            yield path


def _camera(canvas: Image.Image, size: int, rng: Random) -> Image.Image:
    """Turn, zoom, shift and mirror; then halve, for smooth edges."""
    turn, zoom, squeeze = rng.uniform(-0.14, 0.14), rng.uniform(0.85, 1.2), rng.uniform(0.92, 1.08)
    mirror = rng.choice([-1, 1])
    cos, sin = np.cos(turn) / zoom, np.sin(turn) / zoom
    a, b, d, e = mirror * cos * squeeze, -sin, mirror * sin * squeeze, cos
    middle = canvas.width / 2
    shift = 2 * size * MARGIN * 0.25
    x, y = middle + rng.uniform(-shift, shift), middle + rng.uniform(-shift, shift)
    matrix = (a, b, x - (a + b) * size, d, e, y - (d + e) * size)
    return canvas.transform((2 * size, 2 * size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR).reduce(2)


def _light(image: Image.Image, rng: Random) -> Image.Image:
    """Brightness, contrast, colour, focus and the sensor's noise."""
    for effect in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = effect(image).enhance(rng.uniform(0.75, 1.25))
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0) * image.width / 128))
    noise = np.random.default_rng(rng.getrandbits(64)).normal(0, rng.uniform(2, 9), (image.height, image.width, 3))
    tint = np.array([rng.uniform(0.9, 1.1) for _ in range(3)])
    return Image.fromarray((np.asarray(image) * tint + noise).clip(0, 255).astype(np.uint8))


def _sizes(classes: int, per_class: int, imbalance: bool) -> list[int]:
    """Training images of each class: equal, or falling geometrically to a seventieth, of which at least 3 are left."""
    if not imbalance:
        return [per_class] * classes
    rise = [70 ** (1 - k / (classes - 1)) for k in range(classes)]
    smallest = max(3.0, classes * per_class / sum(rise))
    return [round(smallest * factor) for factor in rise]


def take_folder(folder: Path, per_class: int, size: int) -> None:
    """Raises DataError for sizes that make no sense, and for a folder that holds anything but a demo set."""
    if per_class < 4:
        raise DataError(
            "pictures per class of a demo set", got=per_class, want="4 or more: a quarter goes to val and to test"
        )
    if not 32 <= size <= 2048:
        raise DataError("size of a demo picture", got=f"{size} px", want="32 to 2048")
    if folder.exists() and not folder.is_dir():
        raise DataError("not a folder", got=folder, cure="name another")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise DataError(
            "the folder holds something else than a demo set",
            got=folder,
            want="an empty or new folder",
            cure="name another",
        )


def clear(folder: Path) -> None:
    """Take away what an earlier call has drawn, and make the folder if there is none."""
    import shutil

    for split in ("train", "val", "test"):
        shutil.rmtree(folder / split, ignore_errors=True)
    for name in ("planted.json", "labels.csv"):
        (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def _plant(folder: Path, names: tuple[str, ...], size: int, seed: int) -> tuple[dict[str, str], ...]:
    from sports_ray.data.demo_defects import plant

    planted = plant(folder, names, size, Random(f"{seed}/dirty"))
    (folder / "planted.json").write_text(json.dumps(planted, indent=1) + "\n")
    return planted
