"""The operations of RandAugment, AutoAugment and colour jitter, by timm's names and with timm's magnitudes.

They run on the small image, after the crop, and equal timm's to the bit (a test holds that) but for three choices:
rotation and shear interpolate bilinearly, a translation is by whole pixels, posterize keeps a bit at least. Images are
planar, uint8 [3, H, W]: most operations are then a table look-up or a few passes of numpy (0.005 to 0.1 ms at 160 px);
Pillow does the rest.
Sources: Cubuk et al. 2019 (AutoAugment, RandAugment), as timm.data.auto_augment has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from sports_ray.errors import ConfigError

Pixels = NDArray[np.uint8]

MAX_OPS = 10
DRAWS = 3 * MAX_OPS
"""Uniform draws that `Policy.sample` may read."""

RAND = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast"),
    *("Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)
"""RandAugment's list. With -inc1, those of `_INCREASING` grow with the magnitude instead."""

_INCREASING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")

_E, _R, _S, _P, _C, _I = "Equalize", "Rotate", "Solarize", "PosterizeOriginal", "Color", "Invert"
AUTO: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    ((_P, 0.4, 8), (_R, 0.6, 9)),
    ((_S, 0.6, 5), ("AutoContrast", 0.6, 5)),
    ((_E, 0.8, 8), (_E, 0.6, 3)),
    ((_P, 0.6, 7), (_P, 0.6, 6)),
    ((_E, 0.4, 7), (_S, 0.2, 4)),
    ((_E, 0.4, 4), (_R, 0.8, 8)),
    ((_S, 0.6, 3), (_E, 0.6, 7)),
    ((_P, 0.8, 5), (_E, 1.0, 2)),
    ((_R, 0.2, 3), (_S, 0.6, 8)),
    ((_E, 0.6, 8), (_P, 0.4, 6)),
    ((_R, 0.8, 8), (_C, 0.4, 0)),
    ((_R, 0.4, 9), (_E, 0.6, 2)),
    ((_E, 0.0, 7), (_E, 0.8, 8)),
    ((_I, 0.6, 4), (_E, 1.0, 8)),
    ((_C, 0.6, 4), ("Contrast", 1.0, 8)),
    ((_R, 0.8, 8), (_C, 1.0, 2)),
    ((_C, 0.8, 8), (_S, 0.8, 7)),
    (("Sharpness", 0.4, 7), (_I, 0.6, 8)),
    (("ShearX", 0.6, 5), (_E, 1.0, 9)),
    ((_C, 0.4, 0), (_E, 0.6, 3)),
    ((_E, 0.4, 7), (_S, 0.2, 4)),
    ((_S, 0.6, 5), ("AutoContrast", 0.6, 5)),
    ((_I, 0.6, 4), (_E, 1.0, 8)),
    ((_C, 0.6, 4), ("Contrast", 1.0, 8)),
    ((_E, 0.8, 8), (_E, 0.6, 3)),
)
"""AutoAugment's ImageNet policy: 25 pairs of (operation, probability, magnitude of 10)."""


class Op(NamedTuple):
    """One operation on the small image. value: degrees, shear, share of the side, factor, bits or threshold."""

    name: str
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Policy:
    kind: str
    """none, auto or rand."""
    magnitude: int = 0
    count: int = 0
    increasing: bool = False

    def sample(self, draws: Sequence[float]) -> tuple[Op, ...]:
        """The operations for one image, from at least DRAWS uniform numbers in [0, 1)."""
        if self.kind == "rand":
            drawn = (draws[3 * i : 3 * i + 3] for i in range(self.count))
            return tuple(
                operation(RAND[int(which * len(RAND))], self.magnitude, sign < 0.5, self.increasing)
                for which, coin, sign in drawn
                if coin < 0.5
            )
        if self.kind == "auto":
            pair = AUTO[int(draws[0] * len(AUTO))]
            drawn_pair = zip(pair, (draws[1:3], draws[3:5]), strict=True)
            return tuple(operation(name, m, sign < 0.5) for (name, p, m), (coin, sign) in drawn_pair if coin < p)
        return ()


