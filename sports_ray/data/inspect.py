"""What is recorded of one image file, from its bytes alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

SUFFIXES = {
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "png": (".png", ".apng"),
    "webp": (".webp",),
    "bmp": (".bmp", ".dib"),
    "gif": (".gif",),
    "tiff": (".tif", ".tiff"),
}
FORMAT_OF = {suffix: name for name, suffixes in SUFFIXES.items() for suffix in suffixes}

VERSION = 1
"""To be raised whenever the same bytes would give other facts, so that remembered ones are not believed."""


class Facts(NamedTuple):
    sha256: str
    """Of the file's bytes, hex; empty if it could not be read at all."""
    width: int
    """Pixels, after EXIF orientation; 0 if unknown."""
    height: int
    phash: int
    """See near.phash; near.FLAT if the image could not be decoded."""
    format: str
    """By content: a key of SUFFIXES, or empty."""
    fault: str
    """Empty if training can read it, else empty-file, not-an-image, huge, truncated or unreadable."""
    error: str
    """The decoder's words; empty if there is no fault."""


def sniff(data: bytes) -> str:
    """Format by the first bytes: a key of SUFFIXES, or empty."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    for magic, name in _MAGIC.items():
        if data.startswith(magic):
            return name
    return ""


_MAGIC = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"BM": "bmp",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
}


def inspect(path: Path | str, max_pixels: int) -> Facts:
    """Read and decode a whole file, exactly as training will; what is wrong with it is a fault in the answer, not an exception."""
    from sports_ray.data.decode import open_image
    from sports_ray.data.near import FLAT, phash
    from sports_ray.errors import DataError

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        return Facts("", 0, 0, FLAT, "", "unreadable", str(error))
    sha256, kind = hashlib.sha256(data).hexdigest(), sniff(data)
    width = height = 0
    try:
        encoded = open_image(data, max_pixels=max_pixels)
        width, height = encoded.width, encoded.height
        code = phash(encoded.pixels().numpy())
    except DataError as error:
        fault, (width, height) = _diagnose(data, max_pixels) if not width else (_broken(error), (width, height))
        return Facts(sha256, width, height, FLAT, kind, fault, error.got or str(error))
    return Facts(sha256, width, height, code, kind, "", "")


def _diagnose(data: bytes, max_pixels: int) -> tuple[str, tuple[int, int]]:
    """Which fault a file has that cannot even be opened, and its declared (width, height) where it says so."""
    import io

    from PIL import Image

    if not data:
        return "empty-file", (0, 0)
    try:
        size = Image.open(io.BytesIO(data)).size
    except Exception:  # a parser fed with anything at all may raise anything
        return ("unreadable" if sniff(data) else "not-an-image"), (0, 0)
    return ("huge" if size[0] * size[1] > max_pixels else "unreadable"), size


def _broken(error: Exception) -> str:
    words = str(error).lower()
    return "truncated" if any(word in words for word in ("truncated", "incomplete", "unexpected end")) else "unreadable"
