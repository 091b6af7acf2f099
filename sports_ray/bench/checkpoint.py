"""What a commit costs: the training thread's stall, the writing thread's time, and the slower steps meanwhile."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sports_ray.bench.figure import Figure, Say, median
from sports_ray.bench.photos import photographs
from sports_ray.config import ClusterConfig, TrainConfig
from sports_ray.engine.interval import commit_interval
from sports_ray.engine.run import run
from sports_ray.engine.world import World
from sports_ray.orchestrate.plan import make_plan, write_record
from sports_ray.recipe import build_config

STALL = 1.0
"""Percent of the time between commits at the default interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    data: str = ""
    """Folder of photographs; empty: drawn."""
    model: str = "convnext_atto"
    size: int = 64
    batch: int = 16
    steps: int = 160
    every: int = 16
    """Steps between two commits."""
    per_class: int = 32
    """Photographs a class, where they are drawn."""


class Clock:
    """Link of the run that notes when each step begins: the engine looks for a stop once before each."""

    deadline = 0.0

    def __init__(self) -> None:
        self.looks: list[float] = []

    def should_stop(self) -> str:
        self.looks.append(time.perf_counter())
        return ""

    def progress(self, event: Mapping[str, Any]) -> None:
        """Nobody watches this run."""

    def report(self, metrics: Mapping[str, float]) -> None:
        """Nobody asks for its scores."""


def bench_checkpoint(setting: Setting, say: Say = lambda line: None) -> list[Figure]:
    """One real run with many commits; a step belongs to a commit if it began while that was being written."""
    with tempfile.TemporaryDirectory(prefix="sports-ray-bench-") as name:
        folder = Path(name)
        root = photographs(setting.data, folder, max(96, setting.size), setting.per_class, say)
        say(f"training {setting.steps} steps of {setting.model}, a commit every {setting.every}")
        plan = make_plan(_config(setting, root, folder, epochs=1))
        plan = make_plan(_config(setting, root, folder, epochs=-(-setting.steps // plan.schedule.steps_per_epoch)))
        write_record(plan)
        clock = Clock()
        device = torch.device("cuda", 0) if plan.gpus else torch.device("cpu")
        run(plan.config, plan.manifest, plan.run_dir, clock, World(device=device))
        commits = [event for event in plan.run_dir.read_timings() if event["kind"] == "commit"]
        newest = plan.run_dir.local_path("checkpoints")
        assert newest is not None
        last = max(newest.glob("step-*"))
        megabytes = sum(file.stat().st_size for file in last.iterdir()) / 1e6
    looks = clock.looks[: plan.schedule.total_steps]
    return figures(looks, [event for event in commits if setting.every < event["step"] < len(looks)], megabytes)


def figures(looks: Sequence[float], commits: Sequence[Mapping[str, Any]], megabytes: float) -> list[Figure]:
    """What the times say. `looks[i]`: second at which step i began; commits: `step`, `stall` and `seconds` of each.

    The stall after step s lies before `looks[s]`, the writing begins there: both leave the next steps the slower.
    """
    lengths = [after - before for before, after in zip(looks, looks[1:], strict=False)]
    touched: dict[int, list[int]] = {}
    for event in commits:
        end = looks[event["step"]] + event["seconds"]
        touched[event["step"]] = [step for step in range(event["step"], len(lengths)) if looks[step] < end]
    stalled = {step - 1 for step in touched}
    busy = {step for steps in touched.values() for step in steps}
    free = [length for step, length in enumerate(lengths) if step not in busy | stalled and step > 2]
    usual = statistics.median(free)
    costs = [sum(lengths[step] - usual for step in (first - 1, *steps)) for first, steps in touched.items()]
    stalls = [event["stall"] for event in commits]
    seconds = [event["seconds"] for event in commits]
    cost = max(statistics.fmean(costs), statistics.fmean(stalls))
    interval = commit_interval(cost, ClusterConfig().mtbf)
    slowed = [1 / lengths[step] for step in sorted(busy)]
    alone = median("steps_alone", "training with no commit under way", [1 / length for length in free], "steps/s")
    beside = median("steps_beside", "training beside a commit", slowed, "steps/s")
    share = [100 * stall / interval for stall in stalls]
    whole = [100 * cost / interval for cost in costs]
    return [
        Figure(name="size", words="a checkpoint", value=megabytes, unit="MB"),
        median("stall", "stall of the training thread", [1000 * stall for stall in stalls], "ms"),
        median("stall_share", f"stall, of the default interval of {interval:.0f} s", share, "%", most=STALL),
        median("writing", "writing thread", seconds, "s"),
        median("speed", "writing thread", [megabytes / second for second in seconds], "MB/s"),
        alone,
        beside,
        Figure(name="slowdown", words="beside / alone", value=beside.value / alone.value, unit="x"),
        median("cost_share", "stall and slower steps, of the default interval", whole, "%"),
    ]


def _config(setting: Setting, root: Path, folder: Path, epochs: int) -> TrainConfig:
    flags = {
        "data.root": str(root),
        "data.image_size": setting.size,
        "data.leaks": "allow",
        "model.name": setting.model,
        "model.weights": "none",
        "loop.epochs": epochs,
        "loop.eval_every": epochs,
        "loop.global_batch": setting.batch,
        "loop.lanes": min(4, setting.batch),
        "store.every_steps": setting.every,
        "store.every_seconds": 0.0,
        "store.root": str(folder / "runs"),
        "cluster.workers": "0",
    }
    return build_config(None, flags)
