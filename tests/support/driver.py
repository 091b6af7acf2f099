"""A driver of Ray Train in a process of its own, which tells what happens and can be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from sports_ray.config import TrainConfig
from sports_ray.recipe import config_to_dict

SCRIPT = """
import json, sys
from sports_ray.orchestrate.plan import make_plan
from sports_ray.orchestrate.train import train_on_ray
from sports_ray.recipe import config_from_dict

plan = make_plan(config_from_dict(json.loads(sys.argv[1])))
train_on_ray(plan, lambda event: print(json.dumps(event), file=sys.__stdout__, flush=True))
"""


class Driver:
    """`train_on_ray(config)` as a child process; a context manager that leaves no process behind."""

    def __init__(self, config: TrainConfig, environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-c", SCRIPT, json.dumps(config_to_dict(config))]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "RAY_ADDRESS": "", **environment}
        )

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()

    def events(self) -> Iterator[dict[str, Any]]:
        """The engine's events, until the driver ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield json.loads(line)

    def until(self, kind: str, step: int = 0) -> dict[str, Any]:
        """Waits for an event of a kind, at a step or later."""
        for event in self.events():
            if event["kind"] == kind and event.get("step", 0) >= step:
                return event
        raise AssertionError(f"the driver ended without {kind}; exit code {self.process.wait()}")
