"""Test-time augmentation: from each photograph several views, whose predictions are averaged.

A view is cut from a *source*: the photograph as decoded, brought to a square by the model's own resize. The source of
the plain view is exactly what training validates with.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sports_ray.config import ImageSpec
from sports_ray.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from sports_ray.predict.member import Member

CHOICES = ("none", "hflip", "5crop", "10crop", "scales=0.9,1.1")
PLAIN = "plain"
CROP_PCT = 0.875
"""Corners are cut from a photograph resized to at least the view's side over this (Krizhevsky et al. 2012: 256 and 224)."""
_LEAST, _MOST = 0.25, 4.0


class Source(NamedTuple):
    """A square of `size` px; `crop_pct` as in ImageSpec: 1.0 takes all that fits into the square."""

    size: int
    crop_pct: float


class View(NamedTuple):
    """`size` px a side, from row `top` and column `left` of the source, mirrored if `flip`."""

    name: str
    source: Source
    top: int
    left: int
    size: int
    flip: bool


def views_of(choice: str, spec: ImageSpec) -> tuple[View, ...]:
    """The views of a TTA choice for a model's preprocessing; the plain view is always the first.

    none: the plain view; hflip: and mirrored; 5crop: plain and four corners; 10crop: all five, and mirrored;
    scales=A,B: plain, and the same field of view at A and B times the size. Raises ConfigError for anything else."""
    plain = View(PLAIN, Source(spec.eval_size, spec.crop_pct), 0, 0, spec.eval_size, False)
    if choice == "none":
        return (plain,)
    if choice == "hflip":
        return (plain, mirrored(plain))
    if choice in ("5crop", "10crop"):
        five = (plain, *_corners(spec))
        return five if choice == "5crop" else (*five, *map(mirrored, five))
    return (plain, *(_scaled(factor, spec) for factor in _factors(choice)))


def mirrored(view: View) -> View:
    return view._replace(name=f"{view.name}-flip", flip=not view.flip)


def source_spec(source: Source, spec: ImageSpec) -> ImageSpec:
    """The preprocessing that makes a source, for `augment.evaluate` at `source.size`."""
    return dataclasses.replace(spec, crop_pct=source.crop_pct)


def view_batches(views: Sequence[View], batches: Mapping[Source, Tensor]) -> list[Tensor]:
    """Sources [n, 3, C, C] of any dtype -> one batch [n, 3, S, S] a view, in the order of `views`."""
    return [cut(view, batches[view.source]) for view in views]


def cut(view: View, images: Tensor) -> Tensor:
    """The view of each image of its source's batch."""
    part = images[:, :, view.top : view.top + view.size, view.left : view.left + view.size]
    return part.flip(3) if view.flip else part


def check_views(views: Sequence[View], member: Member) -> None:
    """ConfigError if the model cannot take the size of a view."""
    from sports_ray.config import ModelConfig
    from sports_ray.model.build import create, pretrained_cfg
    from sports_ray.model.shapes import shapes_only

    own = member.spec.eval_size
    for size in sorted({view.size for view in views} - {own}):
        if pretrained_cfg(member.model).fixed_input_size:
            raise ConfigError(
                f"--tta for {member.name}",
                got=f"images of {size} px",
                want=f"{own} px, which {member.model} is built for",
                cure="--tta hflip, 5crop or 10crop",
            )
        with shapes_only():
            create(ModelConfig(name=member.model), len(member.classes), size)


def _corners(spec: ImageSpec) -> list[View]:
    size = spec.eval_size
    side = math.floor(size / min(spec.crop_pct, CROP_PCT))
    source, far = Source(side, 1.0), side - size
    places = {"top-left": (0, 0), "top-right": (0, far), "bottom-left": (far, 0), "bottom-right": (far, far)}
    return [View(name, source, top, left, size, False) for name, (top, left) in places.items()]


def _scaled(factor: float, spec: ImageSpec) -> View:
    size = max(1, round(spec.eval_size * factor))
    if size == spec.eval_size:
        raise ConfigError("--tta", got=f"scale {factor:g}: {size} px as without it", want="scales that change the size")
    return View(f"scale-{factor:g}", Source(size, spec.crop_pct), 0, 0, size, False)


def _factors(choice: str) -> list[float]:
    name, _, values = choice.partition("=")
    wrong = ConfigError("--tta", got=repr(choice), want=", ".join(CHOICES), cure="for example --tta hflip")
    if name != "scales" or not values:
        raise wrong
    try:
        factors = [float(value) for value in values.split(",")]
    except ValueError:
        raise wrong from None
    if len(set(factors)) < len(factors) or not all(_LEAST <= factor <= _MOST for factor in factors):
        raise ConfigError("--tta", got=repr(choice), want=f"different scales from {_LEAST:g} to {_MOST:g}")
    return factors
