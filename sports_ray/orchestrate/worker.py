"""What each Ray worker executes: the engine's loop, with a link to the driver."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, suppress
from dataclasses import asdict
from typing import Any

import ray
import ray.train
import ray.train.torch

from sports_ray.engine.record import log_to_file
from sports_ray.engine.run import run
from sports_ray.engine.world import World
from sports_ray.errors import SportsRayError, StorageError
from sports_ray.orchestrate.plan import load_run
from sports_ray.processes import schedule_normally
from sports_ray.stops import DRIVER_GONE
from sports_ray.store.lease import Owner
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import open_storage

logger = logging.getLogger(__name__)

POLL_SECONDS, ANSWER_SECONDS = 0.5, 30.0
LOST_SECONDS = 60.0
"""How long the monitor may not answer before its driver counts as gone."""


class RayLink:
    """Link of one worker. A thread talks to the monitor and watches this node, so that no step waits for either."""

    def __init__(self, monitor: Any, driver: Owner, rank: int, deadline: float) -> None:
        self.deadline = deadline
        self._monitor, self._rank = monitor, rank
        self._driver = None if driver.has_ended() else driver  # of another user's process nothing may be seen
        self._reason = ""
        self._events: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._heard = time.monotonic()
        self._thread = threading.Thread(target=self._talk, name="ray-link", daemon=True)

    def __enter__(self) -> RayLink:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        self._thread.join(timeout=10)

    def should_stop(self) -> str:
        return self._reason

    def progress(self, event: Mapping[str, Any]) -> None:
        with self._lock:
            self._events.append({"at": time.time(), **event})

    def report(self, metrics: Mapping[str, float]) -> None:
        ray.train.report({key: value for key, value in metrics.items() if value is not None})

    def _talk(self) -> None:
        node = ray.get_runtime_context().get_node_id()
        ticks = 0
        while True:
            last = self._closed.wait(POLL_SECONDS)
            if not self._reason and self._driver and self._driver.has_ended():
                self._reason = DRIVER_GONE  # Ray takes seconds, and the next driver wants the cores
            if self._rank == 0:
                self._exchange()
            if ticks % 2 == 0 and not self._reason and node in draining_nodes():
                # Told before this rank stops: rank 0's outcome cannot name the reason of another one.
                self.progress({"kind": "preempted", "rank": self._rank, "node": node})
                self._exchange()
                self._reason = self._reason or "preempted"
            ticks += 1
            if last:
                return

    def _exchange(self) -> None:
        with self._lock:
            events, self._events = self._events, []
        try:
            wish = ray.get(self._monitor.push.remote(events), timeout=ANSWER_SECONDS)
            self._heard = time.monotonic()
        except ray.exceptions.RayError as error:
            logger.warning("the monitor does not answer: %s", error)
            with self._lock:
                self._events = events + self._events
            # A worker must not outlive its driver: it would hold the machine, and be fenced at its next commit.
            died = isinstance(error, ray.exceptions.ActorDiedError)
            wish = DRIVER_GONE if died or time.monotonic() - self._heard > LOST_SECONDS else ""
        self._reason = self._reason or wish


def draining_nodes() -> set[str]:
    """Ids of the nodes that Ray is draining. The function is private to Ray; without it no notice is seen, no more."""
    try:
        from ray._private.state import state

        return set(state.get_draining_nodes())
    except Exception as error:  # noqa: BLE001
        logger.debug("draining nodes unknown: %s", error)
        return set()


def stderr_to_log() -> AbstractContextManager[object]:
    """Sends stderr to the run's log: the stacks of a hang shall lie there, and not in a session of Ray's on a machine that
    may be gone."""
    handlers = logging.getLogger("sports_ray").handlers
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # a line for each report would go there too
    streams = [handler.stream for handler in handlers if isinstance(handler, logging.FileHandler)]
    return redirect_stderr(streams[0]) if streams else nullcontext()


def train_worker(task: dict[str, Any]) -> dict[str, Any]:
    """Trains on this rank. Returns the outcome; an error that no retry mends is returned too, for Ray retries all raises."""
    schedule_normally()
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    run_dir = RunDir.open(open_storage(task["store"]), task["run"])
    log_to_file(run_dir, f"worker-{rank}.log")
    world = World(rank, size, ray.train.torch.get_device(), context.get_local_world_size())
    try:
        if run_dir.read_record() is None:  # the driver wrote it: this node's storage is not there yet
            raise StorageError(f"cannot read {run_dir.storage.uri}", got="no run there", cure="bring the storage back")
        config, manifest = load_run(run_dir)
        with stderr_to_log(), RayLink(task["monitor"], task["driver"], rank, task["deadline"]) as link:
            if rank == 0:
                link.progress({"kind": "workers", "size": size, "pid": os.getpid()})
            return asdict(run(config, manifest, run_dir, link, world, task["driver"].id))
    except SportsRayError as error:
        if error.retryable:
            raise
        logger.error("failed: %s", error)
        _tell(task["monitor"], error)
        return {"error": error}


def _tell(monitor: Any, error: SportsRayError) -> None:
    """At once: the other ranks wait for this one in their next sum, and Ray waits for all of them."""
    with suppress(ray.exceptions.RayError):
        ray.get(monitor.push.remote([{"kind": "failed", "error": error}]), timeout=ANSWER_SECONDS)
