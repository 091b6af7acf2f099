"""The operations of RandAugment, AutoAugment and colour jitter, by timm's names and with timm's magnitudes.

They run on the small image, after the crop, in Pillow's C code, and equal timm's (a test holds that) but for two
choices: rotation and shear interpolate bilinearly, a translation is by whole pixels.
Sources: Cubuk et al. 2019 (AutoAugment, RandAugment), as timm.data.auto_augment has them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image, ImageEnhance, ImageOps

from sports_ray.errors import ConfigError

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
        return Op(name, 4 - int(level * 4) if increasing else int(level * 4))
    if name == "PosterizeOriginal":
        return Op("Posterize", int(level * 4) + 4)
    if name == "Solarize":
        threshold = min(256, int(level * 256))
        return Op(name, 256 - threshold if increasing else threshold)
    if name == "SolarizeAdd":
        return Op(name, min(128, int(level * 110)))
    return Op(name)


def run(image: Image.Image, op: Op, fill: tuple[int, int, int]) -> Image.Image:
    """Apply an operation to an RGB image; `fill` is the colour of what comes in from outside."""
    name, value = op
    if name in _ENHANCE:
        return _ENHANCE[name](image).enhance(value)
    if name in _PLAIN:
        return _PLAIN[name](image)
    if name == "Posterize":
        return ImageOps.posterize(image, int(value)) if value < 8 else image
    if name == "Solarize":
        return ImageOps.solarize(image, int(value))
    if name == "SolarizeAdd":
        return image.point([min(255, v + int(value)) if v < 128 else v for v in range(256)] * 3)
    if name == "Rotate":
        return image.rotate(value, Image.Resampling.BILINEAR, fillcolor=fill)
    return _affine(image, op, fill)


def _affine(image: Image.Image, op: Op, fill: tuple[int, int, int]) -> Image.Image:
    name, value = op
    width, height = image.size
    bilinear = Image.Resampling.BILINEAR
    if name == "TranslateXRel":
        return _transform(image, (1, 0, round(value * width), 0, 1, 0), Image.Resampling.NEAREST, fill)
    if name == "TranslateYRel":
        return _transform(image, (1, 0, 0, 0, 1, round(value * height)), Image.Resampling.NEAREST, fill)
    if name == "ShearX":
        return _transform(image, (1, value, 0, 0, 1, 0), bilinear, fill)
    if name == "ShearY":
        return _transform(image, (1, 0, 0, value, 1, 0), bilinear, fill)
    if name == "Zoom":
        step, rest = 1 / value, (1 - 1 / value) / 2
        return _transform(image, (step, 0, rest * width, 0, step, rest * height), bilinear, fill)
    raise ValueError(f"unknown operation {name!r}")


def _transform(
    image: Image.Image, matrix: tuple[float, ...], resample: Image.Resampling, fill: tuple[int, int, int]
) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)


_ENHANCE = {
    "Color": ImageEnhance.Color,
    "Contrast": ImageEnhance.Contrast,
    "Brightness": ImageEnhance.Brightness,
    "Sharpness": ImageEnhance.Sharpness,
}
_PLAIN = {"AutoContrast": ImageOps.autocontrast, "Equalize": ImageOps.equalize, "Invert": ImageOps.invert}
