"""The whole training path against a bare loop on tensors in memory and, where it is at hand, timm's training script."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sports_ray.bench.bare import bare_turn
from sports_ray.bench.figure import Figure, Say, median, ratio, take_turns
from sports_ray.bench.photos import linked, listed, photographs
from sports_ray.bench.timm_script import timm_images_per_second
from sports_ray.config import TrainConfig
from sports_ray.errors import ConfigError
from sports_ray.recipe import build_config

PER_BARE = 0.93
PER_TIMM = 1.12


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all sides have in common."""

    data: str = ""
    """Folder of photographs; empty: drawn."""
    model: str = "convnext_atto"
    size: int = 128
    batch: int = 32
    steps: int = 120
    """Steps of one turn."""
    rounds: int = 3
    precision: str = "bf16"
    workers: str = "1"
    timm_script: str = ""
    strict: bool = False
    """Whether to train with `loop.strict` too."""
    per_class: int = 64
    """Photographs a class, where they are drawn."""


def bench_train(setting: Setting, environment: Mapping[str, str], say: Say = lambda line: None) -> list[Figure]:
    """Images per second of each side, their ratios, and the share of the cores' time that the loader takes.

    `environment`: the user's, for the other sides; this process's was changed for ours."""
    if setting.timm_script and not Path(setting.timm_script).is_file():
        raise ConfigError("--timm-script", got=setting.timm_script, want="timm's train.py", cure="check the path")
    with tempfile.TemporaryDirectory(prefix="sports-ray-bench-") as name:
        folder = Path(name)
        root = photographs(setting.data, folder, max(160, setting.size), setting.per_class, say)
        manifest = listed(root, folder)
        # A few more than the steps need: two in a hundred are carved for validation.
        tree = linked(manifest, folder / "linked", round(1.02 * setting.steps * setting.batch))
        whole = Whole(setting, tree, folder)
        turns: dict[str, Callable[[], float]] = {
            "bare": partial(_bare_turn, setting, len(manifest.classes), environment),
            "whole": whole.images_per_second,
        }
        if setting.strict:
            turns["strict"] = Whole(setting, tree, folder, strict=True).images_per_second
        if setting.timm_script:
            turns["timm"] = _timm_turn(setting, tree, len(manifest.classes), environment, say)
        values = take_turns(setting.rounds, turns, say)
    return _figures(values, whole.cpu)


def _figures(values: Mapping[str, list[float]], cpu: list[CpuTimes]) -> list[Figure]:
    bare = median("bare", "bare loop on tensors in memory", values["bare"], "images/s")
    whole = median("whole", "whole training path", values["whole"], "images/s")
    figures = [bare, whole, ratio("whole_per_bare", "whole path / bare loop", whole, bare, PER_BARE)]
    if "timm" in values:
        timm = median("timm", "timm's training script", values["timm"], "images/s")
        figures += [timm, ratio("whole_per_timm", "whole path / timm's script", whole, timm, PER_TIMM)]
    if "strict" in values:
        strict = median("strict", "whole training path, strict", values["strict"], "images/s")
        figures += [strict, ratio("strict_per_whole", "strict / not strict", strict, whole)]
    known = [times for times in cpu if times.images and times.loader and times.training]
    if known:
        loader = [1000 * times.loader / times.images for times in known]
        training = [1000 * times.training / times.images for times in known]
        share = [100 * times.loader / (times.loader + times.training) for times in known]
        figures += [
            median("loader_cpu", "loader: core time an image", loader, "ms"),
            median("training_cpu", "training: core time an image", training, "ms"),
            median("loader_share", "loader's share of the core time", share, "%"),
        ]
    return figures


def _bare_turn(setting: Setting, classes: int, environment: Mapping[str, str]) -> float:
    precision = setting.precision
    return bare_turn(setting.model, setting.size, setting.batch, setting.steps, precision, classes, environment)


