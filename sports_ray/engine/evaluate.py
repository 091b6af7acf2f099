"""Scores the raw and the EMA weights side by side on the validation split."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from sports_ray.data.loader import Batch
from sports_ray.engine.learner import Learner
from sports_ray.score.tally import COLUMNS, scores, tally


def empty_sums(learner: Learner) -> Tensor:
    """int64 [2, 4]: sums of the raw weights, then of the EMA weights; on the learner's device."""
    return torch.zeros(2, len(COLUMNS), dtype=torch.int64, device=learner.world.device)


@torch.no_grad()
def add_batch(learner: Learner, sums: Tensor, batch: Batch) -> None:
    """Adds one validation batch to `sums`, in place."""
    if not len(batch.labels):
        return
    images = learner.normalise(batch.images)
    labels = batch.labels.to(learner.world.device, non_blocking=True)
    learner.model.eval()
    with learner.autocast():
        sums[0] += tally(learner.model(images), labels)
        if learner.ema is not None:
            sums[1] += tally(functional_call(learner.model, learner.ema.tensors(), (images,)), labels)


def summarise(learner: Learner, sums: Tensor) -> dict[str, float]:
    """Scores of the whole validation split, over all ranks; `ema_` before those of the EMA weights."""
    raw, ema = learner.world.sum_(sums).tolist()
    result = {"val_images": raw[0], **scores(raw)}
    return {**result, **scores(ema, "ema_")} if learner.ema is not None else result
