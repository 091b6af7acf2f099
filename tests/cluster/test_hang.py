"""Workers that stop moving: found, their stacks in the run's log, replaced; the final bytes are those of the unbroken run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sports_ray.config import TrainConfig
from sports_ray.processes import below
from tests.support.driver import Driver
from tests.support.nodes import named_below, standing_still, wait_for_end
from tests.support.runs import results, small_config, train_in_child

EPOCHS = 60
pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]
PATIENCE = {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "5"}


def hang_config(photos: Path, store: Path, **settings: Any) -> TrainConfig:
    """Photographs are read in each epoch anew."""
    fixed = {"cluster__workers": "1", "cluster__hang_seconds": 4, "data__cache_gb": 0, "loop__epochs": EPOCHS}
    return small_config(photos, store, **{**fixed, **settings})


@pytest.fixture(scope="module")
def unbroken(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    config = hang_config(photos, tmp_path_factory.mktemp("unbroken"), cluster__workers="0")
    assert train_in_child(config) == 0
    return results(config)


def log_of(config: TrainConfig, rank: int = 0) -> str:
    return (Path(config.store.root) / config.store.run / "logs" / f"worker-{rank}.log").read_text()


def test_stopped_worker_is_replaced_and_no_bit_is_lost(
    photos: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    config = hang_config(photos, tmp_path)
    with Driver(config, PATIENCE) as driver:
        driver.until("evaluated", step=40)
        with standing_still([driver.all("start")[0]["pid"]]):
            assert driver.until("restart")["reason"] == "a worker died"
            assert driver.end() == 0, driver.errors
    assert results(config) == unbroken


def test_worker_that_reads_for_ever_is_replaced_and_its_stacks_are_logged(
    photos: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    """One photograph becomes a pipe that nobody writes to, as on a share that does not answer."""
    mine = tmp_path / "set"
    shutil.copytree(photos, mine)
    config = hang_config(mine, tmp_path)
    victim = sorted(mine.glob("train/*/*"))[0]
    content = victim.read_bytes()
    with Driver(config, {}) as driver:
        driver.until("evaluated", step=40)
        os.mkfifo(tmp_path / "pipe")
        os.replace(tmp_path / "pipe", victim)
        wait_for_end(driver.all("start")[0]["pid"], seconds=60)
        (tmp_path / "photograph").write_bytes(content)
        os.replace(tmp_path / "photograph", victim)
        assert driver.until("restart")["reason"] == "a worker died"
        assert driver.end() == 0, driver.errors
    assert results(config) == unbroken
    assert "hang: no step for" in log_of(config) and "in _decoded" in log_of(config), (
        "the stacks do not show what hangs"
    )


def test_worker_whose_loader_process_stands_still_is_replaced(
    photos: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    config = hang_config(photos, tmp_path, data__loader_processes=1)
    with Driver(config, {}) as driver:
        driver.until("evaluated", step=40)
        worker = driver.all("start")[0]["pid"]
        with standing_still(set(below(worker)) - {worker}):
            assert driver.until("restart")["reason"] == "a worker died"
            assert driver.end() == 0, driver.errors
    assert results(config) == unbroken
    assert "hang: no step for" in log_of(config)


def test_ranks_that_wait_for_each_other_for_ever_are_replaced(photos: Path, tmp_path: Path) -> None:
    """One of two workers stands still, the other waits for it in a sum: Ray is told to have more patience than the watchdog."""
    whole = hang_config(photos, tmp_path, run="whole", cluster__workers="2")
    with Driver(whole, {}) as driver:
        assert driver.end() == 0, driver.errors
    config = hang_config(photos, tmp_path, cluster__workers="2")
    with Driver(config, {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "20"}) as driver:
        driver.until("evaluated", step=40)
        first = driver.all("start")[0]["pid"]
        (other,) = set(named_below(driver.process.pid, "ray::RayTrainWorker")) - {first}
        with standing_still([other]):
            assert driver.until("restart")["reason"] == "a worker died"
            assert driver.end() == 0, driver.errors
    assert results(config) == results(whole)
    assert "hang: no step for" in log_of(config) and "sum_" in log_of(config)
