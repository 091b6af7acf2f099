"""Real Ray Train, real SIGKILLs: what dies is replaced, and the final bytes are those of the unbroken run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from sports_ray.config import TrainConfig
from sports_ray.errors import DataError, TrainingError
from sports_ray.orchestrate import worker
from sports_ray.orchestrate.plan import make_plan
from sports_ray.orchestrate.train import train_on_ray
from sports_ray.processes import below
from sports_ray.stops import DRIVER_GONE
from sports_ray.store.lease import Owner
from tests.support.driver import Driver
from tests.support.nodes import named_below
from tests.support.runs import results, small_config, train_in_child
from tests.support.s3 import address, download, s3_server

EPOCHS = 18  # 72 steps: long enough to be killed in the middle, twice


@pytest.fixture(scope="module")
def unbroken(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    config = small_config(photos, tmp_path_factory.mktemp("unbroken"), loop__epochs=EPOCHS)
    assert train_in_child(config) == 0
    return results(config)


class Killer:
    """Kills the worker with SIGKILL, once, when it has reached a step; before that looks how it is scheduled."""

    def __init__(self, at_step: int) -> None:
        self.at_step, self.killed = at_step, 0
        self.events: list[dict[str, Any]] = []
        self.schedulers: list[int] = []
        """Of the worker's main thread, which is Ray's, and of its others, which train."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        self.events.append(dict(event))
        if event["kind"] == "step" and event["step"] >= self.at_step and not self.killed:
            self.killed = event["pid"]
            if hasattr(os, "SCHED_BATCH"):
                threads = {os.sched_getscheduler(int(thread)) for thread in os.listdir(f"/proc/{self.killed}/task")}
                self.schedulers = [os.sched_getscheduler(self.killed), *sorted(threads)]
            os.kill(event["pid"], signal.SIGKILL)

    def starts(self) -> list[int]:
        return [event["step"] for event in self.events if event["kind"] == "start"]


def ray_config(photos: Path, store: Path, **settings: Any) -> TrainConfig:
    return small_config(photos, store, cluster__workers="1", **settings)


