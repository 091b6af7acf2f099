"""RandAugment and AutoAugment: each operation is timm's, drawn as often, and done to the image."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm_auto

from sports_ray.config import AugmentConfig
from sports_ray.data import augment as augmentation
from sports_ray.data import policy
from sports_ray.data.augment import apply, params_from, sample_params
from sports_ray.data.policy import Op
from sports_ray.errors import ConfigError
from tests.support.pictures import FILL, photograph, spec, tensor

DRAWN = (*policy.RAND, *sorted({name for pair in policy.AUTO for name, *_ in pair} - {*policy.RAND}))
"""Every operation that either policy can draw."""


@pytest.mark.parametrize("magnitude", [0, 3, 7, 10])
@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("name", DRAWN)
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


def outcomes(pairs: list[Any], monkeypatch: pytest.MonkeyPatch) -> dict[tuple[Op, ...], float]:
    """Probability of each outcome where timm draws one of `pairs` of its operations and a direction for each."""
    odds: dict[tuple[Op, ...], float] = defaultdict(float)

    def done(op: Any, negative: bool) -> Op:
        monkeypatch.setattr(random, "random", lambda: 0.9 if negative else 0.1)
        value = op.level_fn(op.magnitude, op.hparams)[0] if op.level_fn else 0.0
        return Op(op.name.removesuffix("Original").removesuffix("Increasing"), value)

    for pair in pairs:
        ways: list[Any] = [[(1 - op.prob, ()), *((op.prob / 2, (done(op, n),)) for n in (False, True))] for op in pair]
        for way in itertools.product(*ways):
            chances, ops = zip(*way, strict=True)
            odds[tuple(itertools.chain(*ops))] += math.prod(chances) / len(pairs)
    return odds


@pytest.mark.parametrize("text", ["auto", "rand-m7-n1", "rand-m8-n1-inc1"])
def test_a_policy_draws_what_timms_draws_and_as_often(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = timm_auto._RAND_INCREASING_TRANSFORMS if text.endswith("inc1") else timm_auto._RAND_TRANSFORMS
    if text == "auto":  # 25 pairs, each as likely, and each operation with its own probability
        pairs = timm_auto.auto_augment_policy_original(timm_auto._HPARAMS_DEFAULT)
    else:
        pairs = [[op] for op in timm_auto.rand_augment_ops(int(text[6]), transforms=names)]
    augment = AugmentConfig(policy=text)
    params = [params_from(augment, u, 96, 96, 96) for u in augmentation.draws(0, 0, 0, 12000)]
    counts = Counter(each.ops for each in params)
    odds = outcomes(pairs, monkeypatch)
    assert counts.keys() <= {ops for ops, chance in odds.items() if chance > 0}
    for ops, chance in odds.items():
        expected = chance * len(params)
        assert abs(counts[ops] - expected) <= 4.5 * math.sqrt(expected) + 1, ops


def by_timm(image: Image.Image, op: Op) -> Image.Image:
    """An operation that was drawn, done by timm: to the bit ours, but that a translation is by whole pixels."""
    how: dict[str, Any] = dict(fillcolor=FILL, resample=Image.Resampling.BILINEAR)
    named: dict[str, Any] = timm_auto.NAME_TO_OP
    if op.name.startswith("Translate"):
        return named[op.name.removesuffix("Rel")](image, round(op.value * 96), **how)
    given = () if timm_auto.LEVEL_TO_ARG[op.name] is None else (op.value,)
    return named[op.name](image, *given, **how)


@pytest.mark.parametrize("text", ["auto", "rand-m7-n2", "rand-m5-n4-inc1"])
def test_a_training_image_is_changed_by_the_operations_of_its_policy_alone(text: str) -> None:
    image, kinds, changed = tensor(photograph(130, 110)), set(), 0
    for position in range(300):
        plain = sample_params(AugmentConfig(), 2, 1, position, 130, 110, 96)
        params = sample_params(AugmentConfig(policy=text), 2, 1, position, 130, 110, 96)
        assert params == plain._replace(ops=params.ops)
        unchanged = apply(image, plain, spec())
        picture = Image.fromarray(unchanged.permute(1, 2, 0).numpy())
        for op in params.ops:
            picture = by_timm(picture, op)
            kinds.add(op.name)
        ours = apply(image, params, spec())
        assert torch.equal(ours, tensor(picture)), params.ops
        changed += not torch.equal(ours, unchanged)
    drawn = {name for pair in policy.AUTO for name, *_ in pair} if text == "auto" else set(policy.RAND)
    assert kinds == {name.removesuffix("Original") for name in drawn}
    assert changed > 150


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
