"""Starts or joins Ray, quietly: its chatter goes to Ray's own logs, its dashboard stays on loopback or off."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from sports_ray.orchestrate.join import reach
from sports_ray.processes import Processes, below, name_of, still_there

logger = logging.getLogger(__name__)


def maker() -> str:
    """What the system says first of this machine's processors; "" where it says nothing."""
    with suppress(OSError), Path("/proc/cpuinfo").open(errors="replace") as text:
        return text.read(200)
    return ""


def spins(cpuinfo: str) -> str:
    """How often a thread that waits for another looks for it before it sleeps.

    torch's default, many times as long, takes the core from others: beside one busy process on two cores a training of
    test_resnet took 33 s, with this 16 s (with AMX). Much less, and threads are woken all the time: a bare loop on two cores
    of an AMD EPYC trained at 49, 52 and 60 images/s with 3,000, at 54, 65 and 57 with 8,000, and with torch's default at 52,
    58 and 69; beside a busy process at 29 with 3,000, 27 with 8,000, 22 with 20,000. With 30,000 a whole training on Ray is a
    twentieth faster than with 8,000 when it is alone, but beside a busy process it takes 1.6 times as long. On Intel 8,000 was
    not measured.
    """
    return "8000" if "AuthenticAMD" in cpuinfo else "3000"


