"""Sweeps without training: a spec, and trials whose runs are written by hand as the engine would leave them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sports_ray.recipe import build_config
from sports_ray.store.attempt import begin_attempt
from sports_ray.store.commit import write_commit
from sports_ray.sweep.folder import SweepDir
from sports_ray.sweep.halving import Halving
from sports_ray.sweep.resources import Share
from sports_ray.sweep.space import parse_space
from sports_ray.sweep.spec import Backbone, SweepSpec

MODELS = ("test_resnet", "test_vit")
SPACE = ("optim.lr=log:1e-4..1e-2", "augment.mixup=0,0.2,0.8")


def made_up(models: Sequence[str] = MODELS, space: Sequence[str] = SPACE, **settings: Any) -> SweepSpec:
    """A sweep of nine epochs; `settings` replace those of the spec."""
    flags = {"model.weights": "none", "loop.epochs": 9, "data.root": "/photos", "loop.precision": "fp32"}
    backbones = tuple(Backbone(one, one, build_config(None, {**flags, "model.name": one}), "fp32") for one in models)
    default: dict[str, Any] = {
        "name": "sweep", "backbones": backbones, "space": parse_space(space, models), "search": "random", "samples": 4,
        "seed": 0, "halving": None, "share": Share(1, 1.0, 0.0), "threads": 1, "keep_weights": 2,
        "data": {"fingerprint": "f" * 64, "root": "/photos", "train": 8, "val": 4, "test": 0},
    }  # fmt: skip
    return SweepSpec(**{**default, **settings})


HALVED = Halving((1, 3), 3)


def line(epoch: int, accuracy: float) -> dict[str, Any]:
    """One evaluation, as metrics.jsonl has it."""
    return {"epoch": epoch, "step": 2 * epoch, "val_acc1": accuracy / 2, "ema_val_acc1": accuracy, "val_loss": 1.0}


def leave(folder: SweepDir, trial: str, history: Sequence[dict[str, Any]], finished: bool = False) -> None:
    """A run as the engine leaves it after its last evaluation: a commit, and weights if it has come to its end."""
    run_dir = folder.run_dir(trial)
    tensors = {"w": torch.zeros(2)}
    attempt = begin_attempt(run_dir.storage, {})
    step = history[-1]["step"]
    if attempt.commit is None or attempt.commit.step < step:
        write_commit(run_dir.storage, step, attempt.token, {"model": tensors}, {"history": list(history)})
    for name in ("best", "last") if finished else ():
        run_dir.publish_weights(name, tensors, {"epochs": history[-1]["epoch"], "step": step})


def sweep_dir(tmp_path: Path) -> SweepDir:
    return SweepDir(str(tmp_path / "store" / "sweep"))
