"""Kinds of training beside the usual one, on Ray's workers: several labels an image, drawn classes, heads with phases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sports_ray.data.demo import draw_demo
from sports_ray.data.demo_objects import draw_objects
from sports_ray.orchestrate.local import train_here
from sports_ray.orchestrate.plan import make_plan
from sports_ray.orchestrate.train import train_on_ray
from tests.cluster.test_recovery import Killer
from tests.support.runs import results, small_config

KINDS: dict[str, dict[str, Any]] = {
    "labels": {
        "loss__pos_weight": "balanced",
        "loss__multilabel": "focal",
        "augment__crop": "squash",
    },
    "drawn": {
        "data__sampler": "weighted",
        "loop__class_weights": "balanced",
        "model__head": "8-bn-dropout0.5-relu-linear",
        "loop__phases": [{"epochs": 2, "train": "head"}],
        "data__image_size": 64,
    },
}
"""Drop-out and the drawn classes would differ with a generator that a dead worker has taken along."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    draw_objects(folder / "labels", classes=4, per_class=12, size=40, seed=1)
    draw_demo(folder / "drawn", classes=3, per_class=13, size=40, seed=1)
    for path in sorted((folder / "drawn/train").glob("*/*"))[:6]:  # of one class: the classes are unequal
        path.unlink()
    return {"labels": folder / "labels/labels.csv", "drawn": folder / "drawn"}


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_on_ray_it_ends_with_the_bits_of_the_unbroken_run(
    ray_session: None, sets: dict[str, Path], tmp_path: Path, kind: str, workers: int
) -> None:
    settings = {**KINDS[kind], "loop__epochs": 12}
    # One worker equals the run in process; two equal two.
    whole = small_config(sets[kind], tmp_path, "whole", cluster__workers="0" if workers == 1 else "2", **settings)
    broken = small_config(sets[kind], tmp_path, "broken", cluster__workers=str(workers), **settings)
    train = train_here if workers == 1 else train_on_ray
    assert train(make_plan(whole), lambda event: None).status == "done"
    killer = Killer(at_step=10)
    assert train_on_ray(make_plan(broken), killer).status == "done"
    assert killer.killed and killer.starts()[1] > 0, "it went on from a commit"
    assert results(broken) == results(whole)
