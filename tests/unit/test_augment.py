"""Crops, policies and colour against timm, torchvision and Pillow; draws as pure functions of the position."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from timm.data import auto_augment as timm_auto
from timm.data import create_transform
from torchvision.transforms import functional as tv

from sports_ray.config import AugmentConfig, ImageSpec
from sports_ray.data import augment as augmentation
from sports_ray.data import policy
from sports_ray.data.augment import Params, apply, evaluate, params_from, sample_params, shrink
from sports_ray.data.policy import Op
from sports_ray.errors import ConfigError

FILL = (124, 116, 104)
PLAIN = AugmentConfig()


def spec(**changes: object) -> ImageSpec:
    values: dict[str, object] = dict(train_size=96, eval_size=96, crop_pct=0.875, crop_mode="center")
    values |= dict(interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return ImageSpec(**(values | changes))  # type: ignore[arg-type]


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise at several scales: edges, flat parts and texture, as in a photograph."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells, weight in ((4, 0.5), (16, 0.3), (64, 0.2)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += weight * np.asarray(noise.resize((width, height), Image.Resampling.NEAREST))
    return Image.fromarray(total.astype(np.uint8))


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


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


def test_squash_changes_no_other_draw_of_a_position() -> None:
    everything: dict[str, Any] = dict(policy="rand-m7-n2", color_jitter=0.3, erasing=0.5, rotate=9.0, vflip=0.5)
    for position in range(20):
        random_crop = sample_params(AugmentConfig(**everything), 3, 0, position, 200, 150, 96)
        squash = sample_params(AugmentConfig(crop="squash", **everything), 3, 0, position, 200, 150, 96)
        assert squash._replace(box=None) == random_crop._replace(box=None)


@pytest.mark.parametrize("magnitude", [0, 3, 7, 10])
@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("name", policy.RAND)
def test_operations_are_timms(name: str, increasing: bool, magnitude: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photograph(96, 96, seed=magnitude)
    hparams = dict(img_mean=FILL, interpolation=Image.Resampling.BILINEAR)
    theirs_name = name + "Increasing" if increasing and name + "Increasing" in timm_auto.NAME_TO_OP else name
    if policy.operation(name, magnitude, False, increasing) == Op("Posterize", 1) and magnitude in (0, 10):
        magnitude = 8 if increasing else 3  # timm asks for 0 bits there, which Pillow refuses; ours keeps 1
    for negative in (False, True):
        monkeypatch.setattr(random, "random", lambda negative=negative: 0.9 if negative else 0.1)
        op = policy.operation(name, magnitude, negative, increasing)
        ours = policy.run(tensor(image).numpy(), op, FILL)
        if name.startswith("Translate"):  # ours: whole pixels
            move = round(op.value * 96)
            theirs = getattr(timm_auto, f"translate_{name[9].lower()}_abs")(image, move, fillcolor=FILL, resample=2)
        else:
            theirs = timm_auto.AugmentOp(theirs_name, prob=1.0, magnitude=magnitude, hparams=hparams)(image)
        assert np.array_equal(ours.transpose(1, 2, 0), np.asarray(theirs)), op


def test_the_auto_policy_is_the_original_of_timm() -> None:
    theirs = timm_auto.auto_augment_policy_original(timm_auto._HPARAMS_DEFAULT)
    assert [[(op.name, op.prob, op.magnitude) for op in pair] for pair in theirs] == [
        list(pair) for pair in policy.AUTO
    ]


def test_rand_draws_each_operation_equally_often_and_applies_half() -> None:
    rand = policy.parse("rand-m7-n2")
    rows = np.random.default_rng(0).random((6000, policy.DRAWS)).tolist()
    drawn = [op.name for row in rows for op in rand.sample(row)]
    assert abs(len(drawn) - 6000) < 200
    counts = [drawn.count(name) for name in policy.RAND]
    assert min(counts) > 310 and max(counts) < 490  # 400 expected
    assert {op.value for row in rows for op in rand.sample(row) if op.name == "Rotate"} == {-21.0, 21.0}


@pytest.mark.parametrize("text", ["rand", "rand-m11-n2", "rand-m5-n0", "rand-m5-n11", "rand-n2-m5", "auto-v0", "", "x"])
def test_a_wrong_policy_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"augment.policy; got .*wanted none, auto, or rand-mM-nN"):
        augmentation.check(AugmentConfig(policy=text))


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
