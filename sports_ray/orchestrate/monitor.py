"""What lies between the driver, Ray Train's controller and the workers: a mailbox, and who holds what in the cluster."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.util.placement_group import remove_placement_group

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 60.0
"""How long the mailbox may take for an answer: it has nothing else to do."""


@ray.remote(num_cpus=0, max_restarts=0)
class Monitor:
    """Mailbox between the driver and the workers: progress one way, the wish to stop the other. It ends with the driver."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._stop = ""
        self._pushes = 0
        self._controller: Any = None
        self._reserved: Any = None

    def push(self, events: list[dict[str, Any]]) -> str:
        self._events += events
        self._pushes += 1
        return self._stop

    def drain(self) -> tuple[int, list[dict[str, Any]]]:
        """How often workers have called so far, and what they told since the last time."""
        events, self._events = self._events, []
        return self._pushes, events

    def stop(self, reason: str) -> None:
        self._stop = reason

    def started(self, controller: Any) -> None:
        self._controller = controller

    def reserved(self, group: Any) -> None:
        self._reserved = group

    def belongings(self) -> tuple[Any, Any]:
        """The controller and the newest placement group of its workers; None where there is none yet."""
        return self._controller, self._reserved


class Registrar(ControllerCallback, WorkerGroupCallback):
    """Tells the monitor what a controller holds, so that the driver can free it when the controller cannot."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def after_controller_start(self, train_run_context: Any) -> None:
        self._monitor.started.remote(ray.get_runtime_context().current_actor)

    def after_worker_group_start(self, worker_group: Any) -> None:
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        self._monitor.reserved.remote(group)


def new_monitor() -> Any:
    """A monitor on the driver's own node: they live and die together."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return Monitor.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


def start_coordinator() -> None:
    """Starts the actor of which Ray Train's controller asks its resources, while that starts too and not after it.

    So a training begins 1.3 s earlier. The function is private to Ray; without it the controller starts the actor."""
    with suppress(ImportError, ray.exceptions.RayError):
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
            get_or_create_autoscaling_coordinator,
        )

        get_or_create_autoscaling_coordinator()


def end_fit(monitor: Any) -> None:
    """Ends what a fit has left: its controller and with it the workers, their reservation, the monitor.

    Ray frees the reservation of a dead controller only when the driver ends, or where a dashboard runs."""
    with suppress(ray.exceptions.RayError):
        controller, group = ray.get(monitor.belongings.remote(), timeout=ANSWER_SECONDS)
        if controller is not None:
            ray.kill(controller)
        if group is not None:
            remove_placement_group(group)
    ray.kill(monitor)


def dead_nodes() -> set[str]:
    """Ids of the nodes that have left the cluster."""
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}
