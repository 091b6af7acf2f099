"""How long until the next step, after a start and after each death, beside plain Ray Train with the same settings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sports_ray.bench.figure import Figure, Say, median, ratio
from sports_ray.data.demo import draw_demo
from sports_ray.errors import TrainingError
from sports_ray.orchestrate.nodes import Nodes
from sports_ray.processes import Processes, below, name_of, still_there

SLOWER = 1.1
"""At most so many times as long as plain Ray Train may a recovery take."""
POLL_SECONDS = 0.01
WAIT_SECONDS = 120.0
STEPS_BEFORE = 12
"""Steps done before somebody is killed: by then both sides have saved something."""
WORDS = {
    "start": "start to the first step",
    "worker": "death of the worker to the next step",
    "controller": "death of the controller to the next step",
    "driver": "death of the driver, same command, to the next step",
    "node": "death of a node to the next step",
    "silent": "a node that falls silent to the next step",
    "cluster": "death of the whole cluster, same command in a new one, to the next step",
}
Build = Callable[[Mapping[str, str], int], "Side"]
"""Makes a side from an environment and the CPUs of its worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What both sides have in common."""

    model: str = "test_resnet"
    size: int = 64
    batch: int = 16
    every: int = 5
    """Steps between two commits."""
    rounds: int = 3


@dataclass(slots=True)
class Side:
    """A command that trains, and tells of its steps in a file."""

    command: list[str]
    environment: Mapping[str, str]
    told: Path
    returns: bool
    """Whether the command outlives its controller; else it is given again, as whoever watches it would."""
    process: subprocess.Popen[bytes] | None = None
    family: Processes = field(default_factory=dict)
    """Processes that were seen below it."""

    def start(self) -> None:
        with self.told.open("ab") as told, self.told.with_suffix(".err").open("ab") as errors:
            self.process = subprocess.Popen(self.command, stdout=told, stderr=errors, env=dict(self.environment))

    def step(self, after: float, strangers: set[int], least: int = 0) -> dict[str, Any]:
        """The first step told after a moment by none of `strangers`, from step `least` on."""
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end:
            for event in self._steps():
                if event["at"] > after and event["pid"] not in strangers and event["step"] >= least:
                    return event
            self._mourn()
            time.sleep(POLL_SECONDS)
        raise TrainingError(f"no step within {WAIT_SECONDS:.0f} s", got=self._errors(), want="a training that goes on")

    def kill(self, pid: int) -> float:
        """SIGKILL; returns when."""
        assert self.process is not None
        self.family |= below(self.process.pid)
        now = time.time()
        os.kill(pid, signal.SIGKILL)
        return now

    def controller(self) -> int:
        assert self.process is not None
        return next(pid for pid in below(self.process.pid) if name_of(pid).startswith("ray::TrainController"))

    def end(self) -> None:
        """SIGKILL for the command and all that it has started."""
        if self.process is not None:
            self.family |= below(self.process.pid)
            self.process.kill()
            self.process.wait()
        for pid in still_there(self.family):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.family.clear()

    def _mourn(self) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            return
        if self.returns or self.process.returncode == 2:
            raise TrainingError(f"{self.told.stem} ended with code {self.process.returncode}", got=self._errors())
        self.start()

    def _steps(self) -> list[dict[str, Any]]:
        lines = self.told.read_text(encoding="utf-8").splitlines()
        # The last line may be half written, and of a driver's first lines not all are JSON's objects with a time.
        events = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [event for event in events if event.get("event") == "step" and "at" in event]

    def _errors(self) -> str:
        lines = self.told.with_suffix(".err").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no message"


def bench_recovery(setting: Setting, environment: Mapping[str, str], say: Say = lambda line: None) -> list[Figure]:
    """Seconds to the next step after a start and six deaths, for both sides in turns, and their ratios.

    `environment`: what both sides find; Ray's settings in it are the same for both."""
    values: dict[str, dict[str, list[float]]] = {name: {"ours": [], "plain": []} for name in WORDS}
    with tempfile.TemporaryDirectory(prefix="sports-ray-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        draw_demo(folder / "photographs", classes=4, per_class=32, size=setting.size)
        for number in range(setting.rounds):
            for label, build in (("ours", ours), ("plain", plain)):
                side = partial(_side, build, setting, folder / "photographs", folder / f"{label}-{number}")
                found = recoveries(side, environment) | node_recoveries(side, environment)
                for event, seconds in found.items():
                    values[event][label].append(seconds)
                shown = ", ".join(f"{event} {seconds:.2f}" for event, seconds in found.items())
                say(f"round {number + 1}/{setting.rounds} · {label}: {shown}")
    return [figure for name, sides in values.items() for figure in _figures(name, sides)]


def _figures(name: str, sides: Mapping[str, list[float]]) -> list[Figure]:
    mine = median(f"{name}_ours", WORDS[name], sides["ours"], "s")
    theirs = median(f"{name}_plain", f"{WORDS[name]}: plain Ray Train", sides["plain"], "s")
    return [mine, theirs, ratio(f"{name}_ratio", f"{WORDS[name]}: ratio", mine, theirs, most=SLOWER)]


def _side(
    build: Callable[..., Side],
    setting: Setting,
    photographs: Path,
    folder: Path,
    environment: Mapping[str, str],
    cpus: int,
) -> Side:
    place = folder.with_name(f"{folder.name}-{cpus}-cpus")
    place.mkdir(exist_ok=True)
    return build(setting, photographs, place, environment, cpus)


def node_recoveries(build: Build, environment: Mapping[str, str]) -> dict[str, float]:
    """The same for a worker in a cluster of two nodes of one CPU, and for the cluster: its new start is not counted.

    Ray itself finds a silent node after some four seconds in this cluster, on both sides."""
    found, strangers = {}, set[int]()
    with Nodes(2) as nodes:
        side = build({**environment, **nodes.environment}, 1)
        try:
            begun = time.time()
            side.start()
            step = side.step(begun, set())
            for name, harm in (("node", nodes.kill), ("silent", nodes.silence)):
                step = side.step(step["at"], strangers, least=step["step"] + STEPS_BEFORE)
                node = nodes.around(step["pid"])
                killed = time.time()
                harm(node)
                strangers.add(step["pid"])
                step = side.step(killed, strangers)
                found[name] = step["at"] - killed
                nodes.add()
            step = side.step(step["at"], strangers, least=step["step"] + STEPS_BEFORE)
            strangers.add(step["pid"])
        finally:
            side.end()
        nodes.kill_all()
    with Nodes(2) as nodes:
        side = build({**environment, **nodes.environment}, 1)
        try:
            begun = time.time()
            side.start()
            found["cluster"] = side.step(begun, strangers)["at"] - begun
        finally:
            side.end()
    return found


def recoveries(build: Build, environment: Mapping[str, str]) -> dict[str, float]:
    """One round of one side: seconds from its start, and from three deaths, to the next step that is done."""
    side = build(environment, os.cpu_count() or 1)
    try:
        begun = time.time()
        side.start()
        step = side.step(begun, set())
        found = {"start": step["at"] - begun}
        deaths: dict[str, Callable[[dict[str, Any]], int]] = {
            "worker": lambda step: int(step["pid"]),
            "controller": lambda step: side.controller(),
            "driver": lambda step: side.process.pid if side.process else 0,
        }
        strangers: set[int] = set()
        for name, victim in deaths.items():
            step = side.step(step["at"], strangers, least=step["step"] + STEPS_BEFORE)
            killed = side.kill(victim(step))
            strangers.add(step["pid"])
            if name == "driver":
                assert side.process is not None
                side.process.wait()
                side.start()
            step = side.step(killed, strangers)
            found[name] = step["at"] - killed
        return found
    finally:
        side.end()


def ours(setting: Setting, photographs: Path, folder: Path, environment: Mapping[str, str], cpus: int) -> Side:
    settings = {
        "data.image_size": setting.size,
        "loop.global_batch": setting.batch,
        "loop.precision": "fp32",
        # Evaluations have no part in this.
        "loop.eval_every": 1000,
        "store.every_steps": setting.every,
        "cluster.cpus_per_worker": cpus,
        # What is done to them here is not what a run gives up for.
        "cluster.max_failures": 1000,
    }
    words = ["--data", str(photographs), "--model", setting.model, "--weights", "none", "--epochs", "100000"]
    words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "sports_ray", "train", *words, "--store", str(folder), "--workers", "1", "--json"]
    return Side(command, environment, folder / "ours.jsonl", returns=True)


def plain(setting: Setting, photographs: Path, folder: Path, environment: Mapping[str, str], cpus: int) -> Side:
    task = {
        "photographs": str(photographs / "train"),
        "model": setting.model,
        "size": setting.size,
        "batch": setting.batch,
        "every": setting.every,
        "cpus": cpus,
        "store": str(folder),
        "told": str(folder / "plain.jsonl"),
    }
    command = [sys.executable, "-m", "sports_ray.orchestrate.plain", json.dumps(task)]
    return Side(command, environment, folder / "plain.jsonl", returns=False)
