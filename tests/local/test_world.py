"""Real processes that sum over gloo: what they agree on is the same bits everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sports_ray.engine.world import BUCKET_ELEMENTS, World, _buckets
from tests.support.ranks import on_ranks


def agree(world: World) -> dict[str, Any]:
    torch.manual_seed(world.rank)
    sizes = [(3, 5), (1,), (), (1000,), (7, 2, 2)]
    tensors = [torch.randn(size) for size in sizes]
    own = [tensor.clone() for tensor in tensors]
    tensors[4] = tensors[4].permute(2, 0, 1)
    world.sum_many_(tensors)
    return {
        "own": own,
        "sums": [tensor.contiguous() for tensor in tensors],
        "one": world.sum_(torch.tensor([world.rank + 1, 10])),
        "told": world.from_rank0(41 + world.rank),
        "any": world.any(world.rank == world.size - 1),
        "none": world.any(False),
        "least": world.least(7 - world.rank),
    }


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_hold_the_same_sums_and_decisions(tmp_path: Path, size: int) -> None:
    found = on_ranks(tmp_path, size, agree)
    for index, total in enumerate(found[0]["sums"]):
        assert all(torch.equal(total, other["sums"][index]) for other in found)
        parts = [other["own"][index] for other in found]
        expected = torch.stack(parts).sum(0)
        torch.testing.assert_close(total, expected.permute(2, 0, 1) if index == 4 else expected)
    assert all(f["one"].tolist() == [size * (size + 1) // 2, 10 * size] for f in found)
    assert [(f["told"], f["any"], f["none"]) for f in found] == [(41, True, False)] * size
    assert [f["least"] for f in found] == [8 - size] * size


def test_one_rank_needs_no_group() -> None:
    world, tensor = World(), torch.ones(3)
    world.sum_many_([tensor])
    assert world.sum_(tensor) is tensor and tensor.tolist() == [1, 1, 1]
    assert world.from_rank0(7) == 7 and world.any(True) and not world.any(False) and world.least(3) == 3


def test_buckets_keep_the_order_and_split_by_size_alone() -> None:
    def groups(*sizes: int) -> list[list[int]]:
        return [[t.numel() for t in group] for group in _buckets([torch.empty(n, device="meta") for n in sizes])]

    half = BUCKET_ELEMENTS // 2
    assert groups(half, half, 1, 2) == [[half, half], [1, 2]]
    assert groups(1, BUCKET_ELEMENTS + 1, 2) == [[1], [BUCKET_ELEMENTS + 1], [2]]
    assert groups() == []
