"""Small real runs for tests: a drawn set of photographs, a config, and processes that are really killed.

Children are forked from a server that has imported the engine and computed nothing: a start costs milliseconds, and no
thread pool is inherited.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from sports_ray.config import TrainConfig
from sports_ray.recipe import build_config, config_from_dict, config_to_dict
from sports_ray.store.codec import canonical
from tests.support.moments import IN_TRAINING, Moment, Moments

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.support.preload"])
_reaping = threading.Lock()
"""Each start of a child asks all others for their exit codes; of two threads that ask at once, one would read 255."""

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


def train_in_child(config: TrainConfig, kill_at: int = -1, stop_at: int = -1, die: Moment | None = None) -> int:
    """Trains in a process of its own, which kills itself with SIGKILL, or is asked to stop, at the n-th look at the link.

    The engine looks once before each step and once after each validation batch; `die`: killed at any other moment.
    Returns the exit code; -9 when killed.
    """
    if kill_at > 0:
        die = Moment("look", kill_at)
    return _run_child(_train, config, die, stop_at)


def moments_of(config: TrainConfig) -> list[Moment]:
    """Trains unbroken in a process of its own; all the moments at which it could have died."""
    assert _run_child(_train_counted, config) == 0
    moments = [Moment(*found) for found in json.loads(_counted_file(config).read_text())]
    assert {moment.kind for moment in moments} >= IN_TRAINING
    return moments


def _run_child(target: Any, config: TrainConfig, *rest: Any) -> int:
    process = FORKS.Process(target=target, args=(config_to_dict(config), *rest))
    with _reaping:
        process.start()
    if not wait([process.sentinel], 120):
        process.kill()
        raise AssertionError("the run hangs")
    with _reaping:
        code = process.exitcode
    assert code is not None
    return code


def _train_counted(settings: Mapping[str, Any]) -> None:
    config = config_from_dict(settings)
    moments = Moments(config.store.root, None)
    moments.install()
    try:
        _train_here(settings)
    finally:
        _counted_file(config).write_text(json.dumps(moments.all()))


def _counted_file(config: TrainConfig) -> Path:
    return Path(config.store.root) / f"{config.store.run}.moments.json"


def _train(settings: Mapping[str, Any], die: Moment | None, stop_at: int) -> None:
    if die is not None:
        Moments(config_from_dict(settings).store.root, die).install()
    if stop_at > 0:
        _stop_at_look(stop_at)
    _train_here(settings)


def _train_here(settings: Mapping[str, Any]) -> None:
    from sports_ray.orchestrate.local import train_here
    from sports_ray.orchestrate.plan import make_plan

    plan = make_plan(config_from_dict(settings))
    if plan.status == "finished":  # as `sports-ray train` says: it leaves such a run alone
        raise SystemExit(0)
    outcome = train_here(plan, lambda event: None)
    raise SystemExit(75 if outcome.status == "paused" else 0)


def _stop_at_look(stop_at: int) -> None:
    from sports_ray.engine.link import InProcessLink

    looks, look = 0, InProcessLink.should_stop

    def should_stop(link: InProcessLink) -> str:
        nonlocal looks
        looks += 1
        if looks == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return look(link)

    InProcessLink.should_stop = should_stop  # type: ignore[method-assign]


def results(config: TrainConfig) -> dict[str, bytes]:
    """What two equal runs must have in common, byte for byte: weights, newest checkpoint with its state, metrics."""
    folder = Path(config.store.root) / config.store.run
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    files = [folder / "weights/last.safetensors", folder / "weights/best.safetensors", folder / "metrics.jsonl"]
    found = {path.name: path.read_bytes() for path in files}
    found |= {f"newest/{path.name.partition('-')[0]}": path.read_bytes() for path in newest.glob("*.safetensors")}
    return found | {"newest/state": canonical(commit_record(newest)).encode()}


def commit_record(folder: Path) -> dict[str, Any]:
    """A checkpoint's record without what tells attempts apart: step, state, size and sha256 of each file."""
    record = json.loads((folder / "COMMIT.json").read_text())
    files = {name: [entry["size"], entry["sha256"]] for name, entry in record["files"].items()}
    return {"step": record["step"], "state": record["state"], "files": files}


def whole_run(config: TrainConfig) -> dict[str, Any]:
    """All that a run killed and gone on with must have in common with the unbroken one, checkpoints kept included.

    Left out: clocks (timings, logs, TensorBoard), and who held the run when (lease, fences, the record's folder).
    """
    folder = Path(config.store.root) / config.store.run
    found: dict[str, Any] = {**results(config)}
    for checkpoint in sorted((folder / "checkpoints").glob("step-*")):
        name = checkpoint.name.partition("-a")[0]
        assert name not in found, f"two checkpoints of {name}"
        found[name] = commit_record(checkpoint)
        files = json.loads((checkpoint / "COMMIT.json").read_text())["files"]
        assert {path.name for path in checkpoint.iterdir()} == {"COMMIT.json", *(e["path"] for e in files.values())}
    for path in (*folder.glob("weights/*"), folder / "settled.json", folder / "manifest.arrow"):
        found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def left_half_written(config: TrainConfig) -> list[Path]:
    """Temporary files below a run; those of its lease, which another driver may be writing at any time, do not count."""
    folder = Path(config.store.root) / config.store.run
    return [path for path in folder.rglob("*.tmp") if "lease" not in str(path.relative_to(folder))]


def exit_code(function: Any, *arguments: Any) -> int:
    """Exit code of a child that ran `function`."""
    process = FORKS.Process(target=function, args=arguments)
    process.start()
    process.join(100)
    assert process.exitcode is not None, "the child hangs"
    return process.exitcode
