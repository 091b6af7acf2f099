"""Scores the raw and the EMA weights side by side on the validation split."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from sports_ray.data.loader import Batch
from sports_ray.engine.guard import is_out_of_memory
from sports_ray.engine.learner import Learner
from sports_ray.engine.memory import give_back
from sports_ray.engine.multilabel import empty_table, put_rows, table_scores
from sports_ray.score.tally import COLUMNS, scores, tally

logger = logging.getLogger(__name__)


def empty_sums(learner: Learner, images: int = 0) -> Tensor:
    """int64 [2, 4]: sums of the raw weights, then of the EMA weights; on the learner's device. Of multi-label data the
    table of all logits of so many `images`."""
    if learner.multilabel is not None:
        return empty_table(learner.multilabel.classes, images, learner.world.device)
    return torch.zeros(2, len(COLUMNS), dtype=torch.int64, device=learner.world.device)


@torch.no_grad()
def add_batch(learner: Learner, sums: Tensor, batch: Batch) -> None:
    """Adds one validation batch to `sums`, in place; where memory runs out, in halves of halves of it."""
    learner.model.eval()
    first, images = 0, len(batch.labels)
    while first < images:
        chunk = min(learner.eval_chunk or images, images)
        try:
            _add_chunk(learner, sums, batch, slice(first, first + chunk))
            first += chunk
            continue
        except Exception as error:
            if not is_out_of_memory(error) or chunk == 1:
                raise
        # Outside the except block: the traceback there still holds the activations.
        give_back()
        learner.eval_chunk = (chunk + 1) // 2
        logger.warning("out of memory in evaluation: chunk=%d -> %d", chunk, learner.eval_chunk)


def _add_chunk(learner: Learner, sums: Tensor, batch: Batch, part: slice) -> None:
    if learner.multilabel is None:
        sums += _chunk_sums(learner, batch, part)
        return
    images, ema = learner.normalise(batch.images[part]), None
    with learner.autocast():
        raw = learner.model(images)
        if learner.ema is not None:
            ema = functional_call(learner.model, learner.ema.tensors(), (images,))
    put_rows(sums, batch, part, raw, ema)


def _chunk_sums(learner: Learner, batch: Batch, part: slice) -> Tensor:
    """int64 [2, 4], as `empty_sums`, of a part of a batch."""
    images = learner.normalise(batch.images[part])
    labels = batch.labels[part].to(learner.world.device, non_blocking=True)
    sums = empty_sums(learner)
    with learner.autocast():
        sums[0] += tally(learner.model(images), labels)
        if learner.ema is not None:
            sums[1] += tally(functional_call(learner.model, learner.ema.tensors(), (images,)), labels)
    return sums


def summarise(learner: Learner, sums: Tensor) -> dict[str, Any]:
    """Scores of the whole validation split, over all ranks; `ema_` before those of the EMA weights."""
    if learner.multilabel is not None:
        return table_scores(learner.world.sum_(sums), learner.ema is not None)
    raw, ema = learner.world.sum_(sums).tolist()
    result = {"val_images": raw[0], **scores(raw)}
    return {**result, **scores(ema, "ema_")} if learner.ema is not None else result
