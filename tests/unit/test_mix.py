"""Mixup and cutmix of a lane."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sports_ray.config import AugmentConfig
from sports_ray.data.mix import LanePlan, apply_lane, plan_lane

BOTH = AugmentConfig(mixup=0.2, cutmix=1.0)


def plans(augment: AugmentConfig, count: int = 2000, epochs_left: int = 5) -> list[LanePlan]:
    return [plan_lane(augment, 3, step, 1, 8, 40, 60, epochs_left) for step in range(count)]


def own_share(plan: LanePlan) -> float:
    """Share of its own pixels in an image of ones whose partner is zero."""
    images = torch.zeros(8, 1, 40, 60)
    images[0] = 1
    if int(plan.partner[0]) == 0:
        return -1
    return float(apply_lane(images, plan)[0].double().mean())


@pytest.mark.parametrize("augment", [AugmentConfig(mixup=0.2), AugmentConfig(cutmix=1.0), BOTH])
def test_the_weight_of_the_label_is_the_share_of_the_pixels(augment: AugmentConfig) -> None:
    for plan in plans(augment, 60):
        assert 0 <= plan.lam <= 1
        share = own_share(plan)
        assert share == -1 or share == pytest.approx(plan.lam, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_lambda_follows_beta(alpha: float) -> None:
    lams = np.array([plan.lam for plan in plans(AugmentConfig(mixup=alpha))])
    assert lams.mean() == pytest.approx(0.5, abs=0.04)
    assert lams.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.12)


def test_both_kinds_and_none_come_as_often_as_asked() -> None:
    kinds = [plan.kind for plan in plans(AugmentConfig(mixup=0.2, cutmix=0.5, mix_prob=0.6))]
    assert kinds.count("none") == pytest.approx(800, abs=100)
    assert kinds.count("mixup") == pytest.approx(600, abs=100)
    assert kinds.count("cutmix") == pytest.approx(600, abs=100)


def test_a_plan_is_a_function_of_seed_step_and_lane() -> None:
    def facts(seed: int, step: int, lane: int) -> tuple[object, ...]:
        plan = plan_lane(BOTH, seed, step, lane, 8, 40, 60, 5)
        return plan.kind, plan.lam, tuple(plan.partner.tolist()), plan.box

    assert facts(1, 2, 3) == facts(1, 2, 3)
    assert len({facts(1, 2, 3), facts(2, 2, 3), facts(1, 3, 3), facts(1, 2, 0)}) == 4


@pytest.mark.parametrize("n", [1, 2, 7])
def test_partners_are_a_permutation(n: int) -> None:
    plan = plan_lane(BOTH, 0, 0, 0, n, 40, 60, 5)
    assert plan.partner.dtype == torch.int64
    assert sorted(plan.partner.tolist()) == list(range(n))


@pytest.mark.parametrize("epochs_left, mixed", [(3, True), (2, False), (1, False)])
def test_mixing_is_off_in_the_last_epochs(epochs_left: int, mixed: bool) -> None:
    augment = AugmentConfig(mixup=0.2, cutmix=1.0, mix_off_epochs=2)
    assert {plan.kind != "none" for plan in plans(augment, 20, epochs_left)} == {mixed}


def test_without_mixing_images_stay_as_they_are() -> None:
    images = torch.rand(4, 3, 8, 8)
    before = images.clone()
    plan = plan_lane(AugmentConfig(), 0, 0, 0, 4, 8, 8, 5)
    assert plan.kind == "none" and plan.lam == 1.0
    assert torch.equal(apply_lane(images, plan), before)


def test_each_image_gets_its_partner() -> None:
    images = torch.arange(8.0)[:, None, None, None].expand(8, 3, 40, 60).clone()
    plan = next(plan for plan in plans(AugmentConfig(mixup=1.0)) if 0.2 < plan.lam < 0.8)
    mixed = apply_lane(images.clone(), plan)[:, 0, 0, 0]
    assert torch.allclose(mixed, plan.lam * torch.arange(8.0) + (1 - plan.lam) * plan.partner.float(), atol=1e-5)
