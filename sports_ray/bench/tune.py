"""What Ray Tune adds to the runs of a sweep: between two trials, over a whole sweep, and after the death of the driver."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sports_ray.bench.figure import Figure, Say, median, ratio, take_turns
from sports_ray.bench.recovery import STEPS_BEFORE, Side
from sports_ray.data.demo import draw_demo
from sports_ray.errors import TrainingError
from sports_ray.orchestrate.nodes import Nodes
from sports_ray.sweep.folder import SweepDir

NEXT_SECONDS = 1.5
"""At most so much longer than in a warm process may a trial take to its first step, in a process that is used again."""
SLOWER = 1.25
"""At most so many times as long as the same runs without Ray, divided by what runs at once, may the trials of a sweep take."""
RESTORE_SECONDS = 15.0
AT_ONCE = 2
_WITHOUT_END = 100_000
"""Epochs of a sweep whose driver is killed."""

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    models: str = "test_resnet,test_efficientnet"
    samples: int = 4
    """Trials of each backbone."""
    epochs: int = 24
    images: int = 256
    size: int = 64
    batch: int = 16
    rounds: int = 2


@dataclass(frozen=True, slots=True)
class Told:
    """What the trials of one side told, in the order of time, by `at`, `event`, `trial` and `pid`."""

    events: Sequence[Event]
    seconds: float
    """Of the whole command."""

    @property
    def training(self) -> float:
        """Seconds from the start of the first trial, in a process that is there, to the end of the last."""
        starts = [event["at"] for event in self.events if event["event"] == "start"]
        return max(self._ends().values()) - min(starts)

    def between(self) -> dict[str, float]:
        """{trial: seconds from the end of the trial before it in its process to its own first step}."""
        processes: dict[int, list[str]] = {}
        first: dict[str, float] = {}
        for event in self.events:
            if event["event"] == "start":
                processes.setdefault(event["pid"], []).append(event["trial"])
            elif event["event"] == "step":
                first.setdefault(event["trial"], event["at"])
        ends = self._ends()
        pairs = [pair for trials in processes.values() for pair in zip(trials, trials[1:], strict=False)]
        return {name: first[name] - ends[before] for before, name in pairs}

    def _ends(self) -> dict[str, float]:
        return {event["trial"]: event["at"] for event in self.events if event["event"] == "end"}


def bench_tune(setting: Setting, environment: Mapping[str, str], say: Say = lambda line: None) -> list[Figure]:
    """Seconds and ratios of all three; `environment`: what all commands find."""
    with tempfile.TemporaryDirectory(prefix="sports-ray-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        draw_demo(folder / "photographs", classes=4, per_class=setting.images // 4, size=setting.size)
        place = dict(environment) | {"XDG_CACHE_HOME": str(folder / "cache")}
        sides: dict[str, list[Told]] = {"sweep": [], "alone": [], "pair": []}
        for number in range(setting.rounds):
            for label, told in sides_of(setting, folder / f"round-{number}", place).items():
                sides[label].append(told)
                say(f"round {number + 1}/{setting.rounds} · {label}: {told.training:.1f} s")
        restores = {
            "joined": partial(restore, setting, folder / "photographs", place, joined=True),
            "local": partial(restore, setting, folder / "photographs", place, joined=False),
        }
        return figures(sides) + restore_figures(take_turns(setting.rounds, restores, say))


def sides_of(setting: Setting, folder: Path, environment: Mapping[str, str]) -> dict[str, Told]:
    """One round: the sweep; then its runs without Ray, one after the other, and in two processes at once."""
    folder.mkdir()
    sweep = sweep_side(setting, folder.parent / "photographs", folder, environment)
    where = folder / "one"
    spec = SweepDir(str(where)).read_spec()
    assert spec is not None
    names = [trial.name for trial in spec.trials()]
    alone = without_ray(where, [names], folder / "alone", environment)
    pair = without_ray(where, [names[start::AT_ONCE] for start in range(AT_ONCE)], folder / "pair", environment)
    _check_equal(where, folder / "alone-0", names)
    return {"sweep": sweep, "alone": alone, "pair": pair}


def figures(sides: Mapping[str, Sequence[Told]]) -> list[Figure]:
    """What the sides told, each round by round."""
    next_alone = [told.between() for told in sides["alone"]]
    next_trial = [told.between() for told in sides["sweep"]]
    added = [
        statistics.median(seconds - alone[name] for name, seconds in trial.items() if name in alone)
        for trial, alone in zip(next_trial, next_alone, strict=True)
    ]
    trials = f"{sum(event['event'] == 'end' for event in sides['sweep'][0].events)} trials"
    after = (
        [statistics.median(one.values()) for one in next_alone],
        [statistics.median(one.values()) for one in next_trial],
    )
    alone = median("alone", f"{trials} one after the other, without Ray", [one.training for one in sides["alone"]], "s")
    share = median("share", "", [one.training / AT_ONCE for one in sides["alone"]], "s")
    pair = median("pair", f"in {AT_ONCE} processes, without Ray", [one.training for one in sides["pair"]], "s")
    sweep = median("sweep", f"sweep, {AT_ONCE} at once: its trials", [one.training for one in sides["sweep"]], "s")
    whole = median(
        "whole", "the same with the start of the command and of Ray", [one.seconds for one in sides["sweep"]], "s"
    )
    over = f"over one after the other / {AT_ONCE}"
    return [
        median("next_alone", "end of a run to the first step of the next, warm process", after[0], "s"),
        median("next_trial", "end of a trial to the first step of the next, its process", after[1], "s"),
        median("next_added", "what a sweep adds to it", added, "s", most=NEXT_SECONDS),
        alone,
        pair,
        sweep,
        whole,
        ratio("pair_ratio", f"{AT_ONCE} processes without Ray {over}", pair, share),
        ratio("sweep_ratio", f"trials of the sweep {over}", sweep, share, most=SLOWER),
        ratio("whole_ratio", f"the whole command {over}", whole, share),
    ]  # fmt: skip


def restore_figures(seconds: Mapping[str, Sequence[float]]) -> list[Figure]:
    words = "death of the driver, same command, to the next step"
    return [
        median("restore_joined", f"{words}: a cluster that lives on", seconds["joined"], "s", most=RESTORE_SECONDS),
        median("restore_local", f"{words}: its own cluster dies too", seconds["local"], "s", most=RESTORE_SECONDS),
    ]


def tune_command(
    setting: Setting, photographs: Path, store: Path, epochs: int, more: Mapping[str, int] = MappingProxyType({})
) -> list[str]:
    """`more`: settings of all trials besides."""
    settings = {
        "data.image_size": setting.size,
        "loop.global_batch": setting.batch,
        "loop.eval_every": max(1, min(epochs, setting.epochs) // 4),
        # A trial shall take one core, on both sides.
        "data.loader_processes": 0,
        **more,
    }
    words = ["tune", "--data", str(photographs), "--models", setting.models, "--weights", "none", "--sweep", "one"]
    words += ["--store", str(store), "--epochs", str(epochs), "--precision", "fp32", "--samples", str(setting.samples)]
    words += ["--space", "optim.lr=log:1e-3..1e-2", "--cpus-per-trial", "1", "--max-concurrent", str(AT_ONCE)]
    words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "sports_ray", *words, "--json"]


def sweep_side(setting: Setting, photographs: Path, store: Path, environment: Mapping[str, str]) -> Told:
    begun = time.perf_counter()
    command = tune_command(setting, photographs, store, setting.epochs)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise TrainingError("tune failed", got=(done.stderr.strip().splitlines() or ["no message"])[-1])
    return Told(_events(done.stdout), seconds)


def without_ray(sweep: Path, parts: Sequence[Sequence[str]], store: Path, environment: Mapping[str, str]) -> Told:
    """Trains each part of a sweep's trials in a process of its own, all at once, when all are warm."""
    children = []
    with ExitStack() as stack:
        for number, names in enumerate(parts):
            task = {"sweep": str(sweep), "trials": names, "store": f"{store}-{number}"}
            command = [sys.executable, "-m", "sports_ray.bench.tune_alone", json.dumps(task)]
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environment)
            )
            children.append(stack.enter_context(child))
            stack.callback(child.kill)
        for child in children:
            assert child.stdout is not None and child.stdin is not None
            while (line := child.stdout.readline()) and json.loads(line)["event"] != "ready":
                pass
        begun = time.perf_counter()
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        told = [child.communicate()[0] for child in children]
        if any(child.returncode for child in children):
            raise TrainingError("training without Ray failed", want="see the message above")
        return Told(_events("".join(told)), time.perf_counter() - begun)


