"""Checkpoints at chosen epochs: made at their ends, whole, never deleted, whatever dies or fails on the way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sports_ray.config import TrainConfig
from sports_ray.data.demo import draw_demo
from sports_ray.engine.link import InProcessLink
from sports_ray.engine.save import commit
from sports_ray.engine.session import open_session
from sports_ray.engine.world import World
from sports_ray.orchestrate.plan import make_plan, write_record
from sports_ray.store.commit import read_commit
from sports_ray.store.storage import open_storage
from tests.support.runs import small_config, train_in_child

STEPS = 2
"""An epoch."""
SETTINGS: dict[str, Any] = {
    "loop__epochs": 6,
    "loop__eval_every": 2,
    "augment__policy": "none",
    "store__keep": 1,
    "store__keep_epochs": [2, 3],
    "store__every_steps": 0,
    "store__every_seconds": 1e6,
}
"""The second epoch is evaluated, the third is not; no other commit is due but those of the best and the last."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "set"
    draw_demo(folder, classes=4, per_class=6, size=40, seed=3)
    return folder


def steps_kept(config: TrainConfig) -> set[int]:
    folder = Path(config.store.root) / config.store.run / "checkpoints"
    return {int(path.name[5:13]) for path in folder.glob("step-*")}


def test_checkpoints_of_chosen_epochs_stay_beside_the_newest_and_the_best_also_after_a_kill(
    photos: Path, tmp_path: Path
) -> None:
    config = small_config(photos, tmp_path, **SETTINGS)
    assert train_in_child(config, kill_at=9) == -9
    assert train_in_child(config) == 0
    storage = open_storage(str(Path(config.store.root) / config.store.run))
    best = read_commit(storage, 6 * STEPS).state["best_step"]
    assert steps_kept(config) == {2 * STEPS, 3 * STEPS, 6 * STEPS, best}
    second, third = (read_commit(storage, epoch * STEPS) for epoch in (2, 3))
    assert [line["epoch"] for line in second.state["history"]] == [2]
    assert third.load("model").keys() == second.load("model").keys() == read_commit(storage, 12).load("model").keys()


def test_while_the_store_fails_a_checkpoint_to_be_kept_waits_until_it_is_back(photos: Path, tmp_path: Path) -> None:
    plan = make_plan(small_config(photos, tmp_path, **SETTINGS))
    write_record(plan)
    session = open_session(plan.config, plan.manifest, plan.run_dir, InProcessLink(lambda event: None), World(), "")
    assert session.writer is not None
    folder = tmp_path / "run" / "checkpoints"
    if folder.exists():
        folder.rmdir()
    folder.write_text("in the way")
    for step in (3 * STEPS, 3 * STEPS + 1):
        session.progress.step = step
        commit(session)
        assert not session.writer.wait(0.05)
    os.unlink(folder)
    assert session.writer.close(20)
    assert {int(path.name[5:13]) for path in folder.glob("step-*")} == {3 * STEPS, 3 * STEPS + 1}
    assert session.unsaved_kept == []
