"""Bytes of an image file -> uint8 RGB tensor, or a DataError that names the cause (never a half-decoded picture).

JPEGs are decoded by simplejpeg (0.26 ms at 224 px and 1.3 for half of 1024 x 768, where Pillow takes 0.50 and 1.5 and
torchvision 0.39 and, at full size only, 1.8; the pixels are equal), everything else by Pillow.
"""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sports_ray.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""What Pillow may try: nothing that starts another program or is rarely used, so rarely hardened."""

# Each open names its own limit on the pixels; Pillow's would warn below it and refuse what a user has allowed.
Image.MAX_IMAGE_PIXELS = None

# Freed blocks are kept: page faults are a tenth of a 1024 x 768 decode.
Image.core.set_blocks_max(4)

_ORIENTATION = 0x0112
_BACKGROUND = (255, 255, 255)
_CURE = "replace or remove it"


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image of which only the header was read; sizes in px, after EXIF orientation."""

    data: bytes
    width: int
    height: int
    orientation: int
    """EXIF, 1 to 8."""
    plain_jpeg: bool
    """8-bit RGB or grey JPEG."""

    def pixels(self, shrink: int = 1) -> Tensor:
        """Decode: uint8 [3, H, W] RGB, EXIF orientation applied, transparency laid on white, 16 bit scaled to 8.

        shrink (1, 2, 4 or 8) divides both sides, rounding up: a JPEG in the DCT, which saves time, others by averaging.
        Raises DataError for truncated or damaged data."""
        try:
            return _upright(self._stored(shrink), self.orientation)
        except Exception as error:  # a decoder fed with damaged bytes may raise anything
            raise DataError("an image cannot be decoded", got=_reason(error), cure=_CURE) from error

    def _stored(self, shrink: int) -> Tensor:
        if self.plain_jpeg:
            with suppress(ValueError):  # a warning is enough for that, "extraneous bytes" for one: Pillow judges then
                return torch.from_numpy(_jpeg(self.data, shrink)).permute(2, 0, 1)
        file = Image.open(io.BytesIO(self.data), formats=FORMATS)
        width, height = (-(-side // shrink) for side in file.size)
        if self.plain_jpeg:
            file.draft(file.mode, (max(1, file.width // shrink), max(1, file.height // shrink)))
        image = _rgb(file)
        if image.size != (width, height):
            image = image.reduce(shrink)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def open_image(data: bytes, *, max_pixels: int) -> Encoded:
    """Read the header. Raises DataError if it is no image of a known format, or has more than max_pixels."""
    if not data:
        raise DataError("an image is empty", got="0 bytes", cure=_CURE)
    image = _plain_jpeg(data) or _any_format(data)
    if image.width * image.height > max_pixels:
        raise DataError(
            "an image is too large",
            got=f"{image.width} x {image.height} = {image.width * image.height:,} pixels",
            want=f"at most {max_pixels:,}",
            cure="make it smaller, or raise data.max_pixels",
        )
    return image


def decode(data: bytes, *, max_pixels: int, min_side: int = 0) -> Tensor:
    """Decode an image file: uint8 [3, H, W] RGB, EXIF orientation applied, transparency laid on white.

    min_side > 0 allows it to come out 2, 4 or 8 times smaller, as long as its shorter side keeps min_side px.
    Raises DataError (without the path, which the caller knows) for what is no image, damaged, or above max_pixels."""
    image = open_image(data, max_pixels=max_pixels)
    return image.pixels(shrink_to(min(image.width, image.height), min_side) if min_side else 1)


def shrink_to(side: int, min_side: int) -> int:
    """Largest of 1, 2, 4, 8 that leaves `side` at least min_side px."""
    return next((shrink for shrink in (8, 4, 2) if side >= shrink * min_side), 1)


def _plain_jpeg(data: bytes) -> Encoded | None:
    """Header of a JPEG as most are: 8 bits, grey or three colours, no EXIF. None: ask Pillow, which takes 60 us."""
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive: length 2, precision 1, height 2, width 2
            precision, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            usual = precision == 8 and components in (1, 3) and width and height
            return Encoded(data, width, height, 1, True) if usual else None
        if marker == 0xE1 or not 0xC4 <= marker <= 0xFE:
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _any_format(data: bytes) -> Encoded:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        orientation = image.getexif().get(_ORIENTATION, 1) if "exif" in image.info else 1
    except Exception as error:
        want = "JPEG, PNG, WebP, BMP or GIF"
        raise DataError("an image cannot be read", got=_reason(error), want=want, cure=_CURE) from error
    width, height = image.size
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    plain_jpeg = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
    return Encoded(data, width, height, orientation, plain_jpeg)


def _jpeg(data: bytes, shrink: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]. Raises ValueError for whatever libjpeg complains of."""
    if shrink == 1:
        return simplejpeg.decode_jpeg(data)
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    sides = {"min_height": -(-height // shrink), "min_width": -(-width // shrink)}
    return simplejpeg.decode_jpeg(data, min_factor=shrink, **sides)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow's own conversion clips 16 bits instead of scaling them
        grey = np.asarray(image).astype(np.float64).clip(0, 65535) * (255 / 65535)
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*_BACKGROUND, 255)), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(stored: Tensor, orientation: int) -> Tensor:
    if orientation in (5, 6, 7, 8):
        stored = stored.transpose(1, 2)
    mirrored = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation)
    return stored.flip(mirrored) if mirrored else stored


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