def _timm_turn(
    setting: Setting, tree: Path, classes: int, environment: Mapping[str, str], say: Say
) -> Callable[[], float]:
    """One turn of timm's script, with one loader process or two, whichever a trial finds faster."""
    images = sum(1 for _ in tree.glob("train/*/*"))
    epochs = -(-setting.steps // max(1, images // setting.batch))

    def run(workers: int) -> float:
        return timm_images_per_second(
            Path(setting.timm_script),
            tree,
            model=setting.model,
            classes=classes,
            size=setting.size,
            batch=setting.batch,
            epochs=epochs,
            precision=setting.precision,
            workers=workers,
            environment=environment,
        )

    trial = {workers: run(workers) for workers in (1, 2)}
    say(f"timm's script: {trial[1]:.4g} with one loader process, {trial[2]:.4g} with two")
    return partial(run, max(trial, key=lambda workers: trial[workers]))


@dataclass(slots=True)
class CpuTimes:
    """Core seconds that a worker and its loader's processes have taken, between the first look and the last."""

    training: float = 0.0
    loader: float = 0.0
    images: int = 0
    _pid: int = 0
    _first: tuple[float, float, int] | None = None

    def take(self, event: Mapping[str, Any], batch: int) -> None:
        """Looks at the worker's processes when it tells of a step."""
        self._pid = event.get("pid", self._pid)
        if event["kind"] != "step" or not self._pid:
            return
        try:
            now = (_cpu_seconds(self._pid), sum(map(_cpu_seconds, _children(self._pid))), event["step"] * batch)
        except OSError:  # no /proc here, or the worker has just ended
            return
        self._first = self._first or now
        if now[1] >= self._first[1]:
            self.training, self.loader = now[0] - self._first[0], now[1] - self._first[1]
            self.images = now[2] - self._first[2]


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


@dataclass(slots=True)
class Whole:
    """The training path as a user gets it: Ray worker, loader, augmentation, mixup, EMA and a commit."""

    setting: Setting
    root: Path
    folder: Path
    strict: bool = False
    cpu: list[CpuTimes] = field(default_factory=list)

    def config(self, epochs: int) -> TrainConfig:
        setting = self.setting
        flags = {
            "data.root": str(self.root),
            "data.image_size": setting.size,
            "data.leaks": "allow",
            "data.val_fraction": 0.02,
            "model.name": setting.model,
            "model.weights": "none",
            "augment.policy": "rand-m7-n2",
            "augment.mixup": 0.2,
            "loop.epochs": epochs,
            # Evaluations are left out of the speed, so one is enough; the commit that a better score brings comes then.
            "loop.eval_every": epochs,
            "loop.global_batch": setting.batch,
            "loop.lanes": min(4, setting.batch),
            "loop.precision": setting.precision,
            # At least one commit in the middle of each turn: more often than the default interval asks for.
            "store.every_steps": setting.steps // 2 + 1,
            "store.root": str(self.folder / "runs"),
            "store.run": f"{'strict' if self.strict else 'whole'}-{len(self.cpu)}",
            "loop.strict": self.strict,
            "cluster.workers": setting.workers,
        }
        return build_config(None, flags)

    def images_per_second(self) -> float:
        """One turn: a new run, from its second step to its last, evaluation and start left out, commits included."""
        from sports_ray.orchestrate.local import train_here
        from sports_ray.orchestrate.plan import make_plan
        from sports_ray.orchestrate.train import train_on_ray

        plan = make_plan(self.config(epochs=1))
        epochs = -(-self.setting.steps // plan.schedule.steps_per_epoch)
        if epochs > 1:
            plan = make_plan(self.config(epochs))
        times = CpuTimes()
        self.cpu.append(times)
        execute = train_here if plan.workers == (0, 0) else train_on_ray
        execute(plan, partial(times.take, batch=self.setting.batch))
        ends = [event for event in plan.run_dir.read_timings() if event["kind"] == "end"]
        return sum(event["images"] for event in ends) / sum(event["step_seconds"] for event in ends)
