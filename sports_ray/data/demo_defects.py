"""What `--dirty` plants: one of each defect that scan must find, and of each unusual file it must accept."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from sports_ray.data.demo import encoded, picture

Planted = tuple[dict[str, str], ...]


def plant(folder: Path, names: tuple[str, ...], size: int, rng: Random) -> Planted:
    """Plant into a drawn set: one record each, with its `kind` (a scan.KINDS name, or "fine": must be read without
    complaint), `path` relative to the folder, and for copies `of`."""
    planted = _broken(folder, names, size, rng) + _copies(folder, names, size)
    planted += _classes(folder, names, size, rng) + _unusual(folder, names, size, rng)
    return tuple(planted)


def false_png(side: int, body: bytes) -> bytes:
    """A small PNG that declares side x side pixels and holds `body` instead."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _broken(folder: Path, names: tuple[str, ...], size: int, rng: Random) -> list[dict[str, str]]:
    whole = encoded(names[0], size, rng)
    small = picture(names[1], max(32, size), rng).resize((16, 16))
    files = {
        "truncated": ("truncated.jpg", whole[: len(whole) * 2 // 3]),
        "not-an-image": ("text.jpg", b"This is no photograph.\n"),
        "wrong-extension": ("png called.jpg", _bytes(picture(names[0], size, rng), "PNG")),
        "empty-file": ("nothing.jpg", b""),
        "tiny": ("tiny.png", _bytes(small, "PNG")),
        "huge": ("huge.png", false_png(50_000, zlib.compress(b"\0" * 4096))),
        "unreadable": ("damaged.png", false_png(256, b"no pixels")),
    }
    return [_write(folder, kind, f"train/{names[0]}/{name}", data) for kind, (name, data) in files.items()]


def _copies(folder: Path, names: tuple[str, ...], size: int) -> list[dict[str, str]]:
    """The same bytes within train, in train and test, and in two classes; nearly the same picture within and across."""
    first, second = (f"train/{names[1]}/{number:04d}.jpg" for number in (0, 1))
    third, tested = f"train/{names[1]}/0002.jpg", f"test/{names[1]}/0000.jpg"
    near = Image.open(folder / second).resize((size * 3 // 4, size * 3 // 4), Image.Resampling.BICUBIC)
    copies = [
        ("duplicate", first, f"train/{names[1]}/copy.jpg", (folder / first).read_bytes()),
        ("leak", tested, f"train/{names[1]}/leak.jpg", (folder / tested).read_bytes()),
        ("two-classes", third, f"train/{names[0]}/of another class.jpg", (folder / third).read_bytes()),
        ("near-duplicate", second, f"train/{names[1]}/smaller.jpg", _bytes(near, "JPEG", quality=70)),
        ("near-leak", second, f"test/{names[1]}/smaller.webp", _bytes(near, "WEBP", quality=60)),
    ]
    return [_write(folder, kind, path, data) | {"of": of} for kind, of, path, data in copies]


def _classes(folder: Path, names: tuple[str, ...], size: int, rng: Random) -> list[dict[str, str]]:
    """A class spelled differently, one that stands in train alone, an empty one, and a test image without a class."""
    alike = f" {names[0].title().replace(' ', '_')}"
    (folder / "train" / "empty class").mkdir()
    planted = [
        _write(folder, "similar-names", f"train/{alike}/0000.jpg", encoded(names[0], size, rng)),
        _write(folder, "one-sided", "train/only in train/0000.jpg", encoded(names[1], size, rng)),
        _write(folder, "unlabelled", "test/unlabelled.jpg", encoded(names[1], size, rng)),
    ]
    return [*planted, {"kind": "empty-class", "path": "train/empty class"}]


def _unusual(folder: Path, names: tuple[str, ...], size: int, rng: Random) -> list[dict[str, str]]:
    rotated = Image.Exif()
    rotated[0x0112] = 6

    def deep(image: Image.Image) -> bytes:
        return _bytes(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG")

    def see_through(image: Image.Image) -> bytes:
        palette = image.quantize(64)
        return _bytes(palette, "PNG", transparency=bytes([0, 128] + [255] * 62))

    ways: dict[str, Callable[[Image.Image], bytes]] = {
        "16 bit.png": deep,
        "cmyk.jpg": lambda image: _bytes(image.convert("CMYK"), "JPEG"),
        "grey.jpg": lambda image: _bytes(image.convert("L"), "JPEG"),
        "palette with alpha.png": see_through,
        "rotated.jpg": lambda image: _bytes(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=rotated),
        "webp.webp": lambda image: _bytes(image, "WEBP"),
        "bmp.bmp": lambda image: _bytes(image, "BMP"),
        "gif.gif": lambda image: _bytes(image, "GIF"),
        "UPPER.JPEG": lambda image: _bytes(image, "JPEG"),
    }
    return [
        _write(folder, "fine", f"train/{names[1]}/{name}", way(picture(names[1], size, rng)))
        for name, way in ways.items()
    ]


def _bytes(image: Image.Image, format: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **options)
    return sink.getvalue()


def _write(folder: Path, kind: str, path: str, data: bytes) -> dict[str, str]:
    target = folder / path
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(data)
    return {"kind": kind, "path": path}
