"""What is different where a photograph shows several classes: the loss's weights, and an evaluation that keeps each logit.

Mean average precision is no sum over images, so an evaluation's state is the table of all its logits, not a few sums. Each
rank fills the rows that it has read and the others' are zeros: their sum is the whole table, to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sports_ray.config import LossConfig, TrainConfig
from sports_ray.data.loader import Batch
from sports_ray.data.manifest import Manifest
from sports_ray.errors import ConfigError
from sports_ray.model.multilabel_loss import MultilabelLoss, balanced_pos_weight
from sports_ray.score.multilabel import fit_thresholds, sigmoid, training_scores

RAW, EMA, TARGETS = 0, 1, 2
"""Planes of the table."""


def check_labels(config: TrainConfig, manifest: Manifest) -> None:
    """ConfigError for settings that do not concern the labels of these photographs."""
    if not manifest.multilabel and config.loss != LossConfig():
        changed = next(
            name for name in config.loss.__slots__ if getattr(config.loss, name) != getattr(LossConfig(), name)
        )
        got = f"{getattr(config.loss, changed)}, where each photograph shows one class"
        raise ConfigError(
            f"loss.{changed}", got=got, want="a multi-label list", cure="leave it out, or --set data.labels=multi"
        )
    if config.loss.alpha != -1 and config.loss.alpha < 0:
        raise ConfigError("loss.alpha", got=config.loss.alpha, want="from 0 to 1, or -1: none")


def pos_weight(config: TrainConfig, manifest: Manifest) -> NDArray[np.float32] | None:
    """The factor on positives of each class, from the training split alone; None where there is none."""
    if not manifest.multilabel or config.loss.pos_weight == "none":
        return None
    images = manifest.rows("train").num_rows
    return balanced_pos_weight(manifest.class_images("train"), images, config.loss.pos_weight_most)


def loss_of(config: TrainConfig, manifest: Manifest, device: torch.device) -> MultilabelLoss | None:
    """The loss of multi-label photographs; None where each shows one class."""
    if not manifest.multilabel:
        return None
    weight, loss = pos_weight(config, manifest), config.loss
    return MultilabelLoss(
        classes=len(manifest.classes),
        kind=loss.multilabel,
        gamma=loss.gamma,
        alpha=loss.alpha,
        pos_weight=None if weight is None else torch.from_numpy(weight).to(device),
    )


def label_facts(config: TrainConfig, manifest: Manifest) -> dict[str, Any]:
    """For the run's record: how many training images show each class, and what follows from that."""
    weight = pos_weight(config, manifest)
    return {
        "train_images": manifest.class_images("train").tolist(),
        "pos_weight": None if weight is None else [float(value) for value in weight],
        "formula": f"min(max(negatives / positives of train, 1 / m), m), m = {config.loss.pos_weight_most:g}",
    }


def empty_table(classes: int, images: int, device: torch.device) -> Tensor:
    """float32 [3, images, classes]: logits of the raw weights and of the EMA's, and targets."""
    return torch.zeros(3, images, classes, device=device)


def put_rows(table: Tensor, batch: Batch, part: slice, raw: Tensor, ema: Tensor | None) -> None:
    """Writes the logits of a part of a batch [n, K], and its targets, into their rows."""
    rows = batch.rows[part].to(table.device)
    table[RAW, rows] = raw.float()
    table[TARGETS, rows] = batch.labels[part].to(table.device).float()
    if ema is not None:
        table[EMA, rows] = ema.float()


def table_scores(table: Tensor, has_ema: bool) -> dict[str, Any]:
    """Scores of a whole table, `ema_` before those of the EMA weights; `thresholds` are fitted for what is published."""
    planes = table.cpu().numpy()
    targets = planes[TARGETS] > 0
    found = {"val_images": len(targets), **training_scores(planes[RAW], targets)}
    if has_ema:
        found |= training_scores(planes[EMA], targets, "ema_")
    thresholds = fit_thresholds(sigmoid(planes[EMA if has_ema else RAW]), targets)
    return {**found, "thresholds": thresholds.tolist()}