def _events(text: str) -> list[Event]:
    lines = [json.loads(line) for line in text.splitlines()]
    return sorted((line for line in lines if line["event"] in ("start", "step", "end")), key=lambda line: line["at"])


def _check_equal(sweep: Path, store: Path, names: Sequence[str]) -> None:
    """Both sides have done the same work, to the last bit."""
    for name in names:
        here, there = (SweepDir(str(place)).run_dir(name).read_metrics() for place in (sweep, store))
        if here != there or not here:
            raise TrainingError(f"trial {name}", got="other scores than without Ray", want="equal ones")


def restore(setting: Setting, photographs: Path, environment: Mapping[str, str], joined: bool) -> float:
    """Seconds from SIGKILL for a driver with two trials under way, whose command is given again at once, to a step of one."""
    with ExitStack() as stack:
        store = Path(
            stack.enter_context(tempfile.TemporaryDirectory(dir=photographs.parent, ignore_cleanup_errors=True))
        )
        cluster = stack.enter_context(Nodes(AT_ONCE)).environment if joined else {}
        command = tune_command(setting, photographs, store, _WITHOUT_END, {"store.every_steps": 5})
        side = Side(command, {**environment, **cluster}, store / "told.jsonl", returns=True)
        stack.callback(side.end)
        begun = time.time()
        side.start()
        step = side.step(begun, set(), least=STEPS_BEFORE)
        side.step(begun, {step["pid"]}, least=STEPS_BEFORE)
        assert side.process is not None
        killed = side.kill(side.process.pid)
        side.process.wait()
        side.start()
        return float(side.step(killed, set())["at"] - killed)
