"""The watchdog in a real training: it ends what hangs, showing where, and leaves alone what is merely slow."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Any

import pytest

from sports_ray.data.demo import draw_demo
from sports_ray.engine.guard import Watchdog
from sports_ray.recipe import config_from_dict, config_to_dict
from tests.support.runs import exit_code, small_config


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "set"
    draw_demo(folder, classes=2, per_class=8, size=40, seed=2)
    return folder


def stuck_run(settings: dict[str, Any], stderr: Path) -> None:
    """Trains on photographs of which one is a pipe that nobody writes to, as on a share that does not answer."""
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
    from sports_ray.engine import run
    from sports_ray.orchestrate.local import train_here
    from sports_ray.orchestrate.plan import make_plan

    plan = make_plan(config_from_dict(settings))
    for path in Path(plan.manifest.root).glob("train/*/*"):
        path.unlink()
        os.mkfifo(path)
    run.Watchdog = functools.partial(Watchdog, first=2.0)  # type: ignore[assignment, misc]
    train_here(plan, lambda event: None)


def test_watchdog_ends_a_process_that_waits_for_ever_and_shows_where(tmp_path: Path) -> None:
    draw_demo(tmp_path / "set", classes=2, per_class=4, size=40)
    config = small_config(tmp_path / "set", tmp_path, loop__global_batch=4, cluster__hang_seconds=0.1)
    assert exit_code(stuck_run, config_to_dict(config), tmp_path / "stderr") == 3
    text = (tmp_path / "stderr").read_text()
    assert "hang: no step for" in text and "Current thread" in text
    assert "loader.py" in text and "in _decoded" in text, "the stacks do not show what hangs"


def slow_store_run(settings: dict[str, Any]) -> None:
    """Trains with a store that takes two seconds and a half for each commit, and a watchdog that has less patience."""
    from sports_ray.engine import run, save
    from sports_ray.orchestrate.local import train_here
    from sports_ray.orchestrate.plan import make_plan

    write = save.write_commit

    def slow(*arguments: Any) -> Any:
        time.sleep(2.5)
        return write(*arguments)

    save.write_commit = slow  # type: ignore[assignment]
    run.Watchdog = functools.partial(Watchdog, first=2.0)  # type: ignore[assignment, misc]
    train_here(make_plan(config_from_dict(settings)), lambda event: None)


def test_watchdog_does_not_mistake_a_slow_last_commit_for_a_hang(photos: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "loop__epochs": 1,
        "loop__global_batch": 16,
        "store__every_steps": 0,
        "loop__eval_every": 2,
        "cluster__hang_seconds": 0.1,
    }
    config = small_config(photos, tmp_path, **settings)
    assert exit_code(slow_store_run, config_to_dict(config)) == 0
    assert (tmp_path / "run" / "weights" / "last.safetensors").exists()
