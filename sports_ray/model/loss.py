"""Cross-entropy with mixed labels and label smoothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def mixed_cross_entropy(
    logits: Tensor, labels: Tensor, partner_labels: Tensor | None, lam: Tensor | None, smoothing: float
) -> Tensor:
    """Loss of each sample, not averaged: logits [n, K] of any float dtype, labels int64 [n] -> float32 [n].

    The target is (1 - smoothing) * (lam * onehot(labels) + (1 - lam) * onehot(partner_labels)) + smoothing / K
    (mixup: Zhang et al. 2018; cutmix: Yun et al. 2019; smoothing: Szegedy et al. 2016). `lam` float32 [n] in [0, 1];
    None: labels are not mixed and `partner_labels` is not read. `smoothing` in [0, 1).
    """
    log_probs = F.log_softmax(logits.float(), dim=1)
    loss = F.nll_loss(log_probs, labels, reduction="none")
    if lam is not None and partner_labels is not None:
        # A weighted sum, not torch.lerp: lam = 1 gives exactly the unmixed loss.
        loss = lam * loss + (1.0 - lam) * F.nll_loss(log_probs, partner_labels, reduction="none")
    if smoothing:
        loss = torch.add((1.0 - smoothing) * loss, log_probs.mean(dim=1), alpha=-smoothing)
    return loss
