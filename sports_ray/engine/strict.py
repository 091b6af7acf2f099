"""The same bits at any number of workers: each lane is computed alone, and the lanes are summed in one fixed tree.

A kernel may round differently when a batch is larger, and a sum when its order is another. So no kernel here sees which
lanes share a worker, and the tree over the lanes is the same wherever its nodes were computed: ranks exchange the sums of
the largest subtrees that they own, by broadcast, which does no arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sports_ray.data.loader import Batch
from sports_ray.data.order import worker_lanes
from sports_ray.engine.gradient import LaneSpan, forward_backward
from sports_ray.engine.learner import Learner
from sports_ray.engine.schedule import Schedule


class Node(NamedTuple):
    """A subtree over the lanes [first, stop) that one rank computes."""

    first: int
    stop: int
    owner: int


def owned_nodes(lanes: int, world: int) -> list[Node]:
    """The largest subtrees that lie within one rank's lanes, from left to right."""
    owners = [worker_lanes(lanes, rank, world) for rank in range(world)]

    def within(first: int, stop: int) -> Iterator[Node]:
        for owner, own in enumerate(owners):
            if own.start <= first and stop <= own.stop:
                yield Node(first, stop, owner)
                return
        yield from within(first, _middle(first, stop))
        yield from within(_middle(first, stop), stop)

    return list(within(0, lanes))


def own_sums(
    learner: Learner, schedule: Schedule, step: int, batch: Batch, micro: int, before: list[Tensor]
) -> list[Tensor]:
    """Sums of this rank's nodes: float32 [1 + statistics + gradients], the loss first. No rank waits for another here.

    `before`: batch norm's running statistics as the step found them; each lane starts from them."""
    world = learner.world
    spans = {span[0]: span for span in schedule.lane_spans(step, world.rank, world.size)}

    def value(first: int, stop: int) -> Tensor:
        if stop - first == 1:
            return _lane_sum(learner, schedule, step, batch, spans[first], micro, before)
        return value(first, _middle(first, stop)).add_(value(_middle(first, stop), stop))

    nodes = owned_nodes(schedule.lanes, world.size)
    return [value(node.first, node.stop) for node in nodes if node.owner == world.rank]


def combine(learner: Learner, lanes: int, own: list[Tensor], before: list[Tensor]) -> Tensor:
    """Sums over all ranks' nodes; puts gradients and running statistics in place, and returns the sum of the losses."""
    world, mine = learner.world, iter(own)
    found: dict[tuple[int, int], Tensor] = {}
    for node in owned_nodes(lanes, world.size):
        flat = next(mine) if node.owner == world.rank else torch.empty_like(own[0])
        found[node.first, node.stop] = world.broadcast_(flat, node.owner)

    def value(first: int, stop: int) -> Tensor:
        if (first, stop) in found:
            return found.pop((first, stop))
        return value(first, _middle(first, stop)).add_(value(_middle(first, stop), stop))

    total = value(0, lanes)
    # New ones: the layout that a lane's backward chose would show in the order in which their norm is summed.
    learner.optimizer.zero_grad(set_to_none=True)
    statistics = learner.running_statistics()
    for tensor, old in zip(statistics, before, strict=True):
        if not tensor.is_floating_point():
            tensor.copy_(old + 1)
    targets = [*(tensor for tensor in statistics if tensor.is_floating_point()), *learner.gradients()]
    parts = total[1:].split([tensor.numel() for tensor in targets])
    torch._foreach_copy_(targets, [part.view(tensor.shape) for part, tensor in zip(parts, targets, strict=True)])
    return total[0]


def _lane_sum(
    learner: Learner, schedule: Schedule, step: int, batch: Batch, span: LaneSpan, micro: int, before: list[Tensor]
) -> Tensor:
    """What one lane leaves behind; running statistics weighted by its share of the step's images."""
    lane, start, stop = span
    statistics = learner.running_statistics()
    if statistics:
        torch._foreach_copy_(statistics, before)
    learner.optimizer.zero_grad(set_to_none=True)
    here = slice(start - batch.request.start, stop - batch.request.start)
    part = Batch(
        batch.request._replace(start=start, stop=stop), batch.images[here], batch.labels[here], batch.rows[here]
    )
    loss = forward_backward(learner, schedule, step, part, [(lane, start, stop)], micro)
    first, last = schedule.step_span(step)
    share = (stop - start) / (last - first)
    averages = [tensor.mul(share) for tensor in statistics if tensor.is_floating_point()]
    return torch.cat([loss.reshape(1), *(tensor.reshape(-1) for tensor in [*averages, *learner.gradients()])])


def _middle(first: int, stop: int) -> int:
    return (first + stop + 1) // 2
