"""One rank reads and verifies a checkpoint, and hands it out: the store is asked once, however many ranks there are.

Each reading for itself, 256 workers would draw 2.6 TB for a checkpoint of 10 GB, at every restart.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sports_ray.engine.world import World
from sports_ray.store.commit import Commit


@dataclass(frozen=True, slots=True)
class Handed:
    """A commit as every rank sees it."""

    step: int
    state: dict[str, Any]
    _world: World
    _commit: Commit | None
    """On rank 0 alone."""

    def load(self, name: str) -> dict[str, Tensor]:
        """Tensors of one file, on the CPU; a collective, like all of `World`'s."""
        mine = self._commit.load(name) if self._commit is not None else {}
        if self._world.size == 1:
            return mine
        described = [
            [key, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for key, tensor in mine.items()
        ]
        names = json.loads(self._world.bytes_from_rank0(json.dumps(described).encode()))
        given = list(mine.values()) or [torch.empty(shape, dtype=getattr(torch, dtype)) for _, dtype, shape in names]
        found = self._world.tensors_from_rank0(given)
        return {key: tensor for (key, _, _), tensor in zip(names, found, strict=True)}


def hand_out(world: World, commit: Commit | None) -> Handed | None:
    """Rank 0's commit on every rank, None where it has none; the others give None. A collective."""
    record = {"step": commit.step, "state": commit.state} if commit is not None else None
    told = json.loads(world.bytes_from_rank0(json.dumps(record).encode()))
    return None if told is None else Handed(told["step"], told["state"], world, commit)
