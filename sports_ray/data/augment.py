"""What happens to the pixels of one image, as a pure function of (seed, epoch, position).

`sample_params` draws what is to be done (a record that can be logged), `apply` does it, `evaluate` is the deterministic
transform of timm. Everything stays uint8: crop and resize by torch's kernel (0.13 ms from 224 px to 160 where Pillow
takes 0.23), then flips, geometry and colour on the small image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from sports_ray.config import AugmentConfig, ImageSpec
from sports_ray.data import order, policy
from sports_ray.data.decode import shrink_to
from sports_ray.data.policy import Op, Policy

Box = tuple[int, int, int, int]
"""top, left, height, width in px."""

_ATTEMPTS = 10
_LONGEST = 64
"""Times the shorter side."""
_CROP, _FLIP, _JITTER, _ROTATE, _ZOOM, _ERASE, _POLICY = 0, 22, 24, 28, 29, 30, 53
DRAWS = -(-(_POLICY + policy.DRAWS) // 4) * 4
"""Uniform draws that belong to a position. Where each stands is part of the stream's definition."""

_parse = lru_cache(maxsize=8)(policy.parse)


class Params(NamedTuple):
    """What is done to one training image."""

    box: Box | None
    """Crop, in px of the whole image; None: the evaluation transform. All that follows is on the small image, in this
    order."""
    hflip: bool
    vflip: bool
    geometry: tuple[Op, ...]
    """Rotation and zoom."""
    jitter: tuple[float, float, float] | None
    """Factors of brightness, contrast and saturation."""
    ops: tuple[Op, ...]
    """Of the policy."""
    erase: Box | None


def check(augment: AugmentConfig) -> Policy:
    """The parsed policy. Raises ConfigError if it cannot be parsed."""
    return _parse(augment.policy)


def draws(seed: int, epoch: int, start: int, stop: int) -> list[list[float]]:
    """The DRAWS uniform numbers of each position in [start, stop) of an epoch."""
    return order.uniforms(seed, order.AUGMENT, epoch, start, stop, DRAWS).tolist()


def sample_params(
    augment: AugmentConfig, seed: int, epoch: int, position: int, width: int, height: int, size: int
) -> Params:
    """Parameters for the image of width x height px at a position, which will come out with `size` px a side."""
    return params_from(augment, draws(seed, epoch, position, position + 1)[0], width, height, size)


def params_from(augment: AugmentConfig, u: Sequence[float], width: int, height: int, size: int) -> Params:
    """As sample_params, from the draws of the position (a row of `draws`)."""
    geometry: list[Op] = []
    if augment.rotate:
        geometry.append(Op("Rotate", augment.rotate * (2 * u[_ROTATE] - 1)))
    if augment.zoom:
        geometry.append(Op("Zoom", 1 + augment.zoom * (2 * u[_ZOOM] - 1)))
    low, high = max(0.0, 1 - augment.color_jitter), 1 + augment.color_jitter
    brightness, contrast, saturation = (low + (high - low) * x for x in u[_JITTER : _JITTER + 3])
    return Params(
        _box(augment, u, width, height),
        u[_FLIP] < augment.hflip,
        u[_FLIP + 1] < augment.vflip,
        tuple(geometry),
        (brightness, contrast, saturation) if augment.color_jitter else None,
        _parse(augment.policy).sample(u[_POLICY:]),
        _erase_box(u[_ERASE + 1 :], size) if u[_ERASE] < augment.erasing else None,
    )


def apply(image: Tensor, params: Params, spec: ImageSpec, shrink: int = 1) -> Tensor:
    """uint8 [3, H, W] -> uint8 [3, S, S], S = spec.train_size. The input is left as it is.

    shrink: by how much the image was divided when it was decoded; `params.box` is in px of the whole one."""
    size = spec.train_size
    if params.box is None:
        small = evaluate(image, spec, size)
    else:
        top, left, bottom, right = _scaled(params.box, shrink, image.shape[1], image.shape[2])
        small = _resize(image[:, top:bottom, left:right], size, size, spec.interpolation)
    pixels: NDArray[np.uint8] = small.numpy()[:, :: -1 if params.vflip else 1, :: -1 if params.hflip else 1]
    fill = fill_colour(spec)
    for op in params.geometry:
        pixels = policy.run(pixels, op, fill)
    if params.jitter:
        pixels = policy.jitter(pixels, *params.jitter)
    for op in params.ops:
        pixels = policy.run(pixels, op, fill)
    fresh = pixels.flags.c_contiguous and pixels.flags.writeable
    out = pixels if fresh else np.array(pixels, order="C")
    if params.erase is not None:
        top, left, height, width = params.erase
        out[:, top : top + height, left : left + width] = np.array(fill, np.uint8)[:, None, None]
    return torch.from_numpy(out)


