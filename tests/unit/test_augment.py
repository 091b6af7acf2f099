"""Crops, policies and colour against timm, torchvision and Pillow; draws as pure functions of the position."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from timm.data import create_transform
from torchvision.transforms import functional as tv

from sports_ray.config import AugmentConfig
from sports_ray.data import augment as augmentation
from sports_ray.data import policy
from sports_ray.data.augment import Params, apply, evaluate, params_from, sample_params, shrink
from sports_ray.data.policy import Op
from sports_ray.engine.learner import build_learner
from sports_ray.engine.world import World
from sports_ray.model.build import image_spec
from sports_ray.recipe import build_config
from tests.support.learners import new_learner
from tests.support.pictures import FILL, photograph, spec, tensor


def assert_equal_but_for_rounding(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Pillow and torch round their fixed-point sums in another order: two levels at the most, rarely more than one."""
    apart = (ours.int() - theirs.int()).abs().double()
    assert apart.max() <= 2 and apart.mean() < 0.2 and (apart > 1).double().mean() < 0.005


def levels_apart(one: torch.Tensor, other: torch.Tensor) -> int:
    assert one.shape == other.shape
    return int((one.int() - other.int()).abs().max())


def nothing(**changes: Any) -> Params:
    return Params(None, False, False, (), None, (), None)._replace(**changes)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("size", [(224, 224), (311, 200), (57, 90), (96, 96)])
def test_evaluation_is_timms_but_for_rounding(
    mode: str, interpolation: str, crop_pct: float, size: tuple[int, int]
) -> None:
    image = photograph(*size)
    options: dict[str, Any] = dict(crop_pct=crop_pct, crop_mode=mode, interpolation=interpolation, normalize=False)
    theirs = create_transform(96, is_training=False, **options)(image)
    ours = evaluate(tensor(image), spec(crop_pct=crop_pct, crop_mode=mode, interpolation=interpolation), 96)
    assert_equal_but_for_rounding(ours, theirs)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("box", [(0, 0, 150, 200), (10, 21, 120, 97), (3, 150, 40, 30)])
def test_training_crop_is_torchvisions_but_for_rounding(interpolation: str, box: tuple[int, int, int, int]) -> None:
    image = photograph(200, 150)
    mode = tv.InterpolationMode(interpolation)
    theirs = tv.hflip(tv.resized_crop(image, *box, [96, 96], mode))
    ours = apply(tensor(image), nothing(box=box, hflip=True), spec(interpolation=interpolation))
    assert_equal_but_for_rounding(ours, tensor(theirs))


@pytest.mark.parametrize("upright", [False, True])
def test_the_ends_of_a_long_image_are_not_resized(upright: bool) -> None:
    """Its shorter side to 109 px, for all of it, would take 36 GB: one image would end a run."""
    long = torch.zeros(3, 1, 1_000_000, dtype=torch.uint8)
    long[:, :, 500_000:] = 255
    seen = evaluate(long.mT if upright else long, spec(), 96)
    seen = seen.mT if upright else seen
    assert seen.shape == (3, 96, 96) and (seen.int().diff(dim=-1) >= 0).all()  # from the dark half to the light one
    assert abs(seen.float().mean() - 127.5) < 2  # of which as much is seen


def test_an_image_that_is_not_too_long_is_resized_whole() -> None:
    image = photograph(64 * 4, 4)
    theirs = create_transform(96, is_training=False, crop_pct=0.875, interpolation="bilinear", normalize=False)(image)
    assert_equal_but_for_rounding(evaluate(tensor(image), spec(interpolation="bilinear"), 96), theirs)


def test_a_center_crop_in_training_is_the_evaluation_transform() -> None:
    image = tensor(photograph(130, 111))
    params = sample_params(AugmentConfig(crop="center", hflip=0), 0, 0, 0, 130, 111, 96)
    assert torch.equal(apply(image, params, spec()), evaluate(image, spec(), 96))


