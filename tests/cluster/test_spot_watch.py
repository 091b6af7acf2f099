"""A cloud's notice, spoken by a server as the cloud speaks it, becomes a drain in Ray, and the training leaves in time.

The default suite has the way from the notice to Ray; `pytest -m long` the whole chain with a training on two nodes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ray._raylet import GcsClientOptions, GlobalStateAccessor

from sports_ray.orchestrate.plan import make_plan
from tests.cluster.test_nodes import assert_no_commit_is_lost, two_workers, unbroken  # noqa: F401
from tests.support.driver import Driver
from tests.support.metadata import AWS_ACTION, AWS_REBALANCE, Metadata, metadata_server
from tests.support.nodes import Nodes
from tests.support.runs import results

pytestmark = pytest.mark.timeout(240)
HOLD = """
import ray, sys
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")


@ray.remote(num_cpus=1)
class Busy:
    def ready(self):
        pass


held = [Busy.options(scheduling_strategy=On(node, soft=False)).remote() for node in sys.argv[2:]]
ray.get([one.ready.remote() for one in held])
print("held", flush=True)
sys.stdin.read()
"""
"""Keeps nodes busy: a node without work leaves as soon as it drains."""


class Watcher:
    """`sports-ray spot-watch` for one node, as it runs beside it; leaves no process behind."""

    def __init__(self, said: Metadata, node: Any, *more: str) -> None:
        words = ["spot-watch", "--provider", said.cloud, "--node-id", node.node_id, "--every", "0.1", "--json", *more]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sports_ray", *words],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "SPORTS_RAY_METADATA_URL": said.url},
        )

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()

    def until(self, kind: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if (event := json.loads(line))["event"] == kind:
                return event
        raise AssertionError(f"the watcher ended without {kind}; exit code {self.process.wait()}")


@contextmanager
def held(nodes: Nodes) -> Iterator[None]:
    """No node is without work."""
    command = [sys.executable, "-c", HOLD, nodes.cluster.address, *(node.node_id for node in nodes.nodes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield
        finally:
            process.kill()


def draining(nodes: Nodes) -> dict[str, float]:
    """Until when each draining node was said to live, by the cluster's own word."""
    options = GcsClientOptions.create(nodes.cluster.address, None, True, False)
    accessor = GlobalStateAccessor(options)
    assert accessor.connect()
    return {node: deadline / 1000 for node, deadline in accessor.get_draining_nodes().items()}


def announce(said: Metadata, seconds: float) -> float:
    """AWS's notice that the machine goes away in so many seconds; when."""
    at = int(time.time() + seconds)
    when = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    said.answers[AWS_ACTION] = json.dumps({"action": "terminate", "time": when})
    return at


@pytest.mark.timeout(60)
def test_notice_becomes_a_drain_with_a_deadline_before_the_truth() -> None:
    with Nodes(1) as nodes, metadata_server("aws") as said, held(nodes):
        (node,) = nodes.nodes
        with Watcher(said, node) as watcher:
            assert watcher.until("watching")["node"] == node.node_id
            assert draining(nodes) == {}
            said.answers[AWS_REBALANCE] = json.dumps({"noticeTime": "2026-11-21T08:00:00Z"})
            first = watcher.until("drained")
            assert first["reason"] == "aws: rebalance recommendation" and first["node"] == node.node_id
            assert draining(nodes)[node.node_id] == pytest.approx(first["deadline"], abs=0.01)
            truth = announce(said, 60)  # the notice itself, and sooner than was to be expected
            assert watcher.until("drained")["at"] == truth
            assert draining(nodes)[node.node_id] == pytest.approx(truth - 10, abs=1)
            watcher.process.terminate()
            assert watcher.process.wait(20) == 0


@pytest.mark.long
def test_announced_end_of_a_node_costs_no_step(photos: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:  # noqa: F811
    config = two_workers(photos, tmp_path, store__every_steps=1000)
    with Nodes(2) as nodes, metadata_server("aws") as said, Driver(config, nodes.environment) as driver:
        node = nodes.nodes[1]
        with Watcher(said, node) as watcher:
            driver.until("evaluated", step=40)
            announce(said, 60)
            watcher.until("drained")
            nodes.add()
            driver.until("preempted")
            assert driver.until("restart")["reason"] == "a node is going away"
            nodes.kill(node)
        assert driver.end() == 0, driver.errors
    assert results(config) == unbroken
    timings = make_plan(config).run_dir.read_timings()
    (stopped, _), (_, again) = ([line["step"] for line in timings if line["kind"] == kind] for kind in ("end", "start"))
    assert again == stopped > 0, "not one step was lost"


@pytest.mark.long
def test_node_that_dies_before_its_announced_end_costs_no_retry(
    photos: Path,
    unbroken: dict[str, bytes],  # noqa: F811
    tmp_path: Path,
) -> None:
    config = two_workers(photos, tmp_path)
    assert config.cluster.max_failures == 0
    with Nodes(2) as nodes, metadata_server("aws") as said, Driver(config, nodes.environment) as driver:
        node = nodes.nodes[1]
        with Watcher(said, node) as watcher:
            driver.until("evaluated", step=40)
            announce(said, 120)
            drained = watcher.until("drained")
            nodes.kill(node)
            assert time.time() < drained["deadline"], "it was to die early"
        nodes.add()
        assert driver.end() == 0, driver.errors
    assert results(config) == unbroken
    assert len(assert_no_commit_is_lost(config)) == 2
