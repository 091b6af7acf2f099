"""Forward and backward of one rank's images of a step, mixed lane by lane, in micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sports_ray.data.loader import Batch
from sports_ray.data.mix import apply_lane, plan_lane
from sports_ray.engine.learner import Learner
from sports_ray.engine.schedule import Schedule
from sports_ray.model.lone import lone_image

LaneSpan = tuple[int, int, int]
"""lane, start, stop; positions in the epoch."""


@dataclass(slots=True)
class Mixed:
    """Images of a step, on their rank's device: float32 [n, 3, S, S], labels and partners' labels [n] (multi-label: [n, K]),
    lam [n]."""

    images: Tensor
    labels: Tensor
    partner_labels: Tensor
    lam: Tensor


def forward_backward(
    learner: Learner, schedule: Schedule, step: int, batch: Batch, lanes: Sequence[LaneSpan], micro: int
) -> Tensor:
    """Sum of the batch's losses, as a scalar on the device; adds gradients of (sum of losses / images of the step).

    `lanes` are those that the batch is made of; `micro`: most images of one forward pass."""
    first, last = schedule.step_span(step)
    mixed = _prepare(learner, schedule, step, batch, lanes)
    total = torch.zeros((), device=learner.world.device)
    learner.train_mode()
    for part in _chunks(len(batch.labels), micro):
        learner.seed_dropout(step, batch.request.start + part.start)
        with learner.autocast(), lone_image(learner.model, part.stop - part.start):
            logits = learner.forward(mixed.images[part])
        losses = learner.losses(logits.float(), mixed.labels[part], mixed.partner_labels[part], mixed.lam[part])
        (losses.sum() * (learner.scale.value / (last - first))).backward()
        total += losses.detach().sum()
    return total


def _prepare(learner: Learner, schedule: Schedule, step: int, batch: Batch, lanes: Sequence[LaneSpan]) -> Mixed:
    """Normalises and mixes, lane by lane: partners never come from another lane, so the world's size does not matter."""
    augment, seed = learner.config.augment, learner.config.loop.seed
    images, partner = learner.planes(batch.images), torch.arange(len(batch.labels))
    lam = torch.ones(len(batch.labels))
    epochs_left = schedule.epochs_left(step)
    if augment.mixup or augment.cutmix:
        for lane, start, stop in lanes:
            if stop > start:
                here = slice(start - batch.request.start, stop - batch.request.start)
                plan = plan_lane(augment, seed, step, lane, stop - start, images.shape[2], images.shape[3], epochs_left)
                images[here] = apply_lane(images[here], plan)
                partner[here] = here.start + plan.partner
                lam[here] = plan.lam
    device = learner.world.device
    values = (batch.labels, batch.labels[partner], lam)
    return Mixed(learner.laid_out(images), *(value.to(device, non_blocking=True) for value in values))


def _chunks(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