@pytest.mark.parametrize("size", [(224, 224), (311, 200), (57, 90), (96, 96)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_squashed_training_image_is_timms_squash_of_all_of_it(interpolation: str, size: tuple[int, int]) -> None:
    image = photograph(*size)
    options: dict[str, Any] = dict(crop_pct=1.0, crop_mode="squash", interpolation=interpolation, normalize=False)
    theirs = create_transform(96, is_training=False, **options)(image)
    for position in range(20):  # the whole, at every position
        params = sample_params(AugmentConfig(crop="squash", hflip=0), 5, 1, position, *size, 96)
        assert params.box == (0, 0, size[1], size[0])
    ours = apply(tensor(image), params, spec(interpolation=interpolation, crop_mode="center", crop_pct=0.5))
    assert_equal_but_for_rounding(ours, theirs)


@pytest.mark.parametrize("training", [False, True])
def test_a_photograph_squashed_to_224_px_and_normalised_is_timms_tensor(training: bool) -> None:
    config = build_config("vlg-resnet50")
    ours_spec = image_spec(config.model.name, config.data.image_size, config.data.crop_mode, config.data.crop_pct)
    y, x = np.indices((200, 311))
    image = Image.fromarray((np.stack((3 * x + y, x * y // 50, 2 * y - x), 2) % 256).astype(np.uint8))
    mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))  # ImageNet's
    resized = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR))
    by_hand = torch.from_numpy((resized / 255 - mean) / std).permute(2, 0, 1)
    names: dict[str, Any] = dict(interpolation="bilinear", mean=tuple(mean), std=tuple(std))
    theirs = create_transform(224, is_training=False, crop_pct=1.0, crop_mode="squash", **names)(image)
    assert (theirs - by_hand).abs().max() < 1e-5
    assert (by_hand[:, [0, 100, 223], [0, 50, 223]] - torch.tensor(GOLDEN_SQUASH)).abs().max() < 1e-3
    params = sample_params(AugmentConfig(crop="squash", hflip=0), 0, 0, 0, 311, 200, 224)
    pixels = apply(tensor(image), params, ours_spec) if training else evaluate(tensor(image), ours_spec, 224)
    learner, _ = new_learner(World())
    learner = build_learner(learner.config, learner.model, ours_spec, 1.0, 0.9, "fp32", World())
    apart = (learner.normalise(pixels[None])[0] - by_hand).abs() * torch.from_numpy(std)[:, None, None] * 255  # levels
    assert apart.max() < 2.001 and apart.mean() < 0.2


GOLDEN_SQUASH = [[-2.1008, -1.3987, -0.3369], [-2.0357, 0.1176, 1.6057], [-0.3404, 0.0779, -0.2707]]
"""By channel, at (0, 0), (100, 50) and (223, 223)."""


def test_squash_changes_no_other_draw_of_a_position() -> None:
    everything: dict[str, Any] = dict(policy="rand-m7-n2", color_jitter=0.3, erasing=0.5, rotate=9.0, vflip=0.5)
    for position in range(20):
        random_crop = sample_params(AugmentConfig(**everything), 3, 0, position, 200, 150, 96)
        squash = sample_params(AugmentConfig(crop="squash", **everything), 3, 0, position, 200, 150, 96)
        assert squash._replace(box=None) == random_crop._replace(box=None)


def test_parameters_depend_on_seed_epoch_and_position_alone() -> None:
    augment = AugmentConfig(policy="rand-m7-n2", color_jitter=0.4, rotate=10, zoom=0.1, erasing=0.5, vflip=0.5)
    span = augmentation.draws(3, 5, 100, 140)
    alone = [sample_params(augment, 3, 5, position, 224, 180, 96) for position in range(100, 140)]
    assert alone == [params_from(augment, u, 224, 180, 96) for u in span]
    assert len(set(alone)) == 40
    assert (
        sample_params(augment, 4, 5, 100, 224, 180, 96) != alone[0] != sample_params(augment, 3, 6, 100, 224, 180, 96)
    )


def test_known_parameters() -> None:
    """Values that must never change: old runs are resumed with them."""
    augment = AugmentConfig(policy="rand-m7-n2", color_jitter=0.4, rotate=10, erasing=1.0)
    params = sample_params(augment, 1, 2, 3, 224, 224, 96)
    assert params.box == KNOWN_BOX and (params.hflip, params.vflip) == KNOWN_FLIPS and params.erase == KNOWN_ERASE
    assert [op.name for op in params.geometry + params.ops] == KNOWN_OPS


KNOWN_BOX = (1, 27, 222, 170)
KNOWN_FLIPS = (False, False)
KNOWN_ERASE = (16, 16, 43, 64)
KNOWN_OPS = ["Rotate", "TranslateYRel"]


@pytest.mark.parametrize("width, height", [(224, 224), (640, 200), (40, 400), (5, 3)])
def test_random_crops_lie_inside_and_cover_the_chosen_share(width: int, height: int) -> None:
    augment = AugmentConfig(crop_scale=(0.35, 1.0))
    boxes = [params_from(augment, u, width, height, 96).box for u in augmentation.draws(0, 0, 0, 500)]
    for box in boxes:
        assert box is not None
        top, left, h, w = box
        assert top >= 0 and left >= 0 and h > 0 and w > 0 and top + h <= height and left + w <= width
    if width == height:
        areas = [box[2] * box[3] / (width * height) for box in boxes if box]
        ratios = [box[3] / box[2] for box in boxes if box]
        assert 0.34 < min(areas) < 0.4 and 0.9 < max(areas) <= 1
        assert 0.74 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.35


def test_probabilities_are_kept() -> None:
    augment = AugmentConfig(hflip=0.5, vflip=0.25, erasing=0.1)
    params = [params_from(augment, u, 224, 224, 96) for u in augmentation.draws(0, 0, 0, 4000)]
    for got, want in (
        (sum(p.hflip for p in params), 2000),
        (sum(p.vflip for p in params), 1000),
        (sum(p.erase is not None for p in params), 400),
    ):
        assert abs(got - want) < 4.5 * math.sqrt(want * (1 - want / 4000))


def test_erasing_fills_a_rectangle_with_the_mean_colour() -> None:
    image = torch.zeros(3, 96, 96, dtype=torch.uint8)
    out = apply(image, nothing(box=(0, 0, 96, 96), erase=(10, 20, 30, 40)), spec())
    inside = out[:, 10:40, 20:60]
    assert (inside == torch.tensor(FILL, dtype=torch.uint8)[:, None, None]).all()
    assert (out != 0).any(0).sum() == 30 * 40
    assert (image == 0).all()


@pytest.mark.parametrize("factor, rounding", [((1.3, 1, 1), 1), ((1, 0.7, 1), 2), ((1, 1, 0.6), 1), ((1, 1, 1.4), 1)])
def test_one_factor_of_jitter_is_pillows_enhancement(factor: tuple[float, float, float], rounding: int) -> None:
    image = photograph(96, 96)
    enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    which = next(i for i, value in enumerate(factor) if value != 1)
    theirs = tensor(enhance[which](image).enhance(factor[which]))
    assert levels_apart(torch.from_numpy(policy.jitter(tensor(image).numpy(), *factor)), theirs) <= rounding


@pytest.mark.parametrize("factors", [(1.2, 0.8, 1.3), (0.8, 1.3, 0.5)])
def test_apply_jitters_by_all_three_factors_as_torchvision(factors: tuple[float, float, float]) -> None:
    image = (tensor(photograph(96, 96)).double() / 3 + 80).byte()  # nothing is clipped on the way
    theirs = image.float() / 255
    for adjust, factor in zip((tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation), factors, strict=True):
        theirs = adjust(theirs, factor)
    ours = apply(image, nothing(box=(0, 0, 96, 96), jitter=factors), spec())
    assert levels_apart(ours, (theirs * 255).round().byte()) <= 1


@pytest.mark.parametrize("degrees", [-31.0, 12.5, 90.0])
def test_apply_rotates_as_pillow(degrees: float) -> None:
    image = photograph(96, 96)
    ours = apply(tensor(image), nothing(box=(0, 0, 96, 96), geometry=(Op("Rotate", degrees),)), spec())
    assert torch.equal(ours, tensor(image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=FILL)))


@pytest.mark.parametrize("factor", [0.7, 0.95, 1.3])
def test_apply_zooms_as_torchvision(factor: float) -> None:
    image = photograph(96, 96)
    how: dict[str, Any] = dict(interpolation=tv.InterpolationMode.BILINEAR, fill=list(FILL))
    theirs = tensor(tv.affine(image, angle=0.0, translate=[0, 0], scale=factor, shear=[0.0], **how))
    ours = apply(tensor(image), nothing(box=(0, 0, 96, 96), geometry=(Op("Zoom", factor),)), spec())
    assert levels_apart(ours, theirs) <= 1


def test_apply_flips_as_pillow() -> None:
    image = photograph(96, 96)
    for hflip, vflip in itertools.product((False, True), repeat=2):
        theirs = ImageOps.mirror(image) if hflip else image
        theirs = ImageOps.flip(theirs) if vflip else theirs
        ours = apply(tensor(image), nothing(box=(0, 0, 96, 96), hflip=hflip, vflip=vflip), spec())
        assert torch.equal(ours, tensor(theirs))


@pytest.mark.parametrize("box", [(3, 10, 90, 120), None])
def test_apply_does_all_parts_in_their_order(box: tuple[int, int, int, int] | None) -> None:
    image = tensor(photograph(150, 110))
    geometry, ops = (Op("Rotate", 20.0), Op("Zoom", 0.8)), (Op("ShearX", 0.2), Op("Equalize"), Op("Solarize", 100))
    params = Params(box, True, True, geometry, (1.3, 0.7, 1.2), ops, (20, 30, 40, 50))
    small = evaluate(image, spec(), 96) if box is None else apply(image, nothing(box=box), spec())
    pixels = small.flip(1, 2).numpy()
    for op in geometry:
        pixels = policy.run(pixels, op, FILL)
    pixels = policy.jitter(pixels, 1.3, 0.7, 1.2)
    for op in ops:
        pixels = policy.run(pixels, op, FILL)
    expected = torch.from_numpy(pixels.copy())
    expected[:, 20:60, 30:80] = torch.tensor(FILL, dtype=torch.uint8)[:, None, None]
    before = image.clone()
    ours = apply(image, params, spec())
    assert torch.equal(ours, expected) and torch.equal(image, before)
    none = nothing()._asdict()
    for part in ("hflip", "vflip", "geometry", "jitter", "ops", "erase"):
        assert not torch.equal(apply(image, params._replace(**{part: none[part]}), spec()), expected), part


@pytest.mark.parametrize(
    "rotate, zoom, color_jitter",
    [(15.0, 0.2, 0.3), (180.0, 0.5, 1.0), (15.0, 0, 0), (0, 0.2, 0), (0, 0, 0.3), (0, 0, 0)],
)
def test_rotation_zoom_and_jitter_fill_their_ranges(rotate: float, zoom: float, color_jitter: float) -> None:
    augment = AugmentConfig(rotate=rotate, zoom=zoom, color_jitter=color_jitter)
    params = [params_from(augment, u, 96, 96, 96) for u in augmentation.draws(7, 1, 0, 3000)]
    drawn = [("Rotate", 0.0, rotate), ("Zoom", 1.0, zoom)] + 3 * [("jitter", 1.0, color_jitter)]
    drawn = [part for part in drawn if part[2]]  # name, middle and reach
    names = [name for name, *_ in drawn if name != "jitter"]
    assert all([op.name for op in each.geometry] == names for each in params)
    assert all((each.jitter is not None) == (color_jitter > 0) for each in params)
    values = np.array([[op.value for op in each.geometry] + list(each.jitter or ()) for each in params])
    assert values.shape == (3000, len(drawn))
    shares = [(column - middle) / reach for column, (_, middle, reach) in zip(values.T, drawn, strict=True)]
    for share in shares:  # of the way to either end
        assert abs(share).max() < 1 + 1e-9 and share.min() < -0.99 and share.max() > 0.99
        counts, _ = np.histogram(share, 10, (-1, 1))
        assert abs(counts - 300).max() < 75  # four and a half deviations
    for one, other in itertools.combinations(shares, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.09  # each has a draw of its own


def test_zoom_and_rotation_bring_in_the_mean_colour() -> None:
    white = np.full((3, 96, 96), 255, np.uint8)
    out = policy.run(white, Op("Zoom", 0.5), FILL)
    assert tuple(out[:, 0, 0]) == FILL and (out[:, 30:66, 30:66] == 255).all()
    assert (policy.run(white, Op("Zoom", 1.5), FILL) == 255).all()
    out = policy.run(white, Op("Rotate", 45.0), FILL)
    assert tuple(out[:, 0, 0]) == FILL and (out[:, 48, 48] == 255).all()


@pytest.mark.parametrize(
    "box, expected",
    [((0, 0, 768, 1024), 8), ((0, 0, 767, 1024), 4), ((5, 5, 192, 300), 2), ((5, 5, 191, 900), 1), (None, 1)],
)
def test_the_decoder_may_shrink_as_far_as_the_crop_keeps_its_side(
    box: tuple[int, int, int, int] | None, expected: int
) -> None:
    assert shrink(box, 96) == expected


@pytest.mark.parametrize("factor", [2, 4])
def test_a_shrunken_image_gives_nearly_the_same_crop(factor: int) -> None:
    whole = photograph(801, 602)
    reduced = whole.reduce(factor)
    params = nothing(box=(37, 101, 500, 640))
    exact, quick = apply(tensor(whole), params, spec()), apply(tensor(reduced), params, spec(), shrink=factor)
    assert (exact.int() - quick.int()).abs().float().mean() < 4