# Measured on two cores: Ray's defaults add seconds to each start and each recovery (poll 2 s, watcher and state actors).
SETTINGS = {
    # Each poll takes the worker's interpreter from the training: 0.2 s cost 4 % of its speed.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    # A worker that was stopped (SIGSTOP) or swapped out answers no poll; only Ray can replace it, its own watchdog cannot.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",
    # After the loss of a node its resources seem to be there for up to 20 s; the next try asks for what is left.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",
    # Draining nodes are watched by the workers' own threads (worker.py), at a second's interval and with no more actors.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Nobody reads a local cluster's metrics and task events; each of its processes would send them every second.
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # By default Ray runs workers at nice 15: beside any other process they get next to no time.
    "RAY_worker_niceness": "0",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "3",
    # Ray calls the train function in a thread: glibc gives it a heap of its own, from which every large tensor is mapped and
    # faulted in anew. With one heap convnext_atto trains at 88 images/s in place of 80 on two cores.
    "MALLOC_ARENA_MAX": "1",
    "GOMP_SPINCOUNT": spins(maker()),
}
WORKER_SETTINGS = ("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "MALLOC_ARENA_MAX", "GOMP_SPINCOUNT")
"""What a train worker's process must find at its start; in a cluster that was joined it inherits nothing of the driver's."""
END_SECONDS = 3.0
"""How long the processes of a local cluster may take to end after it."""
OBJECT_STORE_BYTES = 128 * 1024 * 1024  # training's images never pass through it


def prepare_environment(usage_stats: bool = False) -> None:
    """Sets switches that Ray and torch read when they are imported; what the user has set stays."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if not usage_stats:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def worker_environment() -> dict[str, str]:
    """Variables that Ray has to set for train workers, wherever they start. `RAY_TRAIN_*` it hands on by itself."""
    return {name: os.environ.get(name, SETTINGS[name]) for name in WORKER_SETTINGS}


def shared_cores(nodes: Iterable[Mapping[str, float]], workers: int, gpus: bool) -> int:
    """The most whole CPUs that each of `workers` can have on `nodes` (resources by name); 1 if they have no room yet."""
    nodes = list(nodes)
    most = int(max((node.get("CPU", 0) for node in nodes), default=1))

    def room(cores: int) -> int:
        places = [(int(node.get("CPU", 0) // cores), int(node.get("GPU", 0))) for node in nodes]
        return sum(min(cpu, gpu) if gpus else cpu for cpu, gpu in places)

    return next((cores for cores in range(most, 1, -1) if room(cores) >= workers), 1)


@contextmanager
def ray_cluster(
    address: str,
    *,
    usage_stats: bool = False,
    cpus: int | None = None,
    log: Path | None = None,
    object_store: int = OBJECT_STORE_BYTES,
) -> Iterator[None]:
    """Joins the cluster at `address` ("auto": RAY_ADDRESS if set, else a local one, which ends with the block; its object
    store has `object_store` bytes).

    Ray's threads print to the standard streams whatever its settings say: in the block these lead to `log`, or nowhere.
    What is meant for people must have taken hold of the streams before.
    """
    log = log or Path(os.devnull)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as sink, redirect_stdout(sink), redirect_stderr(sink):
        yield from _connected(address, usage_stats, cpus, object_store, log)


@contextmanager
def stderr_to(log: Path | None) -> Iterator[None]:
    """Sends what is written to descriptor 2 to `log`, or nowhere: Ray's C++ code warns there, whatever its settings say."""
    target = log or Path(os.devnull)
    target.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with target.open("ab") as sink:
            os.dup2(sink.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _batch_scheduling() -> Iterator[None]:
    """What is started in the block never preempts, where Linux schedules: Ray's own processes wake hundreds of times a second.

    On two cores they cost a training 6 % of its speed. A train worker takes itself out (`processes.schedule_normally`).
    """
    if not hasattr(os, "SCHED_BATCH"):
        yield
        return
    before = os.sched_getscheduler(0)
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:  # a sandbox may forbid it
        logger.info("no batch scheduling: %s", error)
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, before, os.sched_param(0))


@contextmanager
def no_idle_helpers(usage_stats: bool = False) -> Iterator[None]:
    """Clusters that are started in the block lack what would have no work in them (Ray 2.60 asks for it all the same).

    No log monitor: no driver listens to it. No monitor of an autoscaler that is not there. No server of a dashboard that is
    off, unless `usage_stats`, which it sends. On two cores a start takes 4.4 s so, with them 6.0 s (of core time, end
    included, 5.7 s in place of 8.7 s), an end 0.2 s in place of 1.2 s.

    Nor do they wait for Ray's fixed port for a node's agent, 52365: beside another cluster, and beside what is left of a
    killed driver's, a start waits 3.5 s for it and then does without. `ray.init` has no option for any of these."""
    from ray._private import node, parameter

    params, server = parameter.RayParams, node.Node.start_api_server
    lean: dict[str, Any] = {"include_log_monitor": False, "no_monitor": True, "dashboard_agent_listen_port": 0}
    parameter.RayParams = functools.partial(params, **lean)  # type: ignore[misc, assignment]
    if not usage_stats:
        node.Node.start_api_server = _no_server  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        parameter.RayParams = params  # type: ignore[misc]
        node.Node.start_api_server = server  # type: ignore[method-assign]


def _no_server(node: Any, **_: object) -> None:
    node._webui_url = None  # as Ray has it where a server could not be started


def _connected(address: str, usage_stats: bool, cpus: int | None, object_store: int, log: Path) -> Iterator[None]:
    prepare_environment(usage_stats)
    import ray

    joined = address if address != "auto" else os.environ.get("RAY_ADDRESS", "")
    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if joined:
            with stderr_to(log):
                reach(joined)
            ray.init(address=joined, log_to_driver=False, logging_level=logging.ERROR)
        else:
            with _batch_scheduling(), no_idle_helpers(usage_stats):
                ray.init(
                    address="local",
                    num_cpus=cpus or os.cpu_count(),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=object_store,
                )
    try:
        yield
    finally:
        mine = {} if joined else below(os.getpid())
        ray.shutdown()
        _end({pid: start for pid, start in mine.items() if pid != os.getpid() and name_of(pid).startswith("ray::")})


def _end(processes: Processes) -> None:
    """SIGKILL for those that do not end by themselves: a controller's may hang for good in the destructors of Ray's library."""
    end = time.monotonic() + END_SECONDS
    while (left := still_there(processes)) and time.monotonic() < end:
        time.sleep(0.02)
    for pid in left:
        logger.warning("process left behind: pid=%d name=%s", pid, name_of(pid))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
