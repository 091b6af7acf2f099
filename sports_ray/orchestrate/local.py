"""One run inside this process: no Ray, no other process but the loader's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from sports_ray.engine.link import InProcessLink, Outcome
from sports_ray.engine.run import run
from sports_ray.engine.world import World
from sports_ray.orchestrate.plan import Plan, write_record
from sports_ray.stops import Stops
from sports_ray.store.lease import Lease


def train_here(
    plan: Plan,
    on_progress: Callable[[Mapping[str, Any]], None],
    started: float | None = None,
    stops: Stops | None = None,
) -> Outcome:
    """Trains `plan` to its end or to the next stop. `started`: Unix time from which the time budget counts; `stops`: what
    the command has collected so far, else signals count from here on.

    Raises RunError while another driver holds the run.
    """
    device = torch.device("cuda", 0) if plan.gpus else torch.device("cpu")
    budget = plan.config.cluster.time_budget
    deadline = (started or time.time()) + budget if budget else 0.0
    with Lease.acquire(plan.run_dir.storage) as lease:
        write_record(plan)

        def lost() -> str:
            return "another driver took the run over" if lease.lost else ""

        with InProcessLink(on_progress, deadline, lost, stops) as link:
            return run(plan.config, plan.manifest, plan.run_dir, link, World(device=device), lease.id)
