"""Small real runs for tests: a drawn set of photographs, a config, and processes that are really killed.

Children are forked from a server that has imported the engine and computed nothing: a start costs milliseconds, and no
thread pool is inherited.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sports_ray.config import TrainConfig
from sports_ray.recipe import build_config, config_from_dict, config_to_dict

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["sports_ray.orchestrate.local"])

SETTINGS: dict[str, Any] = {
    "model.name": "test_resnet",
    "model.weights": "none",
    "model.drop_path": 0.1,
    "data.image_size": 32,
    "augment.policy": "rand-m7-n2",
    "augment.mixup": 0.2,
    "augment.cutmix": 1.0,
    "augment.erasing": 0.2,
    "loop.epochs": 2,
    "loop.global_batch": 12,
    "loop.micro_batch": 6,
    "loop.eval_batch": 8,
    "loop.precision": "fp32",
    "data.loader_processes": 0,
    "store.every_steps": 2,
    "cluster.workers": "0",
    "cluster.threads": 1,
}
"""EMA, mixup, cutmix, rand-augment, drop path, accumulation and clipping are all on."""


def small_config(data: Path, store: Path, run: str = "run", **settings: Any) -> TrainConfig:
    """`settings` with `__` for the dot: loop__epochs=3."""
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return build_config(None, {**SETTINGS, "data.root": str(data), "store.root": str(store), "store.run": run, **named})


def train_in_child(config: TrainConfig, kill_at: int = -1, stop_at: int = -1) -> int:
    """Trains in a process of its own, which kills itself with SIGKILL, or is asked to stop, at the n-th look at the link.

    The engine looks once before each step and once after each validation batch. Returns the exit code; -9 when killed.
    """
    process = FORKS.Process(target=_train, args=(config_to_dict(config), kill_at, stop_at))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def _train(settings: Mapping[str, Any], kill_at: int, stop_at: int) -> None:
    from sports_ray.engine.link import InProcessLink
    from sports_ray.orchestrate.local import train_here
    from sports_ray.orchestrate.plan import make_plan

    looks = 0
    look = InProcessLink.should_stop

    def should_stop(link: InProcessLink) -> str:
        nonlocal looks
        looks += 1
        if looks == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if looks == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return look(link)

    InProcessLink.should_stop = should_stop  # type: ignore[method-assign, assignment]
    outcome = train_here(make_plan(config_from_dict(settings)), lambda event: None)
    raise SystemExit(75 if outcome.status == "paused" else 0)


def results(config: TrainConfig) -> dict[str, bytes]:
    """What two equal runs must have in common, byte for byte: weights, newest checkpoint, metrics."""
    folder = Path(config.store.root) / config.store.run
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    files = [folder / "weights/last.safetensors", folder / "weights/best.safetensors", folder / "metrics.jsonl"]
    found = {path.name: path.read_bytes() for path in files}
    return found | {f"newest/{path.name.partition('-')[0]}": path.read_bytes() for path in newest.glob("*.safetensors")}