def parse(text: str) -> Policy:
    """none, auto, or rand-mM-nN with M in 0..10 and N in 1..10. Raises ConfigError for anything else.

    rand-mM-nN is timm's: N operations drawn with replacement, each applied with probability 1/2. As in timm, adding
    -inc1 lets all operations grow stronger with M (without it, posterize and solarize grow weaker, and the
    factors of colour, contrast, brightness and sharpness run from 0.1 to 1.9)."""
    if text in ("none", "auto"):
        return Policy(text)
    match = re.fullmatch(r"rand-m(\d+)-n(\d+)(-inc[01])?", text)
    if match and int(match[1]) <= 10 and 1 <= int(match[2]) <= MAX_OPS:
        return Policy("rand", int(match[1]), int(match[2]), match[3] == "-inc1")
    raise ConfigError(
        "augment.policy",
        got=repr(text),
        want=f"none, auto, or rand-mM-nN with M in 0..10 and N in 1..{MAX_OPS}",
        cure="rand-m7-n2 is a good start",
    )


def operation(name: str, magnitude: float, negative: bool, increasing: bool = False) -> Op:
    """An operation at a magnitude in [0, 10]; `negative` turns those that have a direction."""
    level = magnitude / 10.0
    increasing = increasing and name in _INCREASING
    sign = -1.0 if negative else 1.0
    if name == "Rotate":
        return Op(name, sign * level * 30.0)
    if name in ("ShearX", "ShearY"):
        return Op(name, sign * level * 0.3)
    if name in ("TranslateXRel", "TranslateYRel"):
        return Op(name, sign * level * 0.45)
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        return Op(name, max(0.1, 1.0 + sign * level * 0.9) if increasing else level * 1.8 + 0.1)
    if name == "Posterize":
        bits = int(level * 4)
        return Op(name, max(1, 4 - bits if increasing else bits))  # Pillow refuses 0: a black picture
    if name == "PosterizeOriginal":
        return Op("Posterize", int(level * 4) + 4)
    if name == "Solarize":
        threshold = min(256, int(level * 256))
        return Op(name, 256 - threshold if increasing else threshold)
    if name == "SolarizeAdd":
        return Op(name, min(128, int(level * 110)))
    return Op(name)


def run(image: Pixels, op: Op, fill: tuple[int, int, int]) -> Pixels:
    """Apply an operation to an image, uint8 [3, H, W] -> the same; `fill` is the colour of what comes in from outside.

    The result may be the input, a view of it, or read-only."""
    return _RUN[op.name](image, op.value, fill)


def jitter(image: Pixels, brightness: float, contrast: float, saturation: float) -> Pixels:
    """Colour jitter by three factors, uint8 [3, H, W]: one linear map, clipped and rounded once, at the end.

    So the order of the three does not matter, and it takes 0.1 ms at 160 px; Pillow's three enhancements take 0.4."""
    levels = np.array(image, dtype=np.float32, order="C")
    grey = levels[0] * np.float32(0.299)
    grey += levels[1] * np.float32(0.587)
    grey += levels[2] * np.float32(0.114)
    mean = grey.mean()
    grey *= np.float32(brightness * contrast * (1 - saturation))
    grey += np.float32(brightness * (1 - contrast)) * mean + np.float32(0.5)
    out = np.empty(levels.shape, np.uint8)
    for channel, changed in zip(levels, out, strict=True):  # one at a time: they stay in the processor's cache
        channel *= np.float32(brightness * contrast * saturation)
        channel += grey
        changed[:] = np.clip(channel, 0, 255, out=channel)
    return out


def _look_up(image: Pixels, table: NDArray[np.uint8]) -> Pixels:
    # four times as fast as numpy's take
    return np.frombuffer(image.tobytes().translate(table.tobytes()), np.uint8).reshape(image.shape)


def _grey(image: Pixels) -> Pixels:
    """Pillow's integer luma (ITU-R 601-2), uint8 [H, W]."""
    red, green, blue = image
    sums = red * np.uint32(19595) + green * np.uint32(38470) + blue * np.uint32(7471) + np.uint32(0x8000)
    return (sums >> np.uint32(16)).astype(np.uint8)


def _blend(plain: Pixels | int, image: Pixels, factor: float) -> Pixels:
    """plain + factor * (image - plain), clipped, then cut off: Pillow's rounding."""
    base = np.asarray(plain, np.float32)
    out = image.astype(np.float32)
    out -= base
    out *= np.float32(factor)
    out += base
    return np.clip(out, 0, 255, out=out).astype(np.uint8)