def test_killed_worker_is_replaced_and_no_bit_is_lost(
    ray_session: None, photos: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    config, killer = ray_config(photos, tmp_path, loop__epochs=EPOCHS), Killer(at_step=40)
    outcome = train_on_ray(make_plan(config), killer)
    assert outcome.status == "done" and killer.killed
    assert len(killer.starts()) == 2 and killer.starts()[1] > 0, "it went on from a commit"
    assert results(config) == unbroken
    if hasattr(os, "SCHED_BATCH"):
        assert killer.schedulers == [os.SCHED_BATCH, os.SCHED_OTHER, os.SCHED_BATCH], "training yields to Ray's threads"
        assert os.sched_getscheduler(0) == os.SCHED_OTHER, "the driver itself stays as it was"


@pytest.mark.long
def test_two_workers_killed_once_equal_two_workers_unbroken(ray_session: None, photos: Path, tmp_path: Path) -> None:
    whole = small_config(photos, tmp_path, "whole", cluster__workers="2", loop__epochs=24)
    train_on_ray(make_plan(whole), lambda event: None)
    broken = small_config(photos, tmp_path, "broken", cluster__workers="2", loop__epochs=24)
    killer = Killer(at_step=30)
    train_on_ray(make_plan(broken), killer)
    assert killer.killed
    assert results(broken) == results(whole)


def test_killed_driver_is_followed_by_the_same_command_and_its_killed_controller_is_replaced(
    photos: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    config = ray_config(photos, tmp_path, loop__epochs=EPOCHS)
    with Driver(config, {}) as driver:
        driver.until("evaluated")
        driver.process.kill()
        assert driver.process.wait(30) == -signal.SIGKILL
    with Driver(config, {}) as driver:
        first = driver.until("start")["step"]
        assert first > 0, "it went on from a commit"
        running = " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in below(driver.process.pid))
        assert "raylet" in running and not re.search("log_monitor.py|/monitor.py|/dashboard.py", running)
        driver.until("evaluated", step=first + 12)
        (controller,) = named_below(driver.process.pid, "ray::TrainController")
        os.kill(controller, signal.SIGKILL)
        assert driver.until("restart")["reason"] == "the training's controller died"
        again = driver.until("start")["step"]
        assert again > first, "it went on from a commit"
        driver.until("evaluated", step=again + 4)
        driver.process.terminate()
        paused = driver.until("paused")
        assert paused["reason"] == "SIGTERM" and paused["step"] > again and driver.end() == 75
    assert train_in_child(small_config(photos, tmp_path, loop__epochs=EPOCHS)) == 0, "a run of Ray's goes on without it"
    starts = [line["step"] for line in make_plan(config).run_dir.read_timings() if line["kind"] == "start"]
    assert starts[-1] == paused["step"], "not one step was lost"
    assert results(config) == unbroken


def test_error_that_no_retry_mends_ends_the_run_at_once(
    ray_session: None, server: int, photos: Path, tmp_path: Path
) -> None:
    """That of one of two workers, too, for which the other one waits; on S3, where Ray Train keeps notes of its own."""
    mine = tmp_path / "set"
    shutil.copytree(photos, mine)
    store = address(server, "hopeless")
    plan = make_plan(small_config(mine, tmp_path, store__root=store, cluster__workers="2", cluster__start_timeout=600))
    lost = sorted(mine.glob("train/*/*"))[0]
    lost.unlink()
    starts: list[str] = []
    begun = time.monotonic()
    with pytest.raises(DataError, match=lost.name):
        train_on_ray(plan, lambda event: starts.append(event["kind"]))
    assert starts.count("workers") == 1, "it was tried again"
    assert time.monotonic() - begun < 120, "the other worker was waited for"


@pytest.mark.long
def test_run_on_s3_equals_the_one_on_disk(
    ray_session: None, server: int, photos: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    store, killer = address(server, "runs"), Killer(at_step=40)
    config = ray_config(photos, tmp_path, store__root=store, loop__epochs=EPOCHS)
    assert train_on_ray(make_plan(config), killer).status == "done" and killer.killed
    download(address(server, f"runs/{config.store.run}"), tmp_path / config.store.run)
    assert results(ray_config(photos, tmp_path, loop__epochs=EPOCHS)) == unbroken


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with s3_server() as port:
        yield port


def test_cluster_without_room_is_an_error_with_a_deadline(ray_session: None, photos: Path, tmp_path: Path) -> None:
    plan = make_plan(small_config(photos, tmp_path, cluster__workers="3", cluster__start_timeout=7))
    with pytest.raises(TrainingError) as caught:
        train_on_ray(plan, lambda event: None)
    assert "no worker started within cluster.start_timeout = 7 s; got a cluster with 2 CPU, free 2 CPU" in str(
        caught.value
    )
    assert "wanted 3 workers with 1 CPU each; cure: fewer --workers, more nodes" in str(caught.value)


@pytest.mark.long
def test_workers_that_keep_dying_end_the_run_with_the_reason(ray_session: None, photos: Path, tmp_path: Path) -> None:
    config = ray_config(photos, tmp_path, cluster__max_failures=1, loop__epochs=EPOCHS, store__every_steps=100_000)

    def kill_always(event: Mapping[str, Any]) -> None:
        if event["kind"] == "start":
            os.kill(event["pid"], signal.SIGKILL)

    with pytest.raises(TrainingError, match="no progress"):
        train_on_ray(make_plan(config), kill_always)
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 2 or named_below(os.getpid(), "ray::RayTrainWorker"):
        assert time.monotonic() < deadline, "a run that was given up keeps its workers"
        time.sleep(0.1)


@pytest.mark.long
def test_controller_killed_in_a_cluster_that_lives_on_is_replaced(
    ray_session: None, photos: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    """Ray frees what a dead controller had reserved, here all CPUs, only when the driver leaves the cluster."""
    config, kinds = ray_config(photos, tmp_path, loop__epochs=EPOCHS), []

    def kill_once(event: Mapping[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] >= 40 and "restart" not in kinds:
            for controller in named_below(os.getpid(), "ray::TrainController"):
                os.kill(controller, signal.SIGKILL)
        kinds.append(event["kind"])

    assert train_on_ray(make_plan(config), kill_once).status == "done"
    assert kinds.count("restart") == 1
    assert results(config) == unbroken


@ray.remote(num_cpus=0)
class Deaf:
    """A driver's end of the line, which cannot take the first calls."""

    def __init__(self, calls: float) -> None:
        self._calls, self._heard = calls, list[int]()

    def push(self, events: list[dict[str, Any]]) -> str:
        self._calls -= 1
        if self._calls >= 0:
            raise OSError("not now")
        self._heard += [event["step"] for event in events]
        return ""

    def heard(self) -> list[int]:
        return self._heard


def stops(link: worker.RayLink) -> str:
    """Why the worker has to stop, as soon as it knows."""
    end = time.monotonic() + 60
    while not link.should_stop() and time.monotonic() < end:
        time.sleep(0.02)
    return link.should_stop()


def test_worker_goes_on_while_its_driver_cannot_be_told_and_tells_all_of_it_later(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.02)
    driver = Deaf.remote(calls=5)
    with worker.RayLink(driver, Owner.current(), 0, 0.0) as link:
        told, end = 0, time.monotonic() + 60
        while not ray.get(driver.heard.remote()) and time.monotonic() < end:
            link.progress({"kind": "step", "step": told})
            told += 1
        assert not link.should_stop()
    assert ray.get(driver.heard.remote()) == list(range(told)) and told > 5


@pytest.mark.parametrize("killed", [False, True])
def test_worker_whose_driver_says_nothing_for_long_or_is_dead_stops(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.02)
    driver = Deaf.remote(calls=0 if killed else float("inf"))
    if not killed:
        monkeypatch.setattr(worker, "LOST_SECONDS", 0.5)
    with worker.RayLink(driver, Owner.current(), 0, 0.0) as link:
        time.sleep(0.2)
        assert not link.should_stop()
        if killed:
            ray.kill(driver)
        assert stops(link) == DRIVER_GONE
