"""Mixed and smoothed cross-entropy against torch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sports_ray.model.loss import mixed_cross_entropy


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
