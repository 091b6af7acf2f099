"""Runs a function on several real ranks of a gloo group, each a process of its own."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sports_ray.engine.world import World
from tests.support.runs import FORKS

Task = Callable[..., dict[str, Any]]


def on_ranks(folder: Path, size: int, task: Task, *arguments: Any) -> list[dict[str, Any]]:
    """What `task(world, *arguments)` returned on each rank; `task` is a function of a module's top level.

    The ranks find each other through a file, so that no port is fixed."""
    folder.mkdir(parents=True, exist_ok=True)
    processes = [FORKS.Process(target=_rank, args=(folder, rank, size, task, arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * size, f"ranks ended with {codes}"
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(size)]


def _rank(folder: Path, rank: int, size: int, task: Task, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if size > 1:
        timeout = datetime.timedelta(seconds=50)
        dist.init_process_group("gloo", f"file://{folder}/meeting", timeout, rank=rank, world_size=size)
    torch.save(task(World(rank, size, local_size=size), *arguments), folder / f"rank{rank}.pt")
    if size > 1:
        dist.destroy_process_group()
