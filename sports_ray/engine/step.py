"""One optimiser step: gradients of all ranks, finite check, clip, update, EMA."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sports_ray.data.loader import Batch
from sports_ray.engine import strict
from sports_ray.engine.gradient import forward_backward
from sports_ray.engine.guard import is_out_of_memory
from sports_ray.engine.learner import Learner, Progress
from sports_ray.engine.ledger import from_words, to_words
from sports_ray.engine.memory import give_back
from sports_ray.engine.schedule import Schedule
from sports_ray.errors import NonFiniteError, TrainingError
from sports_ray.model.optim import take_step

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepResult:
    loss: float
    """Mean training loss of the step's images over all ranks."""
    images: int
    """Images of the step over all ranks."""
    stop: bool
    """Whether any rank was asked to stop."""
    skipped: bool
    mark: int
    """The ledger's mark of the images, over all ranks."""


def optimiser_step(
    learner: Learner, schedule: Schedule, progress: Progress, batch: Batch, lr: float, stop: bool, mark: int = 0
) -> StepResult:
    """Consumes one train batch. A loss or gradient that is not finite skips the update on all ranks alike.

    `stop` is this rank's wish to stop, `mark` the ledger's mark of its images; both travel with the gradients, so that
    all ranks learn of them at the same step. Raises NonFiniteError after `loop.max_nonfinite` skipped steps in a row.
    """
    step = progress.step
    first, last = schedule.step_span(step)
    statistics = learner.running_statistics()
    before = [tensor.clone() for tensor in statistics]
    micro_batch = progress.micro_batch
    sums = _share(learner, schedule, progress, batch, statistics, before)
    halved = progress.micro_batch != micro_batch
    facts = torch.tensor([float(stop), float(halved), *to_words(mark)], device=learner.world.device)
    if learner.config.loop.strict:
        loss_sum = strict.combine(learner, schedule.lanes, sums, before)
        learner.world.sum_(facts)
    else:
        loss_sum = sums[0]
        _reduce(learner, statistics, [loss_sum, facts], len(batch.labels) / (last - first))

    gradients = learner.gradients()
    norm = _global_norm(gradients)
    loss, norm_value, stops, halvings, *words = torch.cat([torch.stack([loss_sum, norm]), facts]).tolist()
    if halvings:
        # Dropout depends on it, and rank 0 commits its own: all have the same from the next step on.
        progress.micro_batch = learner.world.least(progress.micro_batch or len(batch.labels))
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
    return StepResult(loss / (last - first), last - first, stops > 0, not finite, from_words(words))


def _share(
    learner: Learner,
    schedule: Schedule,
    progress: Progress,
    batch: Batch,
    statistics: list[Tensor],
    before: list[Tensor],
) -> list[Tensor]:
    """A rank's share: [sum of losses], its gradients in place; or, with `loop.strict`, the sums of its nodes.

    Where memory runs out, halves the micro-batch and does the share again."""
    share, step = len(batch.labels), progress.step
    while True:
        size = max(1, min(progress.micro_batch or share, share))
        try:
            if learner.config.loop.strict:
                return strict.own_sums(learner, schedule, step, batch, size, before)
            lanes = schedule.lane_spans(step, learner.world.rank, learner.world.size)
            return [forward_backward(learner, schedule, step, batch, lanes, size)]
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


def _reduce(learner: Learner, statistics: list[Tensor], facts: list[Tensor], share: float) -> None:
    """Sums gradients and facts over ranks and averages batch norm's statistics, weighted by each rank's images."""
    if learner.world.size == 1:
        return
    averages = [tensor for tensor in statistics if tensor.is_floating_point()]
    if averages:
        torch._foreach_mul_(averages, share)
    learner.world.sum_many_([*learner.gradients(), *averages, *facts])


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
    take_step(learner.optimizer, lr)
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
