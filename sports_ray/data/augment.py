"""What happens to the pixels of one image, as a pure function of (seed, epoch, position).

`sample_params` draws what is to be done (a record that can be logged), `apply` does it, `evaluate` is the deterministic
transform of timm. Everything stays uint8: crop and resize as channels-last tensors (0.09 ms from 224 px to 160 where
Pillow takes 0.23), then flips, colour and geometry on the small image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from sports_ray.config import AugmentConfig, ImageSpec
from sports_ray.data import order, policy
from sports_ray.data.policy import Op, Policy

Box = tuple[int, int, int, int]
"""top, left, height, width in px."""

_ATTEMPTS = 10
_CROP, _FLIP, _JITTER, _ROTATE, _ZOOM, _ERASE, _POLICY = 0, 22, 24, 28, 29, 30, 53
DRAWS = -(-(_POLICY + policy.DRAWS) // 4) * 4
"""Uniform draws that belong to a position. Where each stands is part of the stream's definition."""

_JITTER_ORDERS = tuple(permutations(("Brightness", "Contrast", "Color")))
_parse = lru_cache(maxsize=8)(policy.parse)


class Params(NamedTuple):
    """What is done to one training image."""

    box: Box | None
    """Crop, in px of the decoded image; None: the evaluation transform."""
    hflip: bool
    vflip: bool
    ops: tuple[Op, ...]
    """On the small image, in this order."""
    erase: Box | None
    """On the small image."""


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
    ops: list[Op] = []
    if augment.rotate:
        ops.append(Op("Rotate", augment.rotate * (2 * u[_ROTATE] - 1)))
    if augment.zoom:
        ops.append(Op("Zoom", 1 + augment.zoom * (2 * u[_ZOOM] - 1)))
    if augment.color_jitter:
        names = _JITTER_ORDERS[int(u[_JITTER + 3] * len(_JITTER_ORDERS))]
        low, high = max(0.0, 1 - augment.color_jitter), 1 + augment.color_jitter
        ops += [Op(name, low + (high - low) * u[_JITTER + i]) for i, name in enumerate(names)]
    ops += _parse(augment.policy).sample(u[_POLICY:])
    return Params(
        _random_crop(augment, u, width, height) if augment.crop == "random" else None,
        u[_FLIP] < augment.hflip,
        u[_FLIP + 1] < augment.vflip,
        tuple(ops),
        _erase_box(u[_ERASE + 1 :], size) if u[_ERASE] < augment.erasing else None,
    )


def apply(image: Tensor, params: Params, spec: ImageSpec) -> Tensor:
    """uint8 [3, H, W] -> uint8 [3, S, S], S = spec.train_size. The input is left as it is."""
    size = spec.train_size
    if params.box is None:
        small = evaluate(image, spec, size)
    else:
        top, left, height, width = params.box
        small = _resize(image[:, top : top + height, left : left + width], size, size, spec.interpolation)
    pixels = small.permute(1, 2, 0).numpy()
    pixels = pixels[:: -1 if params.vflip else 1, :: -1 if params.hflip else 1]
    fill = fill_colour(spec)
    if params.ops:
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        for op in params.ops:
            picture = policy.run(picture, op, fill)
        pixels = np.asarray(picture)
    out = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    if params.erase is not None:
        top, left, height, width = params.erase
        out[:, top : top + height, left : left + width] = np.array(fill, np.uint8)[:, None, None]
    return torch.from_numpy(out)


def evaluate(image: Tensor, spec: ImageSpec, size: int) -> Tensor:
    """timm's evaluation transform before normalisation: uint8 [3, H, W] -> uint8 [3, size, size].

    center: shorter side to size / crop_pct, then the middle; squash: both sides to it; border: the longer side to it,
    padded with the mean colour. Within one grey level of timm's, which resizes with Pillow."""
    height, width = image.shape[-2:]
    target = math.floor(size / spec.crop_pct)
    if spec.crop_mode == "squash":
        height, width = target, target
    elif spec.crop_mode == "border":
        longer = max(height, width) / target
        height, width = max(1, round(height / longer)), max(1, round(width / longer))
    elif height <= width:
        height, width = target, int(target * width / height)
    else:
        height, width = int(target * height / width), target
    image = _resize(image, height, width, spec.interpolation)
    return _crop_or_pad(image, round((height - size) / 2.0), round((width - size) / 2.0), size, fill_colour(spec))


def shrink(augment: AugmentConfig, width: int, height: int, size: int) -> int:
    """By how much (1, 2, 4 or 8) the decoder may divide the sides of a training image: its smallest possible crop
    still has `size` px a side.

    Made from the image's size and the configuration alone, so that a cached image serves every later crop."""
    if augment.crop != "random":
        return 1
    flattest = min(augment.crop_ratio[0], 1 / augment.crop_ratio[1])
    smallest = math.sqrt(width * height * augment.crop_scale[0] * flattest)
    room = min(smallest, width, height) / size
    return next((d for d in (8, 4, 2) if room >= d), 1)


def fill_colour(spec: ImageSpec) -> tuple[int, int, int]:
    """The model's mean colour, 0..255: what comes in from outside is zero after normalisation."""
    red, green, blue = (min(255, round(255 * mean)) for mean in spec.mean)
    return red, green, blue


def _resize(image: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    # torch's uint8 kernel is fastest on channels-last memory, and always gives new memory
    batch = image[None].contiguous(memory_format=torch.channels_last)
    return interpolate(batch, size=(height, width), mode=interpolation, antialias=True, align_corners=False)[0]


def _crop_or_pad(image: Tensor, top: int, left: int, size: int, fill: tuple[int, int, int]) -> Tensor:
    height, width = image.shape[-2:]
    if top >= 0 and left >= 0:
        return image[:, top : top + size, left : left + size]
    out = torch.tensor(fill, dtype=torch.uint8)[:, None, None].repeat(1, size, size)
    inside = image[:, max(top, 0) : top + size, max(left, 0) : left + size]
    y, x = max(-top, 0), max(-left, 0)
    out[:, y : y + inside.shape[1], x : x + inside.shape[2]] = inside
    return out


def _random_crop(augment: AugmentConfig, u: Sequence[float], width: int, height: int) -> Box:
    """Random-resized crop (Szegedy et al. 2015) as torchvision draws it: 10 attempts, then the largest in the middle."""
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
