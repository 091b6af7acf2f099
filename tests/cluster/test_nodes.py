"""Several real nodes, killed, silenced, drained and replaced under a training: the final bytes are those of the unbroken run.

The default suite has a death and a notice; `pytest -m long tests/cluster` has all.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from sports_ray.config import TrainConfig
from sports_ray.engine.link import InProcessLink
from sports_ray.engine.run import run
from sports_ray.engine.world import World
from sports_ray.orchestrate.plan import load_run, make_plan, write_record
from sports_ray.recipe import config_from_dict, config_to_dict
from tests.support.driver import Driver
from tests.support.nodes import Nodes
from tests.support.ranks import on_ranks
from tests.support.runs import results, small_config

EPOCHS = 24
STEPS = 4 * EPOCHS
LONG = 160  # two new groups of workers are made while it goes on
WORKER = "ray::RayTrainWorker"


def two_workers(photos: Path, store: Path, **settings: Any) -> TrainConfig:
    """No death of a worker is allowed for: what these tests do must not be counted as one."""
    return small_config(
        photos, store, **{"cluster__workers": "2", "cluster__max_failures": 0, "loop__epochs": EPOCHS, **settings}
    )


def train_rank(world: World, settings: dict[str, Any]) -> dict[str, Any]:
    config = config_from_dict(settings)
    run_dir = make_plan(config).run_dir
    config, manifest = load_run(run_dir)
    run(config, manifest, run_dir, InProcessLink(lambda event: None), world)
    return {}


@pytest.fixture(scope="module")
def unbroken(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The results of two workers whom nothing happens to, without Ray."""
    config = two_workers(photos, tmp_path_factory.mktemp("unbroken"))
    write_record(make_plan(config))
    on_ranks(tmp_path_factory.mktemp("ranks"), 2, train_rank, config_to_dict(config))
    return results(config)


def assert_no_commit_is_lost(config: TrainConfig) -> list[int]:
    """Every session went on from the newest commit before it; returns the steps at which sessions began."""
    newest, starts = 0, []
    for line in make_plan(config).run_dir.read_timings():
        if line["kind"] == "commit":
            newest = max(newest, line["step"])
        if line["kind"] == "start":
            assert line["step"] >= newest, "a commit was passed over"
            starts.append(line["step"])
    return starts


