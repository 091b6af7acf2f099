"""Bytes of an image file -> uint8 RGB tensor, or a DataError that names the cause (never a half-decoded picture).

JPEGs are decoded by torchvision (2.1 ms for 1024 x 768 where Pillow takes 3.2 and 2.4 more to hand the pixels over; the
pixels are equal), everything else and JPEGs at reduced size by Pillow. Pillow also reads every header: 25 us.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from sports_ray.errors import DataError

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF")
"""What Pillow may try: nothing that starts another program or is rarely used, so rarely hardened."""

# Each open names its own limit on the pixels; Pillow's would warn below it and refuse what a user has allowed.
Image.MAX_IMAGE_PIXELS = None

_ORIENTATION = 0x0112
_BACKGROUND = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image of which only the header was read; sizes in px, after EXIF orientation."""

    data: bytes
    header: Image.Image
    orientation: int
    width: int
    height: int

    def pixels(self, shrink: int = 1) -> Tensor:
        """Decode: uint8 [3, H, W] RGB, EXIF orientation applied, transparency laid on white, 16 bit scaled to 8.

        shrink (1, 2, 4 or 8) divides both sides, rounding up: a JPEG in the DCT, which saves time, others by averaging.
        Raises DataError for truncated or damaged data."""
        try:
            return _upright(self._stored(shrink), self.orientation)
        except Exception as error:  # a decoder fed with damaged bytes may raise anything
            raise DataError("an image cannot be decoded", got=_reason(error), cure="replace or remove it") from error

    def _stored(self, shrink: int) -> Tensor:
        plain_jpeg = self.header.format in ("JPEG", "MPO") and self.header.mode in ("RGB", "L")
        if plain_jpeg and shrink == 1:
            return decode_jpeg(torch.frombuffer(bytearray(self.data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        image = Image.open(io.BytesIO(self.data), formats=FORMATS)
        width, height = (-(-side // shrink) for side in image.size)
        if plain_jpeg:
            image.draft(image.mode, (max(1, image.width // shrink), max(1, image.height // shrink)))
        image = _rgb(image)
        if image.size != (width, height):
            image = image.reduce(shrink)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def open_image(data: bytes, *, max_pixels: int) -> Encoded:
    """Read the header. Raises DataError if it is no image of a known format, or has more than max_pixels."""
    if not data:
        raise DataError("an image is empty", got="0 bytes", cure="replace or remove it")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        orientation = image.getexif().get(_ORIENTATION, 1) if "exif" in image.info else 1
    except Exception as error:
        raise DataError(
            "an image cannot be read", got=_reason(error), want="JPEG, PNG, WebP, BMP or GIF", cure="replace or remove it"
        ) from error
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            "an image is too large",
            got=f"{width} x {height} = {width * height:,} pixels",
            want=f"at most {max_pixels:,}",
            cure="make it smaller, or raise data.max_pixels",
        )
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    return Encoded(data, image, orientation, width, height)


def decode(data: bytes, *, max_pixels: int, min_side: int = 0) -> Tensor:
    """Decode an image file: uint8 [3, H, W] RGB, EXIF orientation applied, transparency laid on white.

    min_side > 0 allows it to come out 2, 4 or 8 times smaller, as long as its shorter side keeps min_side px.
    Raises DataError (without the path, which the caller knows) for what is no image, damaged, or above max_pixels."""
    image = open_image(data, max_pixels=max_pixels)
    return image.pixels(shrink_to(min(image.width, image.height), min_side) if min_side else 1)


def shrink_to(side: int, min_side: int) -> int:
    """Largest of 1, 2, 4, 8 that leaves `side` at least min_side px."""
    return next((shrink for shrink in (8, 4, 2) if side >= shrink * min_side), 1)


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
