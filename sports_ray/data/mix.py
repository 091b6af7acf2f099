"""Mixup and cutmix of one lane, as a pure function of (seed, step, lane)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sports_ray.config import AugmentConfig
from sports_ray.data.order import MIX, generator


class LanePlan(NamedTuple):
    """How the n images of a lane are mixed."""

    kind: Literal["none", "mixup", "cutmix"]
    lam: float
    """Weight of an image's own label, in [0, 1]; for cutmix exactly the share of its own pixels."""
    partner: Tensor
    """int64 [n], a permutation: whose label has the weight 1 - lam."""
    box: tuple[int, int, int, int]
    """Rows and columns [top, bottom), [left, right) that cutmix takes from the partner."""


def plan_lane(
    augment: AugmentConfig, seed: int, step: int, lane: int, n: int, height: int, width: int, epochs_left: int
) -> LanePlan:
    """Plan for lane `lane` of optimiser step `step` of the run (counted from 0 over all epochs), of n images.

    epochs_left counts this epoch too: mixing is off where epochs_left <= augment.mix_off_epochs."""
    kinds: list[Literal["mixup", "cutmix"]] = []
    if augment.mixup > 0:
        kinds.append("mixup")
    if augment.cutmix > 0:
        kinds.append("cutmix")
    rng = generator(seed, MIX, step, lane)
    coin, which, y, x = rng.random(4)
    if not kinds or epochs_left <= augment.mix_off_epochs or coin >= augment.mix_prob:
        return LanePlan("none", 1.0, torch.arange(n), (0, 0, 0, 0))
    partner = torch.from_numpy(np.argsort(rng.random(n), kind="stable").astype(np.int64, copy=False))
    kind = kinds[int(which * len(kinds))]
    if kind == "mixup":
        return LanePlan(kind, float(rng.beta(augment.mixup, augment.mixup)), partner, (0, 0, 0, 0))
    top, bottom, left, right = _cut(float(rng.beta(augment.cutmix, augment.cutmix)), y, x, height, width)
    lam = 1 - (bottom - top) * (right - left) / (height * width)
    return LanePlan(kind, lam, partner, (top, bottom, left, right))


def apply_lane(images: Tensor, plan: LanePlan) -> Tensor:
    """Mix float images [n, C, H, W] in place, and return them. The loss is lam * loss(labels) + (1 - lam) *
    loss(labels[partner])."""
    if plan.kind == "none":
        return images
    partner = plan.partner.to(images.device, non_blocking=True)
    if plan.kind == "mixup":
        return images.lerp_(images[partner], 1 - plan.lam)
    top, bottom, left, right = plan.box
    images[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return images


def _cut(lam: float, y: float, x: float, height: int, width: int) -> tuple[int, int, int, int]:
    """Box of about 1 - lam of the image around a uniform centre, cut off at the edges (Yun et al. 2019, sec. 3.1)."""
    half_height, half_width = (side * math.sqrt(1 - lam) / 2 for side in (height, width))
    top, bottom = (min(height, max(0, round(y * height + d))) for d in (-half_height, half_height))
    left, right = (min(width, max(0, round(x * width + d))) for d in (-half_width, half_width))
    return top, bottom, left, right
