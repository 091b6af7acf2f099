"""The ranks of one training and the few collectives that they need.

Gradients are reduced here and not by DistributedDataParallel: DDP rebuilds its buckets after the first step, so that a
resumed run would sum in another order than an unbroken one. Buckets here depend on the parameters' order and size alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_ELEMENTS = 8 * 1024 * 1024  # 32 MiB of float32: large enough for bandwidth, small enough to overlap copies


@dataclass(frozen=True, slots=True)
class World:
    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    local_size: int = 1
    """Ranks on this machine, which share its cores."""

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sums `tensor` over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast_(self, tensor: Tensor, source: int) -> Tensor:
        """Gives every rank the tensor of rank `source`, in place."""
        if self.size > 1:
            dist.broadcast(tensor, src=source)
        return tensor

    def from_rank0(self, value: int) -> int:
        """The integer that rank 0 holds, on every rank."""
        if self.size == 1:
            return value
        box = torch.tensor([value], dtype=torch.int64, device=self.device)
        dist.broadcast(box, src=0)
        return int(box.item())

    def least(self, value: int) -> int:
        """The smallest of the ranks' integers, on every rank."""
        if self.size == 1:
            return value
        box = torch.tensor([value], dtype=torch.int64, device=self.device)
        dist.all_reduce(box, op=dist.ReduceOp.MIN)
        return int(box.item())

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; every rank gets the same answer."""
        if self.size == 1:
            return flag
        return bool(self.sum_(torch.tensor([float(flag)], device=self.device)).item())

    def sum_many_(self, tensors: Sequence[Tensor]) -> None:
        """Sums a list of float32 tensors over all ranks, in place, in buckets that depend on their sizes alone."""
        if self.size == 1:
            return
        buckets: list[tuple[list[Tensor], Tensor, dist.Work]] = []
        for group in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            buckets.append((group, flat, dist.all_reduce(flat, async_op=True)))
        for group, flat, work in buckets:
            work.wait()
            parts = flat.split([tensor.numel() for tensor in group])
            torch._foreach_copy_(group, [part.view(tensor.shape) for part, tensor in zip(parts, group, strict=True)])


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    groups: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if not groups or tensor.numel() > room:
            groups.append([])
            room = BUCKET_ELEMENTS
        groups[-1].append(tensor)
        room -= tensor.numel()
    return groups
