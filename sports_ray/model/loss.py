"""Cross-entropy with mixed labels, label smoothing and class weights."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def mixed_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    partner_labels: Tensor | None,
    lam: Tensor | None,
    smoothing: float,
    weights: Tensor | None = None,
) -> Tensor:
    """Loss of each sample, not averaged: logits [n, K] of any float dtype, labels int64 [n] -> float32 [n].

    The target is (1 - smoothing) * (lam * onehot(labels) + (1 - lam) * onehot(partner_labels)) + smoothing / K
    (mixup: Zhang et al. 2018; cutmix: Yun et al. 2019; smoothing: Szegedy et al. 2016). `lam` float32 [n] in [0, 1];
    None: labels are not mixed and `partner_labels` is not read. `smoothing` in [0, 1). `weights` float32 [K] or None: factor
    of each class in the target, as in torch's cross_entropy.
    """
    log_probs = F.log_softmax(logits.float(), dim=1)
    if weights is not None:
        log_probs = log_probs * weights
    loss = F.nll_loss(log_probs, labels, reduction="none")
    if lam is not None and partner_labels is not None:
        # A weighted sum, not torch.lerp: lam = 1 gives exactly the unmixed loss.
        loss = lam * loss + (1.0 - lam) * F.nll_loss(log_probs, partner_labels, reduction="none")
    if smoothing:
        loss = torch.add((1.0 - smoothing) * loss, log_probs.mean(dim=1), alpha=-smoothing)
    return loss


def balanced_weights(counts: NDArray[np.float64]) -> Tensor:
    """Weights that make all classes weigh the same: samples of each class [K] -> float32 [K], n / (K n_c) for the K classes
    that there are (scikit-learn's "balanced", King and Zeng 2001), 0 for the others. Their mean over the samples is 1."""
    there = counts > 0
    weights = counts.sum() / (there.sum() * np.where(there, counts, 1.0))
    return torch.from_numpy(np.where(there, weights, 0.0)).float()
