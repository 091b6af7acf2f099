"""A checkpoint that one rank reads reaches all ranks bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sports_ray.engine.handout import hand_out
from sports_ray.engine.world import World
from sports_ray.store.attempt import begin_attempt
from sports_ray.store.commit import newest, write_commit
from sports_ray.store.storage import open_storage
from tests.support.ranks import on_ranks

STATE = {"step": 3, "consumed": "ab", "history": [{"loss": 0.1 + 0.2, "none": None}]}


def tensors() -> dict[str, dict[str, torch.Tensor]]:
    """Dtypes of one, two, four and eight bytes, odd sizes between them, a NaN, a scalar, nothing, and more than a bucket."""
    generator = torch.Generator().manual_seed(1)
    model = {
        "a": torch.rand(3, 5, generator=generator),
        "flag": torch.tensor([True, False, True]),
        "half": torch.rand(7, generator=generator).bfloat16(),
        "count": torch.tensor(2**40 + 1),
        "empty": torch.zeros(0, 4),
        "odd": torch.tensor([float("nan"), -0.0, 1e-45]),
        "large": torch.rand(9_000_000, generator=generator),
    }
    return {"model": model, "optim": {"moment": torch.rand(11, generator=generator).double()}}


def resumed(world: World, folder: str) -> dict[str, Any]:
    commit = newest(open_storage(folder))[0] if world.rank == 0 else None
    found = hand_out(world, commit)
    assert found is not None and found.step == 3 and found.state == STATE
    parts = {name: found.load(name) for name in ("model", "optim")}
    assert hand_out(world, None) is None
    return {
        "names": [list(part) for part in parts.values()],
        **{k: v for part in parts.values() for k, v in part.items()},
    }


@pytest.mark.parametrize("size", [1, 3])
def test_every_rank_holds_what_rank_0_has_read(tmp_path: Path, size: int) -> None:
    storage = open_storage(str(tmp_path / "run"))
    write_commit(storage, 3, begin_attempt(storage, {}).token, tensors(), STATE)
    wanted = {name: tensor for part in tensors().values() for name, tensor in part.items()}
    for found in on_ranks(tmp_path / "ranks", size, resumed, str(tmp_path / "run")):
        assert found.pop("names") == [list(newest_names(storage, part)) for part in ("model", "optim")]
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
            same = found[name].contiguous().reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)
            assert torch.equal(*same), name


def newest_names(storage: Any, part: str) -> list[str]:
    commit = newest(storage)[0]
    assert commit is not None
    return list(commit.load(part))
