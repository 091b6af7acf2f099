"""What is proved: photographs, model and workers, and the command that trains."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from sports_ray.errors import ConfigError, DataError

COMMON = (
    "data.loader_processes=1",
    "augment.policy=rand-m7-n2",
    "augment.mixup=0.2",
    "augment.cutmix=1.0",
    "augment.erasing=0.2",
    "loop.global_batch=12",
    "loop.micro_batch=6",
    "cluster.max_failures=1000",
    "store.every_seconds=0",
)
"""All that a resume can get wrong is on: EMA and clipping are by default. Workers are killed far more often than they fail."""
DRAWN = ("data.image_size=64", "model.drop_path=0.1", "store.every_steps=7")
"""Commits never fall on an epoch's end by habit: 7 steps and epochs have no common rhythm."""
PHOTOGRAPHS = ("store.every_steps=20",)
DRAWN_EPOCHS, PHOTOGRAPHS_EPOCHS = 16, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What `sports-ray chaos` was asked for."""

    minutes: float = 5.0
    """How long to go on with new kills; the last run is trained to its end after that."""
    workers: int = 0
    """0: training in the driver's process; else workers on Ray, each at most one lane of four."""
    data: str = ""
    """Folder of photographs; empty: a set is drawn."""
    model: str = "test_resnet"
    seed: int = 0
    """Fixes photographs, training, and the draws of when to kill."""
    store: str = ""
    """Where the runs are kept; empty: in a temporary folder, which stays only if something differs."""
    epochs: int = 0
    """0: 16 of a drawn set, 2 of photographs."""

    def __post_init__(self) -> None:
        if self.minutes <= 0:
            raise ConfigError("--minutes", got=self.minutes, want="more than zero", cure="for example --minutes 5")
        if not 0 <= self.workers <= 4:
            raise ConfigError("--workers", got=self.workers, want="0 to 4")
        if self.data and not Path(self.data).exists():
            raise DataError("--data", got=self.data, want="a folder of photographs", cure="check the path")
        if "://" in self.store:
            raise ConfigError("--store", got=self.store, want="a folder of this machine")

    def command(self, photos: Path, store: Path, run: str) -> list[str]:
        """`sports-ray train …`, by this very interpreter; the same command goes on with the run."""
        settings = (*COMMON, *(PHOTOGRAPHS if self.data else DRAWN))
        epochs = self.epochs or (PHOTOGRAPHS_EPOCHS if self.data else DRAWN_EPOCHS)
        words = ["--data", str(photos), "--model", self.model, "--weights", "none", "--run", run, "--store", str(store)]
        words += ["--epochs", str(epochs), "--workers", str(self.workers), "--seed", str(self.seed)]
        # Not auto: it is settled by a measurement, run by run, and other precisions are other bits.
        words += ["--precision", "fp32", "--json"]
        words += [word for setting in settings for word in ("--set", setting)]
        return [sys.executable, "-m", "sports_ray", "train", *words]


def environment(scratch: Path) -> dict[str, str]:
    """Of the training: caches and Ray's own files go to `scratch`, and no cluster of anybody's is joined."""
    return os.environ | {"XDG_CACHE_HOME": str(scratch / "cache"), "RAY_TMPDIR": str(scratch), "RAY_ADDRESS": ""}
