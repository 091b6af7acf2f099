"""Workers whose driver was killed: they save what they did and stop at once, before Ray's seconds are over."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from sports_ray.store.commit import list_commits
from sports_ray.store.storage import open_storage
from tests.support.nodes import named_below, wait_for_end
from tests.support.running import Started

WORDS = ("--weights", "none", "--precision", "fp32", "--epochs", "1000")
SET = {"data.image_size": 64, "loop.global_batch": 12, "loop.eval_every": 1000, "store.every_seconds": 9999}
"""Without a commit of its own accord before the end."""
KINDS = {
    "train": ("ray::RayTrainWorker", ("--model", "test_resnet", "--run", "one", "--workers", "1")),
    "tune": ("ray::TrialProcess", ("--models", "test_resnet", "--samples", "1", "--sweep", "one")),
}


@pytest.mark.long
@pytest.mark.parametrize("command", KINDS)
def test_worker_of_a_killed_driver_saves_its_last_step_and_stops(photos: Path, tmp_path: Path, command: str) -> None:
    name, words = KINDS[command]
    settings = [word for key, value in SET.items() for word in ("--set", f"{key}={value}")]
    with Started(tmp_path, command, "--data", str(photos), *WORDS, *words, *settings, "--json") as driver:
        assert driver.wait_until(lambda: driver.events("step")), driver.end()
        worker = min(named_below(driver.pid, name))  # the others are its loaders
        steps = [int(event["step"]) for event in driver.events("step")]
        assert driver.send(signal.SIGKILL) and driver.end().code == -signal.SIGKILL
        wait_for_end(worker, 20)
    run = tmp_path / "runs" / "one" if command == "train" else tmp_path / "runs" / "one" / "test_resnet-000"
    commits = list_commits(open_storage(str(run)))
    assert [commit.step for commit in commits if commit.step >= steps[-1]], "nothing was saved after the kill"
