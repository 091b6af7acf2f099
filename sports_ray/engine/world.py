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

    def bytes_from_rank0(self, data: bytes) -> bytes:
        """The bytes that rank 0 holds, on every rank."""
        if self.size == 1:
            return data
        box = torch.zeros(self.from_rank0(len(data)), dtype=torch.uint8)
        if self.rank == 0 and data:
            box = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if len(box):
            box = self.broadcast_(box.to(self.device), 0).cpu()
        return box.numpy().tobytes()

    def tensors_from_rank0(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors that rank 0 holds, on every rank's CPU; the others give tensors of the same shapes and dtypes.

        Bytes travel, so every dtype does and every bit arrives."""
        if self.size == 1:
            return list(tensors)
        found: list[Tensor] = []
        for group in _buckets(tensors):
            flat = torch.cat([tensor.to(self.device).contiguous().reshape(-1).view(torch.uint8) for tensor in group])
            if len(flat):
                self.broadcast_(flat, 0)
            parts = flat.cpu().split([tensor.numel() * tensor.element_size() for tensor in group])
            # A copy: the part of a bucket need not be aligned as its dtype wants it.
            found += [p.clone().view(t.dtype).view(t.shape) for p, t in zip(parts, group, strict=True)]
        return found

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
