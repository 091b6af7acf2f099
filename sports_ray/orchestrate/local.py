"""One run inside this process: no Ray, no other process but the loader's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from sports_ray.engine.link import InProcessLink
from sports_ray.engine.run import Outcome, run
from sports_ray.engine.world import World
from sports_ray.orchestrate.plan import Plan, write_record
from sports_ray.store.lease import Lease


def train_here(plan: Plan, on_progress: Callable[[Mapping[str, Any]], None], started: float | None = None) -> Outcome:
    """Trains `plan` to its end or to the next stop. `started`: Unix time from which the time budget counts.

    Raises RunError while another driver holds the run.
    """
    device = torch.device("cuda", 0) if plan.gpus else torch.device("cpu")
    budget = plan.config.cluster.time_budget
    left = max(1.0, budget - (time.time() - started)) if budget and started else budget
    with Lease.acquire(plan.run_dir.storage) as lease:
        write_record(plan)
        with InProcessLink(on_progress, left, lambda: "another driver took the run over" if lease.lost else "") as link:
            return run(plan.config, plan.manifest, plan.run_dir, link, World(device=device), lease.id)
