"""What is recorded of one image file, from its bytes alone."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sports_ray.data.files import Files

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
    """What the decoder says of it; empty if there is no fault."""


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


def inspect(files: Files, path: str, max_pixels: int) -> Facts:
    """Read and decode a whole file, exactly as training will; what is wrong is a fault in the answer, no exception."""
    from sports_ray.data.files import read_unknown
    from sports_ray.data.near import FLAT

    try:
        data = read_unknown(files, path)
    except OSError as error:
        return Facts("", 0, 0, FLAT, "", "unreadable", str(error))
    return inspect_bytes(data, max_pixels)


def inspect_bytes(data: bytes, max_pixels: int) -> Facts:
    """As `inspect`, of a file's bytes."""
    from sports_ray.data.decode import open_image
    from sports_ray.data.near import FLAT, phash
    from sports_ray.errors import DataError

    sha256, kind = hashlib.sha256(data).hexdigest(), sniff(data)
    width = height = 0
    try:
        encoded = open_image(data, max_pixels=max_pixels)
        width, height = encoded.width, encoded.height
        code = phash(encoded.pixels().numpy())
    except DataError as error:
        words = str(error.got).rpartition(", ")[2]
        if not width:
            fault, words, width, height = _unopened(data, kind, words, max_pixels)
        else:
            fault = "truncated" if re.search("truncated|incomplete|unexpected end", words) else "unreadable"
        return Facts(sha256, width, height, FLAT, kind, fault, words)
    return Facts(sha256, width, height, code, kind, "", "")


def _unopened(data: bytes, kind: str, words: str, max_pixels: int) -> tuple[str, str, int, int]:
    """Of a file whose header was refused: fault, what to say of it, and the declared width and height, if any."""
    import io

    from PIL import Image

    if not data:
        return "empty-file", words, 0, 0
    if not kind:
        return "not-an-image", "no known image format", 0, 0
    if kind == "webp" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        return "truncated", f"{len(data):,} bytes where its header says more", 0, 0
    try:
        width, height = Image.open(io.BytesIO(data)).size
    except Exception:  # a parser fed with damaged bytes may raise anything
        return "unreadable", f"damaged header of a {kind}", 0, 0
    if width * height > max_pixels:
        return "huge", words, width, height
    return "unreadable", f"{kind} is not supported", width, height
