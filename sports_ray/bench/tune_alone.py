"""The runs of a sweep without Ray: one after the other in this process, which has trained before. A program, told what to do
by its only argument; tells what happens as `tune --json` does."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sports_ray.config import TrainConfig
from sports_ray.orchestrate.local import train_here
from sports_ray.orchestrate.plan import make_plan
from sports_ray.stops import Stops
from sports_ray.sweep.folder import SweepDir


def tell(name: str, event: Mapping[str, Any]) -> None:
    if event["kind"] in ("start", "step", "end"):
        told = {"event": event["kind"], "trial": name, "at": time.time(), "pid": os.getpid()}
        _write(told | {"step": event.get("step")})


def _write(event: Mapping[str, Any]) -> None:
    """To the bench, over the pipe that is this program's stdout; for people is none of it."""
    os.write(1, f"{json.dumps(event)}\n".encode())


def train(config: TrainConfig, name: str) -> None:
    """As `train --workers 0` does after its imports."""
    plan = make_plan(config)
    train_here(plan, partial(tell, name), stops=Stops())
    tell(name, {"kind": "end"})


def main(sweep: str, trials: list[str], store: str) -> None:
    """Trains `trials` of a sweep that there is, in `store`; waits before it for a line of stdin, when all is warm."""
    spec = SweepDir(sweep).read_spec()
    assert spec is not None
    drawn = spec.drawn()
    configs = {one.name: spec.config(one, drawn[one.name], store) for one in spec.trials() if one.name in trials}
    for name, config in {configs[name].model.name: (name, configs[name]) for name in trials}.values():
        short = dataclasses.replace(config.loop, epochs=1)
        warm = dataclasses.replace(config.store, root=str(Path(store) / "warm"))
        train(dataclasses.replace(config, loop=short, store=warm), f"warm-{name}")
    _write({"event": "ready"})
    sys.stdin.readline()
    for name in trials:
        train(configs[name], name)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
