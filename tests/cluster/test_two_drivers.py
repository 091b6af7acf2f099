"""Two drivers on one run, and workers that outlive theirs: exactly one history, and it is that of the unbroken run."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sports_ray.config import TrainConfig
from sports_ray.orchestrate.plan import make_plan
from sports_ray.processes import below
from tests.support.driver import Driver
from tests.support.nodes import named_below, standing_still, wait_for_end
from tests.support.runs import results, small_config, train_in_child

EPOCHS = 30
ELSEWHERE = ("unshare", "--user", "--map-root-user", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh")
"""Starts a command as on a host of another name: its processes cannot be looked for, its lease has to be watched."""


@pytest.fixture(scope="module")
def unbroken(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    config = small_config(photos, tmp_path_factory.mktemp("unbroken"), loop__epochs=EPOCHS)
    assert train_in_child(config) == 0
    return results(config)


def one_worker(photos: Path, store: Path) -> TrainConfig:
    return small_config(photos, store, cluster__workers="1", loop__epochs=EPOCHS)


def assert_one_history(config: TrainConfig, unbroken: dict[str, bytes]) -> None:
    assert results(config) == unbroken
    steps = [line["step"] for line in make_plan(config).run_dir.read_metrics()]
    assert steps == [4 * (epoch + 1) for epoch in range(EPOCHS)]


@pytest.mark.timeout(120)
@pytest.mark.long
def test_of_two_drivers_started_at_once_one_trains_and_one_is_refused(
    photos: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    config = one_worker(photos, tmp_path)
    with Driver(config, {}) as one, Driver(config, {}) as other, ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(Driver.end, (one, other)))
        refused = one if codes[0] else other
        assert sorted(codes) == [0, 2] and "is in use; got a driver that lives" in refused.errors
        assert not refused.seen, "it has trained"
    assert_one_history(config, unbroken)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_driver_that_was_believed_dead_and_wakes_up_leaves_the_run_alone(
    photos: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    """A machine that freezes, driver, cluster and workers, and wakes up while a driver of another host trains."""
    if subprocess.run([*ELSEWHERE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody take another host name")
    config = one_worker(photos, tmp_path)
    with Driver(config, {}) as frozen:
        frozen.until("evaluated", step=40)
        with standing_still(below(frozen.process.pid)) as wake, Driver(config, {}, before=ELSEWHERE) as heir:
            heir.until("start")
            heir.until("evaluated")
            wake()
            assert frozen.end() == 3
            # Its driver sees it at the lease, its worker at the fence: whoever is first.
            assert re.search("another driver took the run over|attempt 1 at .* has been replaced", frozen.errors)
            assert heir.end() == 0, heir.errors
    assert_one_history(config, unbroken)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_workers_that_outlive_their_driver_leave_the_run_alone(
    photos: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    config = one_worker(photos, tmp_path)
    with Driver(config, {}) as dead:
        dead.until("evaluated", step=40)
        (worker,) = named_below(dead.process.pid, "ray::RayTrainWorker")
        with standing_still(set(below(dead.process.pid)) - {dead.process.pid}) as wake:
            dead.process.kill()
            with Driver(config, {}) as heir:
                heir.until("start")
                heir.until("evaluated")
                wake()
                wait_for_end(worker, seconds=60)
                assert heir.end() == 0, heir.errors
    assert_one_history(config, unbroken)
