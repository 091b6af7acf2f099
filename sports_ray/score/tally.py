"""Accuracy and loss as exact integer sums, so that no order of adding and no number of workers can change a score."""

from __future__ import annotations

import torch
from torch import Tensor

LOSS_UNIT = 2.0**-24
"""The negative log-likelihood is summed in this unit of nats: integers add exactly in any order."""
LOSS_CAP = 1e6
"""Largest loss of one image in nats; a logit that is not finite counts as this."""
COLUMNS = ("images", "correct1", "correct5", "loss")


def tally(logits: Tensor, labels: Tensor) -> Tensor:
    """Sums of one batch: logits [n, K] float, labels [n] int64 -> int64 [4] (images, correct1, correct5, loss).

    An image counts as correct at k when fewer than k classes score at least as high as its own; a tie is thus an
    error, as is a logit that is not finite. Loss is the negative log-likelihood in units of 2**-24 nats.
    """
    logits = logits.float()
    own = logits.gather(1, labels[:, None])
    rank = (logits >= own).sum(1) - 1
    sound = torch.isfinite(logits).all(1)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none").double()
    losses = torch.where(sound, losses, LOSS_CAP).clamp(max=LOSS_CAP)
    return torch.stack(
        [
            torch.tensor(len(labels), device=logits.device),
            ((rank < 1) & sound).sum(),
            ((rank < 5) & sound).sum(),
            (losses / LOSS_UNIT).round().long().sum(),
        ]
    )


def scores(sums: list[int], prefix: str = "") -> dict[str, float]:
    """Sums of `tally` -> {`val_acc1`, `val_acc5`, `val_loss`}: fractions in [0, 1] and nats; `prefix` before each name."""
    images, correct1, correct5, loss = sums
    return {
        f"{prefix}val_acc1": correct1 / images,
        f"{prefix}val_acc5": correct5 / images,
        f"{prefix}val_loss": loss * LOSS_UNIT / images,
    }
