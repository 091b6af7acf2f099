"""A driver of Ray Train in a process of its own, which tells what happens and can be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from sports_ray.config import TrainConfig
from sports_ray.recipe import config_to_dict

SCRIPT = """
import json, sys, time
from sports_ray.errors import SportsRayError
from sports_ray.orchestrate.plan import make_plan
from sports_ray.orchestrate.train import train_on_ray
from sports_ray.recipe import config_from_dict

stderr = sys.stderr  # while Ray is up, sys.stderr leads to a log


def tell(event):
    print(json.dumps({**event, "at": time.time()}), file=sys.__stdout__, flush=True)


try:
    outcome = train_on_ray(make_plan(config_from_dict(json.loads(sys.argv[1]))), tell)
except SportsRayError as error:
    print(error, file=stderr, flush=True)
    sys.exit(error.exit_code)
tell({"kind": outcome.status, "step": outcome.step, "reason": outcome.reason})
sys.exit(75 if outcome.status == "paused" else 0)
"""


class Driver:
    """`train_on_ray(config)` as a child process; a context manager that leaves no process behind.

    Its exit codes are those of the command line."""

    def __init__(self, config: TrainConfig, environment: Mapping[str, str], before: tuple[str, ...] = ()) -> None:
        """`before`: words of a command that starts the driver."""
        command = [*before, sys.executable, "-c", SCRIPT, json.dumps(config_to_dict(config))]
        self.seen: list[dict[str, Any]] = []
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "RAY_ADDRESS": "", **environment},
        )

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()
        self._errors.close()

    def events(self) -> Iterator[dict[str, Any]]:
        """The engine's events, until the driver ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen.append(json.loads(line))
            yield self.seen[-1]

    def until(self, kind: str, step: int = 0) -> dict[str, Any]:
        """Waits for an event of a kind, at a step or later."""
        for event in self.events():
            if event["kind"] == kind and event.get("step", 0) >= step:
                return event
        raise AssertionError(f"the driver ended without {kind}; exit code {self.process.wait()}; {self.errors}")

    def end(self) -> int:
        """Waits for the end; the exit code."""
        for _ in self.events():
            pass
        return self.process.wait(30)

    @property
    def errors(self) -> str:
        """What it has written to stderr so far."""
        return os.pread(self._errors.fileno(), 1 << 20, 0).decode()

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Events of a kind that were seen so far."""
        return [event for event in self.seen if event["kind"] == kind]
