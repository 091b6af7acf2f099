"""A Ray cluster of several real nodes on this machine, each of which can be killed, silenced, drained and replaced.

For proofs and measurements of recovery; training itself knows nothing of it.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import suppress
from typing import Any

import ray
from ray.cluster_utils import Cluster

from sports_ray.orchestrate.cluster import no_idle_helpers
from sports_ray.processes import below, name_of

FAST_HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""Nodes that do not answer count as dead after a few seconds; Ray's own setting is a minute."""


class Nodes:
    """A head without CPUs, where the driver lives, and nodes of one CPU. A context manager that leaves no process behind."""

    def __init__(self, nodes: int) -> None:
        head: dict[str, Any] = {"num_cpus": 0, "include_dashboard": False, "_system_config": FAST_HEALTH}
        logging.getLogger("ray").setLevel(logging.ERROR)  # each new cluster is worth a line to it
        with no_idle_helpers():
            self.cluster = Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args=head)
        self._stopped: set[int] = set()
        self.nodes: list[Any] = []
        try:
            for _ in range(nodes):
                self.add()
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    @property
    def environment(self) -> dict[str, str]:
        """For a driver that is to join."""
        return {"RAY_ADDRESS": self.cluster.address}

    def add(self) -> Any:
        with no_idle_helpers():
            node = self.cluster.add_node(num_cpus=1)
        self.nodes.append(node)
        return node

    def holding(self, name: str) -> Any:
        """A node on which a process of this name runs."""
        return next(n for n in self.nodes if any(name_of(pid).startswith(name) for pid in below(raylet(n))))

    def around(self, pid: int) -> Any:
        """The node on which this process runs."""
        return next(node for node in self.nodes if pid in below(raylet(node)))

    def kill(self, node: Any) -> None:
        """SIGKILL for the raylet and all that it has started, at once, as when the machine is gone."""
        for pid in below(raylet(node)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def silence(self, node: Any) -> None:
        """SIGSTOP for the raylet and all that it has started: nobody answers, and nothing is closed."""
        pids = set(below(raylet(node)))
        self._stopped |= pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        self.nodes.remove(node)

    def drain(self, node: Any, seconds: float) -> None:
        """Gives notice that the node goes away, as a cloud's poller would; nothing ends it then but the caller."""
        client = ray._raylet.GcsClient(address=self.cluster.address)  # type: ignore[attr-defined]
        deadline = int(1000 * (time.time() + seconds))
        accepted, reason = client.drain_node(node.node_id, 2, "spot", deadline)  # 2: preemption
        if not accepted:
            raise RuntimeError(f"drain refused: {reason}")

    def kill_all(self) -> None:
        """SIGKILL for every process of the cluster, the GCS first."""
        everything = [self.cluster.head_node, *self.cluster.worker_nodes]
        pids = {info.process.pid for node in everything for found in node.all_processes.values() for info in found}
        pids |= {pid for node in everything for pid in below(raylet(node))}
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        everything = [node for node in (self.cluster.head_node, *self.cluster.worker_nodes) if node is not None]
        pids = self._stopped | {pid for node in everything for pid in below(raylet(node))}
        for node in everything:
            self.cluster.remove_node(node, allow_graceful=False)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)
