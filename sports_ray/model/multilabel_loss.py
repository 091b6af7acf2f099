"""Losses of multi-label data: one sigmoid a class, as binary cross-entropy or focal loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, eq=False)
class MultilabelLoss:
    """What a logit costs, for each class; the loss of a sample is the mean over the classes."""

    classes: int
    kind: Literal["bce", "focal"] = "bce"
    gamma: float = 2.0
    """Of focal: how much less counts what is nearly right already."""
    alpha: float = -1.0
    """Of focal: weight of a positive, 1 - alpha of a negative, in [0, 1]; below 0: both 1."""
    pos_weight: Tensor | None = None
    """Factor on a positive of each class, float32 [K]; None: 1."""

    def losses(
        self, logits: Tensor, targets: Tensor, partner_targets: Tensor | None, lam: Tensor | None, smoothing: float
    ) -> Tensor:
        """Loss of each sample, not averaged: logits [n, K] of any float dtype, targets [n, K] of 0 and 1 -> float32 [n].

        The soft target is t = (1 - smoothing) (lam targets + (1 - lam) partner_targets) + smoothing / 2, so that a class
        that both of two mixed images show stays whole (mixup, cutmix). A class costs
        t w alpha (1 - p)^gamma (-log p) + (1 - t) (1 - alpha) p^gamma (-log(1 - p)), p = sigmoid(logit), w its pos_weight:
        torch's binary_cross_entropy_with_logits where gamma is 0 and no alpha, Lin et al. 2017 (eq. 5) otherwise. `lam`
        float32 [n] in [0, 1]; None: nothing is mixed."""
        logits, target = logits.float(), targets.float()
        if lam is not None and partner_targets is not None:
            # A weighted sum, not torch.lerp: lam = 1 gives exactly the unmixed target.
            target = lam[:, None] * target + (1.0 - lam[:, None]) * partner_targets.float()
        if smoothing:
            target = (1.0 - smoothing) * target + smoothing / 2
        positive, negative = F.softplus(-logits), F.softplus(logits)
        if self.kind == "focal":
            # exp(-gamma * softplus) is (1 - p)^gamma and p^gamma, and stays exact where p is nearly 0 or 1.
            positive, negative = (
                positive * torch.exp(-self.gamma * negative),
                negative * torch.exp(-self.gamma * positive),
            )
            if self.alpha >= 0:
                positive, negative = self.alpha * positive, (1.0 - self.alpha) * negative
        if self.pos_weight is not None:
            positive = self.pos_weight * positive
        return (target * positive + (1.0 - target) * negative).mean(dim=1)


def balanced_pos_weight(positives: NDArray[np.int64], images: int, most: float) -> NDArray[np.float32]:
    """Negatives over positives of each class among `images` training images, at most `most`; 1 where there is no positive.

    With these weights positives and negatives of a class weigh the same in all (pos_weight of torch's BCEWithLogitsLoss)."""
    ratio = np.divide(images - positives, positives, out=np.ones(len(positives)), where=positives > 0)
    # A class that all images show has no negative: without a floor its positives would not count at all.
    return np.clip(ratio, 1.0 / most, most).astype(np.float32)
