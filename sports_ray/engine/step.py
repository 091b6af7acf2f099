"""One optimiser step: forward and backward in micro-batches, sum over ranks, finite check, clip, update, EMA."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sports_ray.data.loader import Batch
from sports_ray.data.mix import apply_lane, plan_lane
from sports_ray.engine.guard import is_out_of_memory
from sports_ray.engine.learner import Learner, Progress
from sports_ray.engine.memory import give_back
from sports_ray.engine.schedule import Schedule
from sports_ray.errors import NonFiniteError, TrainingError
from sports_ray.model.loss import mixed_cross_entropy
from sports_ray.model.optim import set_learning_rate

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Mixed:
    """A rank's share of one step, on its device: images float32 [n, 3, S, S], labels and partners' labels [n], lam [n]."""

    images: Tensor
    labels: Tensor
    partner_labels: Tensor
    lam: Tensor


@dataclass(frozen=True, slots=True)
class StepResult:
    loss: float
    """Mean training loss of the step's images over all ranks."""
    images: int
    """Images of the step over all ranks."""
    stop: bool
    """Whether any rank was asked to stop."""
    skipped: bool


def optimiser_step(
    learner: Learner, schedule: Schedule, progress: Progress, batch: Batch, lr: float, stop: bool
) -> StepResult:
    """Consumes one train batch. A loss or gradient that is not finite skips the update on all ranks alike.

    `stop` is this rank's wish to stop; it travels with the gradients, so that all ranks learn of it at the same step.
    Raises NonFiniteError after `loop.max_nonfinite` skipped steps in a row.
    """
    step = progress.step
    first, last = schedule.step_span(step)
    statistics = learner.running_statistics()
    before = [tensor.clone() for tensor in statistics]
    loss_sum = _accumulate(learner, schedule, progress, batch, last - first, statistics, before)
    gradients = learner.gradients()
    facts = torch.stack([loss_sum, loss_sum.new_tensor(float(stop))])
    _reduce(learner, gradients, statistics, facts, len(batch.labels) / (last - first))

    norm = _global_norm(gradients)
    loss, stops, norm_value = torch.stack([*facts.unbind(), norm]).tolist()
    finite = math.isfinite(norm_value) and math.isfinite(loss)
    if finite:
        _update(learner, gradients, norm_value, lr, step)
        progress.nonfinite = 0
    elif statistics:
        torch._foreach_copy_(statistics, before)
    learner.optimizer.zero_grad(set_to_none=True)
    learner.scale.update(finite)
    if not finite:
        _count_nonfinite(learner, progress, loss)
    return StepResult(loss / (last - first), last - first, stops > 0, not finite)


def _accumulate(
    learner: Learner,
    schedule: Schedule,
    progress: Progress,
    batch: Batch,
    step_images: int,
    statistics: list[Tensor],
    before: list[Tensor],
) -> Tensor:
    """Adds up the gradients of a rank's share; where memory runs out, halves the micro-batch and does the share again."""
    share = len(batch.labels)
    while True:
        size = min(progress.micro_batch or share, share)
        try:
            return _forward_backward(learner, schedule, progress.step, batch, step_images, max(size, 1))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if size <= 1:
                raise TrainingError(
                    "out of memory with a single image",
                    got=str(error).splitlines()[0],
                    cure="a smaller model or --set data.image_size",
                ) from error
        # Outside the except block: the traceback there still holds the activations.
        learner.optimizer.zero_grad(set_to_none=True)
        if statistics:
            torch._foreach_copy_(statistics, before)
        give_back()
        progress.micro_batch = (size + 1) // 2
        logger.warning("out of memory: micro_batch=%d -> %d, same global batch and stream", size, progress.micro_batch)


def _forward_backward(
    learner: Learner, schedule: Schedule, step: int, batch: Batch, step_images: int, micro: int
) -> Tensor:
    """Sum of the share's losses, as a scalar on the device; leaves gradients of (sum of losses / images of the step)."""
    mixed = _prepare(learner, schedule, step, batch)
    total = torch.zeros((), device=learner.world.device)
    learner.train_mode()
    smoothing = learner.config.augment.smoothing
    for part in _chunks(len(batch.labels), micro):
        learner.seed_dropout(step, batch.request.start + part.start)
        with learner.autocast():
            logits = learner.forward(mixed.images[part])
        losses = mixed_cross_entropy(
            logits.float(), mixed.labels[part], mixed.partner_labels[part], mixed.lam[part], smoothing
        )
        (losses.sum() * (learner.scale.value / step_images)).backward()
        total += losses.detach().sum()
    return total


def _prepare(learner: Learner, schedule: Schedule, step: int, batch: Batch) -> Mixed:
    """Normalises and mixes, lane by lane: partners never come from another lane, so the world's size does not matter."""
    augment, seed = learner.config.augment, learner.config.loop.seed
    images, partner = learner.normalise(batch.images), torch.arange(len(batch.labels))
    lam = torch.ones(len(batch.labels))
    epochs_left = schedule.epochs - schedule.epoch_of(step)
    if augment.mixup or augment.cutmix:
        for lane, start, stop in schedule.lane_spans(step, learner.world.rank, learner.world.size):
            if stop > start:
                here = slice(start - batch.request.start, stop - batch.request.start)
                plan = plan_lane(augment, seed, step, lane, stop - start, images.shape[2], images.shape[3], epochs_left)
                images[here] = apply_lane(images[here], plan)
                partner[here] = here.start + plan.partner
                lam[here] = plan.lam
    device = learner.world.device
    labels = batch.labels.to(device, non_blocking=True)
    return Mixed(images, labels, batch.labels[partner].to(device, non_blocking=True), lam.to(device, non_blocking=True))


def _chunks(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def _reduce(learner: Learner, gradients: list[Tensor], statistics: list[Tensor], facts: Tensor, share: float) -> None:
    """Sums gradients and facts over ranks and averages batch norm's statistics, weighted by each rank's images."""
    if learner.world.size == 1:
        return
    averages = [tensor for tensor in statistics if tensor.is_floating_point()]
    if averages:
        torch._foreach_mul_(averages, share)
    learner.world.sum_many_([*gradients, *averages, facts])


def _global_norm(gradients: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def _update(learner: Learner, gradients: list[Tensor], norm: float, lr: float, step: int) -> None:
    """Unscales and clips in one pass, then updates parameters and EMA."""
    limit = learner.config.optim.clip
    factor = 1.0 / learner.scale.value
    if limit and norm * factor > limit:
        factor *= limit / (norm * factor)
    if factor != 1.0:
        torch._foreach_mul_(gradients, factor)
    set_learning_rate(learner.optimizer, lr)
    learner.optimizer.step()
    if learner.ema is not None:
        learner.ema.update(learner.model, step)


def _count_nonfinite(learner: Learner, progress: Progress, loss: float) -> None:
    progress.nonfinite += 1
    progress.skipped += 1
    logger.warning(
        "not finite: step=%d loss=%s scale=%g in_a_row=%d", progress.step, loss, learner.scale.value, progress.nonfinite
    )
    if progress.nonfinite >= learner.config.loop.max_nonfinite:
        raise NonFiniteError(
            f"loss or gradients not finite for {progress.nonfinite} steps in a row, up to step {progress.step}",
            got=f"loss {loss}",
            want="finite values",
            cure="a lower --set optim.lr, --precision bf16 or fp32, or a look at the data with `sports-ray data scan`",
        )
