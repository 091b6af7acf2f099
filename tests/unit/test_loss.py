"""Mixed and smoothed cross-entropy against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from sports_ray.config import DataConfig
from sports_ray.data.sampler import Sampler
from sports_ray.model.loss import balanced_weights, mixed_cross_entropy


def _case(n: int = 16, classes: int = 9) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(n, classes, generator=generator) * 8
    labels, partners = torch.randint(classes, (2, n), generator=generator)
    return logits, labels, partners, torch.rand(n, generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_loss_and_gradient_equal_torchs_soft_targets(smoothing: float) -> None:
    logits, labels, partners, lam = _case()
    target = lam[:, None] * F.one_hot(labels, 9) + (1 - lam[:, None]) * F.one_hot(partners, 9)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = mixed_cross_entropy(ours, labels, partners, lam, smoothing)
    wanted = F.cross_entropy(theirs, target, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(loss, wanted, atol=1e-6, rtol=1e-6)
    loss.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_unmixed_loss_equals_torchs(smoothing: float) -> None:
    logits, labels, _, _ = _case()
    wanted = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(mixed_cross_entropy(logits, labels, None, None, smoothing), wanted, atol=1e-6, rtol=1e-6)


def test_lambda_of_one_is_bit_equal_to_no_mixing() -> None:
    logits, labels, partners, lam = _case()
    mixed = mixed_cross_entropy(logits, labels, partners, torch.ones_like(lam), 0.1)
    assert torch.equal(mixed, mixed_cross_entropy(logits, labels, None, None, 0.1))


def test_half_precision_logits_give_a_finite_float32_loss() -> None:
    logits = torch.tensor([[60000.0, -60000.0]], dtype=torch.float16)
    loss = mixed_cross_entropy(logits, torch.tensor([1]), None, None, 0.0)
    assert loss.dtype == torch.float32
    assert loss.item() == 120000


def test_loss_of_a_batch_is_that_of_its_samples() -> None:
    logits, labels, partners, lam = _case()
    whole = mixed_cross_entropy(logits, labels, partners, lam, 0.1)
    alone = [
        mixed_cross_entropy(logits[i : i + 1], labels[i : i + 1], partners[i : i + 1], lam[i : i + 1], 0.1)
        for i in range(16)
    ]
    torch.testing.assert_close(whole, torch.cat(alone))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_weighted_loss_and_gradient_equal_torchs(smoothing: float, mixed: bool) -> None:
    logits, labels, partners, lam = _case()
    weights = torch.linspace(0.2, 3.0, 9)
    target = lam[:, None] * F.one_hot(labels, 9) + (1 - lam[:, None]) * F.one_hot(partners, 9) if mixed else labels
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = mixed_cross_entropy(ours, labels, partners, lam if mixed else None, smoothing, weights)
    wanted = F.cross_entropy(theirs, target, weights, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-5)
    loss.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_balanced_weights_are_scikit_learns_and_one_in_the_mean() -> None:
    labels = np.repeat([0, 1, 3], [70, 20, 6])
    weights = balanced_weights(np.bincount(labels, minlength=4).astype(np.float64))
    wanted = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    assert weights.dtype == torch.float32 and weights[2] == 0
    np.testing.assert_allclose(weights[[0, 1, 3]].numpy(), wanted, rtol=1e-6)
    assert abs(weights[labels].mean().item() - 1) < 1e-6


def test_classes_that_are_drawn_as_often_weigh_the_same() -> None:
    labels = np.repeat([0, 1, 2], [70, 20, 6])
    for data in (DataConfig(sampler="weighted"), DataConfig(min_per_class=70)):
        weights = balanced_weights(Sampler(data, 0, labels).class_shares(3))
        torch.testing.assert_close(weights, torch.ones(3))