def _contrast(image: Pixels, factor: float, fill: object) -> Pixels:
    return _look_up(image, _blend(int(_grey(image).mean() + 0.5), _LEVELS, factor))


def _auto_contrast(image: Pixels, value: float, fill: object) -> Pixels:
    out = np.empty_like(image)
    for channel, stretched in zip(image, out, strict=True):
        low, high = int(channel.min()), int(channel.max())
        scale = 255.0 / (high - low) if high > low else 1.0
        offset = -low * scale if high > low else 0.0
        table = np.clip((_LEVELS * scale + offset).astype(np.int64), 0, 255).astype(np.uint8)
        stretched[:] = _look_up(np.ascontiguousarray(channel), table)
    return out


def _posterize(image: Pixels, bits: float, fill: object) -> Pixels:
    return image & np.uint8(256 - (1 << (8 - int(bits)))) if bits < 8 else image


def _solarize(image: Pixels, threshold: float, fill: object) -> Pixels:
    return _look_up(image, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def _solarize_add(image: Pixels, add: float, fill: object) -> Pixels:
    levels = _LEVELS.astype(np.int64)
    return _look_up(image, np.where(levels < 128, np.minimum(255, levels + int(add)), levels).astype(np.uint8))


def _translated(image: Pixels, down: int, right: int, fill: tuple[int, int, int]) -> Pixels:
    """out[y, x] = image[y + down, x + right], by whole pixels."""
    _, height, width = image.shape
    out = np.empty_like(image)
    out[:] = np.array(fill, np.uint8)[:, None, None]
    source = image[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
    y, x = max(-down, 0), max(-right, 0)
    out[:, y : y + source.shape[1], x : x + source.shape[2]] = source
    return out


def _pillow(image: Pixels, function: Callable[[Image.Image], Image.Image]) -> Pixels:
    # "RGB;L" holds each row's three channels one after another, so both ways copy whole rows
    rows = np.ascontiguousarray(image.transpose(1, 0, 2))
    _, height, width = image.shape
    done = function(Image.frombytes("RGB", (width, height), rows.tobytes(), "raw", "RGB;L"))
    return np.frombuffer(done.tobytes("raw", "RGB;L"), np.uint8).reshape(height, 3, width).transpose(1, 0, 2)


def _affine(image: Pixels, matrix: tuple[float, ...], fill: tuple[int, int, int]) -> Pixels:
    size = (image.shape[2], image.shape[1])
    method, resample = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return _pillow(image, lambda picture: picture.transform(size, method, matrix, resample, fillcolor=fill))


def _zoom(image: Pixels, factor: float, fill: tuple[int, int, int]) -> Pixels:
    _, height, width = image.shape
    step, rest = 1 / factor, (1 - 1 / factor) / 2
    return _affine(image, (step, 0, rest * width, 0, step, rest * height), fill)


def _rotate(image: Pixels, degrees: float, fill: tuple[int, int, int]) -> Pixels:
    return _pillow(image, lambda picture: picture.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=fill))


_LEVELS = np.arange(256, dtype=np.uint8)
_RUN: dict[str, Callable[[Pixels, float, tuple[int, int, int]], Pixels]] = {
    "AutoContrast": _auto_contrast,
    "Brightness": lambda image, factor, fill: _look_up(image, _blend(0, _LEVELS, factor)),
    "Color": lambda image, factor, fill: _blend(_grey(image), image, factor),
    "Contrast": _contrast,
    "Equalize": lambda image, value, fill: _pillow(image, ImageOps.equalize),
    "Invert": lambda image, value, fill: ~image,
    "Posterize": _posterize,
    "Rotate": _rotate,
    "Sharpness": lambda image, factor, fill: _pillow(image, lambda p: ImageEnhance.Sharpness(p).enhance(factor)),
    "ShearX": lambda image, factor, fill: _affine(image, (1, factor, 0, 0, 1, 0), fill),
    "ShearY": lambda image, factor, fill: _affine(image, (1, 0, 0, factor, 1, 0), fill),
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "TranslateXRel": lambda image, share, fill: _translated(image, 0, round(share * image.shape[2]), fill),
    "TranslateYRel": lambda image, share, fill: _translated(image, round(share * image.shape[1]), 0, fill),
    "Zoom": _zoom,
}