@pytest.mark.timeout(300)
def test_killed_node_is_replaced_and_one_that_gives_notice_loses_not_one_step(
    photos: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    config = two_workers(photos, tmp_path, store__every_steps=8)
    with Nodes(2) as nodes, Driver(config, nodes.environment) as driver:
        driver.until("evaluated", step=24)
        nodes.kill(nodes.nodes[0])
        nodes.add()
        assert driver.until("restart")["reason"] == "a node was lost"
        begun = driver.until("start")["step"]
        driver.until("evaluated", step=begun + 8)
        leaving = nodes.nodes[0]
        nodes.drain(leaving, seconds=30)
        nodes.add()
        driver.until("preempted")
        assert driver.until("restart")["reason"] == "a node is going away"
        nodes.kill(leaving)
        assert driver.end() == 0, driver.errors
    assert results(config) == unbroken
    assert len(assert_no_commit_is_lost(config)) == 3
    timings = make_plan(config).run_dir.read_timings()
    (stopped, _), (_, _, again) = (
        [line["step"] for line in timings if line["kind"] == kind] for kind in ("end", "start")
    )
    assert again == stopped > begun, "not one step was lost"


@pytest.mark.long
@pytest.mark.timeout(240)
def test_silent_node_is_replaced_and_no_bit_is_lost(photos: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    config = two_workers(photos, tmp_path)
    with Nodes(2) as nodes, Driver(config, nodes.environment) as driver:
        driver.until("evaluated", step=40)
        nodes.silence(nodes.nodes[0])
        nodes.add()
        assert driver.until("restart")["reason"] == "a node was lost"
        assert driver.end() == 0, driver.errors
    assert results(config) == unbroken
    assert len(assert_no_commit_is_lost(config)) == 2


@pytest.mark.long
@pytest.mark.timeout(240)
def test_elastic_run_goes_on_with_what_there_is_and_grows_back(photos: Path, tmp_path: Path) -> None:
    config = two_workers(photos, tmp_path, cluster__workers="1:2", cluster__resize_seconds=5, loop__epochs=LONG)
    with Nodes(2) as nodes, Driver(config, nodes.environment) as driver:
        assert driver.until("workers")["size"] == 2
        driver.until("evaluated", step=40)
        nodes.kill(nodes.nodes[0])
        assert driver.until("restart")["reason"] == "a node was lost, 1 worker now, 2 before"
        assert driver.until("workers")["size"] == 1
        driver.until("evaluated")
        nodes.add()
        assert driver.until("restart")["reason"] == "2 workers now, 1 before"
        assert driver.until("workers")["size"] == 2
        assert driver.end() == 0, driver.errors
    starts = assert_no_commit_is_lost(config)
    assert starts == sorted(starts) and len(starts) == 3
    history = [line["step"] for line in make_plan(config).run_dir.read_metrics()]
    assert history == [4 * (epoch + 1) for epoch in range(LONG)], "each evaluation is in the history once"


@pytest.mark.long
@pytest.mark.timeout(240)
def test_cluster_that_shrinks_for_good_is_an_error_with_a_deadline(photos: Path, tmp_path: Path) -> None:
    config = two_workers(photos, tmp_path, cluster__start_timeout=45)
    with Nodes(2) as nodes, Driver(config, nodes.environment) as driver:
        driver.until("evaluated")
        nodes.kill(nodes.nodes[0])
        assert driver.end() == 3
        assert "no worker came back within cluster.start_timeout = 45 s" in driver.errors


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_stop_while_workers_are_missing_pauses_soon(photos: Path, tmp_path: Path) -> None:
    config = two_workers(photos, tmp_path, cluster__start_timeout=1000)
    with Nodes(2) as nodes, Driver(config, nodes.environment) as driver:
        driver.until("evaluated", step=8)
        nodes.kill(nodes.nodes[0])
        time.sleep(12)  # Ray notices, and waits for a node
        begun = time.monotonic()
        driver.process.terminate()
        paused = driver.until("paused")
        assert paused["reason"] == "SIGTERM" and paused["step"] > 0
        assert driver.end() == 75 and time.monotonic() - begun < 60
    commits = [line["step"] for line in make_plan(config).run_dir.read_timings() if line["kind"] == "commit"]
    assert paused["step"] == max(commits)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_whole_cluster_killed_at_once_goes_on_in_another_one(
    photos: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    config = two_workers(photos, tmp_path)
    with Nodes(2) as nodes, Driver(config, nodes.environment) as driver:
        driver.until("evaluated", step=40)
        os.kill(driver.process.pid, signal.SIGKILL)
        nodes.kill_all()
    with Nodes(2) as nodes, Driver(config, nodes.environment) as driver:
        assert driver.end() == 0, driver.errors
    assert results(config) == unbroken
    assert assert_no_commit_is_lost(config)[-1] > 0


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_driver_commits_pauses_and_goes_on(
    photos: Path, unbroken: dict[str, bytes], tmp_path: Path, number: int
) -> None:
    config = two_workers(photos, tmp_path, store__every_steps=1000)
    with Nodes(2) as nodes:
        with Driver(config, nodes.environment) as driver:
            driver.until("evaluated", step=40)
            driver.process.send_signal(number)
            paused = driver.until("paused")
            assert driver.end() == 75 and paused["reason"] == signal.Signals(number).name
        with Driver(config, nodes.environment) as driver:
            assert driver.until("start")["step"] == paused["step"], "not one step was lost"
            assert driver.end() == 0, driver.errors
    assert results(config) == unbroken
