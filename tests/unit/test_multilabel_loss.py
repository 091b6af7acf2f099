"""Losses of multi-label data against torch's and torchvision's, and the weights of positives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from sports_ray.engine.multilabel import check_labels, label_facts, loss_of
from sports_ray.errors import ConfigError
from sports_ray.model.multilabel_loss import MultilabelLoss, balanced_pos_weight
from sports_ray.recipe import build_config
from tests.unit.test_multilabel_list import in_one_column, listed, photos  # noqa: F401

K = 5


def case(n: int = 12) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, targets, partners' targets and lam."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(n, K, generator=generator) * 6
    targets, partners = torch.randint(2, (2, n, K), generator=generator).to(torch.uint8)
    return logits, targets, partners, torch.rand(n, generator=generator)


def soft(targets: Tensor, partners: Tensor, lam: Tensor, smoothing: float) -> Tensor:
    union = lam[:, None] * targets + (1 - lam[:, None]) * partners
    return (1 - smoothing) * union + smoothing / 2


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient_equal_torchs_on_soft_targets(smoothing: float, weighted: bool) -> None:
    logits, targets, partners, lam = case()
    weight = torch.tensor([0.5, 1.0, 2.0, 10.0, 3.0]) if weighted else None
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = MultilabelLoss(K, pos_weight=weight).losses(ours, targets, partners, lam, smoothing)
    wanted = F.binary_cross_entropy_with_logits(
        theirs, soft(targets, partners, lam, smoothing), reduction="none", pos_weight=weight
    ).mean(1)
    torch.testing.assert_close(loss, wanted, atol=1e-6, rtol=1e-5)
    loss.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("gamma", "alpha"), [(0.0, -1.0), (2.0, -1.0), (2.0, 0.25), (0.5, 0.9)])
def test_focal_loss_equals_torchvisions(gamma: float, alpha: float) -> None:
    logits, targets, _, _ = case()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = MultilabelLoss(K, "focal", gamma, alpha).losses(ours, targets, None, None, 0.0)
    wanted = sigmoid_focal_loss(theirs, targets.float(), alpha=alpha, gamma=gamma).mean(1)
    torch.testing.assert_close(loss, wanted, atol=1e-6, rtol=1e-4)
    loss.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_a_class_that_both_of_two_mixed_images_show_stays_whole_and_others_get_their_share() -> None:
    lam = torch.tensor([0.7])
    both, one = torch.tensor([[1, 1, 0]], dtype=torch.uint8), torch.tensor([[1, 0, 0]], dtype=torch.uint8)
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    found = MultilabelLoss(3).losses(logits, both, one, lam, 0.0)
    wanted = F.binary_cross_entropy_with_logits(logits, torch.tensor([[1.0, 0.7, 0.0]]))
    torch.testing.assert_close(found[0], wanted)


@pytest.mark.parametrize("kind", ["bce", "focal"])
def test_lambda_of_one_is_bit_equal_to_no_mixing(kind: Any) -> None:
    logits, targets, partners, lam = case()
    loss = MultilabelLoss(K, kind, alpha=0.3)
    mixed = loss.losses(logits, targets, partners, torch.ones_like(lam), 0.1)
    assert torch.equal(mixed, loss.losses(logits, targets, None, None, 0.1))


@pytest.mark.parametrize("kind", ["bce", "focal"])
def test_logits_far_out_in_half_precision_give_finite_losses_and_gradients(kind: Any) -> None:
    logits = torch.tensor([[60000.0, -60000.0, 0.0, 30.0, -30.0]], dtype=torch.float16).requires_grad_()
    targets = torch.tensor([[0, 1, 1, 1, 0]], dtype=torch.uint8)
    loss = MultilabelLoss(K, kind).losses(logits, targets, None, None, 0.0)
    assert loss.dtype == torch.float32 and torch.isfinite(loss).all()
    loss.sum().backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_balanced_weights_are_negatives_over_positives_within_their_limits() -> None:
    found = balanced_pos_weight(np.array([50, 10, 1, 100, 0]), 100, 20.0)
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx([1.0, 9.0, 20.0, 1 / 20, 1.0])


def test_weights_come_from_the_training_split_alone_and_are_recorded(photos: Path) -> None:  # noqa: F811
    config = build_config(None, {"loss.pos_weight": "balanced", "loss.multilabel": "focal", "loss.gamma": 1.5})
    first = listed(photos, in_one_column())
    other = listed(
        photos, in_one_column().replace("flag|net,val", "ball|flag|net,val").replace("ball,test", "net,test")
    )
    assert first.fingerprint() != other.fingerprint()
    loss = loss_of(config, first, torch.device("cpu"))
    assert loss is not None and loss.pos_weight is not None and (loss.kind, loss.gamma) == ("focal", 1.5)
    assert loss.pos_weight.tolist() == [1.0, 3.0, 1.0]  # 2, 1 and 2 of the four images of train
    assert label_facts(config, first) == label_facts(config, other)
    assert label_facts(config, first)["pos_weight"] == [1.0, 3.0, 1.0]
    assert label_facts(build_config(), first)["pos_weight"] is None


def test_settings_of_multi_label_losses_are_refused_where_a_photograph_shows_one_class(photos: Path) -> None:  # noqa: F811
    text = "path,label,split\n" + "".join(f"{key}.jpg,{'one' if key < 'c' else 'two'},train\n" for key in "abcdef")
    manifest = listed(photos, text)
    check_labels(build_config(), manifest)
    with pytest.raises(ConfigError) as caught:
        check_labels(build_config(None, {"loss.pos_weight": "balanced"}), manifest)
    assert str(caught.value) == (
        "loss.pos_weight; got balanced, where each photograph shows one class; wanted a multi-label list; "
        "cure: leave it out, or --set data.labels=multi"
    )
    with pytest.raises(ConfigError, match="loss.alpha; got -0.5"):
        check_labels(build_config(None, {"loss.alpha": -0.5}), listed(photos, in_one_column()))