def evaluate(image: Tensor, spec: ImageSpec, size: int) -> Tensor:
    """timm's evaluation transform before normalisation: uint8 [3, H, W] -> uint8 [3, size, size].

    center: shorter side to size / crop_pct, then the middle; squash: both sides to it; border: the longer side to it,
    padded with the mean colour. At most two grey levels from timm's, which resizes with Pillow, and 0.2 in the mean
    (mostly below 0.01)."""
    height, width = image.shape[-2:]
    target = math.floor(size / spec.crop_pct)
    if spec.crop_mode == "squash":
        height, width = target, target
    elif spec.crop_mode == "border":
        longer = max(height, width) / target
        height, width = max(1, round(height / longer)), max(1, round(width / longer))
    else:
        image = _strip(image)
        height, width = image.shape[-2:]
        if height <= width:
            height, width = target, int(target * width / height)
        else:
            height, width = int(target * height / width), target
    image = _resize(image, height, width, spec.interpolation)
    return _crop_or_pad(image, _middle(height, size), _middle(width, size), size, fill_colour(spec))


def _strip(image: Tensor) -> Tensor:
    """The middle of an image that is so long that its ends, none of which is seen, would take gigabytes to resize."""
    height, width = image.shape[-2:]
    most = _LONGEST * min(height, width)
    top, left = max(0, height - most) // 2, max(0, width - most) // 2
    return image[:, top : height - top, left : width - left]


def shrink(box: Box | None, size: int) -> int:
    """By how much (1, 2, 4 or 8) the decoder may divide the sides of the image: the crop keeps `size` px a side.

    Made from the crop alone: it must not depend on what is in a cache. None (the evaluation transform): 1."""
    return 1 if box is None else shrink_to(min(box[2:]), size)


def fill_colour(spec: ImageSpec) -> tuple[int, int, int]:
    """The model's mean colour, 0..255: what comes in from outside is zero after normalisation."""
    red, green, blue = (min(255, round(255 * mean)) for mean in spec.mean)
    return red, green, blue


def _resize(image: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    # gives new memory, even where nothing is to be done: the image may be a view of the cache
    return interpolate(image[None], size=(height, width), mode=interpolation, antialias=True, align_corners=False)[0]


def _scaled(box: Box, shrink: int, height: int, width: int) -> Box:
    """The crop in px of an image that was divided by `shrink`: top, left, bottom, right."""
    top, left, h, w = box
    bottom, right = min(height, round((top + h) / shrink)), min(width, round((left + w) / shrink))
    return round(top / shrink), round(left / shrink), bottom, right


def _middle(side: int, size: int) -> int:
    """Where `size` px in the middle of a side start; negative where they are more. Rounded as timm rounds."""
    return round((side - size) / 2.0) if side >= size else -((size - side) // 2)


def _crop_or_pad(image: Tensor, top: int, left: int, size: int, fill: tuple[int, int, int]) -> Tensor:
    height, width = image.shape[-2:]
    if min(height, width) >= size:
        return image[:, top : top + size, left : left + size]
    out = torch.tensor(fill, dtype=torch.uint8)[:, None, None].repeat(1, size, size)
    inside = image[:, max(top, 0) : top + size, max(left, 0) : left + size]
    y, x = max(-top, 0), max(-left, 0)
    out[:, y : y + inside.shape[1], x : x + inside.shape[2]] = inside
    return out


def _box(augment: AugmentConfig, u: Sequence[float], width: int, height: int) -> Box | None:
    if augment.crop == "random":
        return _random_crop(augment, u, width, height)
    return (0, 0, height, width) if augment.crop == "squash" else None


def _random_crop(augment: AugmentConfig, u: Sequence[float], width: int, height: int) -> Box:
    """Random-resized crop (Szegedy et al. 2015) as torchvision: 10 attempts, then the largest in the middle."""
    low, high = augment.crop_scale
    log_low, log_high = math.log(augment.crop_ratio[0]), math.log(augment.crop_ratio[1])
    for attempt in range(_ATTEMPTS):
        area = width * height * (low + (high - low) * u[_CROP + 2 * attempt])
        ratio = math.exp(log_low + (log_high - log_low) * u[_CROP + 2 * attempt + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u[_CROP + 20] * (height - h + 1)), int(u[_CROP + 21] * (width - w + 1)), h, w
    w = min(width, max(1, round(height * augment.crop_ratio[1])))
    h = min(height, max(1, round(width / augment.crop_ratio[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def _erase_box(u: Sequence[float], size: int) -> Box | None:
    """Rectangle of 2 to 33 % of the image, ratio 0.3 to 3.3 (Zhong et al. 2017, timm's bounds); 10 attempts."""
    limit = math.log(1 / 0.3)
    for attempt in range(_ATTEMPTS):
        area = size * size * (0.02 + (1 / 3 - 0.02) * u[2 * attempt])
        ratio = math.exp(limit * (2 * u[2 * attempt + 1] - 1))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < size and 0 < w < size:
            return int(u[20] * (size - h + 1)), int(u[21] * (size - w + 1)), h, w
    return None
