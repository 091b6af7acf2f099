"""Supervises Ray Train: starts it, starts it again when its controller died, hands progress out and stops in."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sports_ray.engine.link import Outcome
from sports_ray.errors import FencedError, SportsRayError, TrainingError
from sports_ray.orchestrate.cluster import ray_cluster, shared_cores, worker_environment
from sports_ray.orchestrate.plan import Plan, safe_step, write_record
from sports_ray.orchestrate.watch import Retries, Watch, crash_limit
from sports_ray.processes import Standstill
from sports_ray.stops import DRIVER_GONE, Stops
from sports_ray.store.arrow import ArrowStorage
from sports_ray.store.lease import Lease
from sports_ray.store.storage import Storage

logger = logging.getLogger(__name__)

OnProgress = Callable[[Mapping[str, Any]], None]
POLL_SECONDS = 0.5
SILENT_SECONDS = 10.0
"""How long nobody may call after the wish to stop: workers that are missing come back only to be stopped."""
COLLECTIVE_SECONDS = 1800
"""How long ranks wait for another one: rank 0 may wait for a store that stands still, and each rank's watchdog is quicker."""
END_SECONDS = 10.0
"""How long `fit` may take to notice that its controller was ended."""
LEAVE_SECONDS = 6.0
"""Of a time budget, after the workers' last commit: for the controller's poll, the end of `fit` and of a local cluster."""
_IDLE_CALLBACKS = ("PlacementGroupCleanerCallback", "DatasetsCallback")
RAY_RETRIES = 1_000  # within one fit; the limit that counts is cluster.max_failures, in crashes without progress


def train_on_ray(
    plan: Plan, on_progress: OnProgress, started: float | None = None, stops: Stops | None = None
) -> Outcome:
    """Trains `plan` with Ray Train to its end or to the next stop; recovers from the death of workers and controller.

    Raises the worker's own error when no retry can mend it, TrainingError when retries are used up or the cluster is
    gone, RunError while another driver holds the run.
    """
    config = plan.config
    budget = config.cluster.time_budget
    deadline = (started or time.time()) + budget - LEAVE_SECONDS if budget else 0.0
    with Lease.acquire(plan.run_dir.storage) as lease, listening(stops) as heard:
        write_record(plan)
        ray_log = plan.run_dir.local_path("logs/ray.log")
        watch = Watch(Retries(config.cluster.max_failures))
        while True:
            with ray_cluster(config.cluster.address, usage_stats=config.cluster.usage_stats, log=ray_log):
                heard.install()  # ray.init() has put a handler of its own in place
                outcome = _fit_until_settled(plan, on_progress, watch, heard.reasons, lease, deadline)
            if outcome is not None:
                return outcome
            on_progress({"kind": "restart", "reason": "the training's controller died"})
            if not watch.retries.crashed(watch.step):
                raise crash_limit(watch.retries)


def _fit_until_settled(
    plan: Plan, on_progress: OnProgress, watch: Watch, stops: list[str], lease: Lease, deadline: float
) -> Outcome | None:
    """Fits, and fits again elsewhere after each notice of preemption; None when the controller died."""
    import ray

    while True:
        try:
            result = _fit_once(plan, on_progress, watch, stops, lease, deadline)
        except ray.exceptions.RayError as error:
            raise TrainingError(
                "Ray's cluster does not answer",
                got=str(error).strip().splitlines()[0],
                cure="bring it back; the same command goes on from the last commit",
            ) from error
        if result is None:
            return None
        if "error" in result:
            raise result["error"]
        outcome = Outcome(**result)
        if outcome.status == "done" or stops:
            return outcome
        if outcome.reason == DRIVER_GONE:
            on_progress({"kind": "restart", "reason": "the workers lost touch with this driver"})
            if not watch.retries.crashed(watch.step):
                raise crash_limit(watch.retries)
        elif watch.preempted or outcome.reason == "preempted":
            on_progress({"kind": "restart", "reason": "a node is going away"})
        else:
            return outcome


def _fit_once(
    plan: Plan, on_progress: OnProgress, watch: Watch, stops: list[str], lease: Lease, deadline: float
) -> dict[str, Any] | None:
    """One `TorchTrainer.fit()`: rank 0's return value, or None when the controller died. Leaves nothing running."""
    from sports_ray.orchestrate.monitor import dead_nodes, end_fit, new_monitor, start_coordinator

    start_coordinator()
    monitor = new_monitor()
    watch.begin(dead_nodes())
    box: dict[str, Any] = {}
    thread = threading.Thread(target=_fit, args=(plan, monitor, deadline, lease, box), name="fit", daemon=True)
    try:
        thread.start()
        told, standstill = 0.0, Standstill(POLL_SECONDS)
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            watch.heard += standstill.look()  # a driver that did not run has heard nobody
            _pass_on(monitor, watch, on_progress)
            wish = stops[0] if stops else ("another driver took the run over" if lease.lost else "")
            if wish and not told:
                monitor.stop.remote(wish)
                told = time.monotonic()
            if wish and (not watch.alive or time.monotonic() - max(watch.heard, told) > SILENT_SECONDS):
                step, total = safe_step(plan), plan.schedule.total_steps
                return {"status": "paused", "reason": wish, "step": step, "total_steps": total}
            _check_calls(plan, watch)
        _pass_on(monitor, watch, on_progress)
    finally:
        end_fit(monitor)
        thread.join(END_SECONDS)
    if lease.lost:
        raise FencedError("another driver took the run over", want="one driver a run", cure="let the other one finish")
    return _verdict(box)


def _pass_on(monitor: Any, watch: Watch, on_progress: OnProgress) -> None:
    """What the workers have told since the last time, to the watch and to the user; raises what no retry mends."""
    import ray

    from sports_ray.orchestrate.monitor import ANSWER_SECONDS, dead_nodes

    pushes, events = ray.get(monitor.drain.remote(), timeout=ANSWER_SECONDS)
    watch.called(pushes)
    for event in events:
        if event["kind"] == "failed":
            raise event["error"]
        if reason := watch.take(event, dead_nodes):
            on_progress({"kind": "restart", "reason": reason})
        on_progress(event)


def _check_calls(plan: Plan, watch: Watch) -> None:
    """A cluster that never gives its workers, or never again, is a clear message, not an endless wait."""
    if time.monotonic() - watch.heard < plan.config.cluster.start_timeout:
        return
    import ray

    raise TrainingError(
        f"no worker {'came back' if watch.alive else 'started'} within "
        f"cluster.start_timeout = {plan.config.cluster.start_timeout:.0f} s",
        got=f"a cluster with {_resources(ray.cluster_resources())}, free {_resources(ray.available_resources())}",
        want=f"{plan.workers[0]} workers with {_resources(worker_resources(plan))} each",
        cure="fewer --workers, more nodes, or a longer --set cluster.start_timeout",
    )


def _resources(amounts: Mapping[str, float]) -> str:
    return ", ".join(
        f"{amounts.get(name, 0):g} {name}" for name in ("CPU", "GPU") if amounts.get(name) or name == "CPU"
    )


def worker_resources(plan: Plan) -> dict[str, float]:
    """What Ray reserves for one worker: its share of the cluster's cores, where the user has not said how much."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = plan.config.cluster.cpus_per_worker or shared_cores(nodes, plan.workers[1], plan.gpus > 0)
    return {"CPU": cores, "GPU": 1} if plan.gpus else {"CPU": cores}


def _fit(plan: Plan, monitor: Any, deadline: float, lease: Lease, box: dict[str, Any]) -> None:
    """Runs in a thread of its own: the main thread stays free for signals, which `fit` would take for an abort."""
    import ray.train

    from sports_ray.orchestrate.monitor import Registrar

    low, high = plan.workers
    try:
        trainer = _trainer()(
            _on_a_worker,
            train_loop_config={
                "store": plan.store,
                "run": plan.name,
                "monitor": monitor,
                "deadline": deadline,
                "driver": lease.owner,
            },
            backend_config=_backend(plan),
            scaling_config=ray.train.ScalingConfig(
                num_workers=high if low == high else (low, high),  # type: ignore[arg-type]
                use_gpu=plan.gpus > 0,
                resources_per_worker=worker_resources(plan),
                elastic_resize_monitor_interval_s=plan.config.cluster.resize_seconds,  # type: ignore[call-arg]
            ),
            run_config=ray.train.RunConfig(
                name=plan.name,
                **_place(plan.run_dir.storage),
                failure_config=ray.train.FailureConfig(
                    max_failures=RAY_RETRIES,
                    controller_failure_limit=RAY_RETRIES,  # type: ignore[call-arg]
                ),
                callbacks=[Registrar(monitor)],  # type: ignore[list-item]
                worker_runtime_env={"env_vars": worker_environment()},  # type: ignore[call-arg]
            ),
        )
        box["value"] = trainer.fit().return_value  # type: ignore[attr-defined]
    except BaseException as error:  # noqa: BLE001
        box["failure"] = error


def _place(storage: Storage) -> dict[str, Any]:
    """Where Ray Train keeps notes of its own. An address it would open without the options that only our storage knows."""
    if isinstance(storage, ArrowStorage):
        return {"storage_path": f"{storage.base}/ray", "storage_filesystem": storage.filesystem}
    return {"storage_path": f"{storage.uri}/ray"}


def _on_a_worker(task: dict[str, Any]) -> dict[str, Any]:
    """What each worker executes. The driver itself imports no torch: it only waits, and starts seconds earlier without."""
    from sports_ray.orchestrate.worker import train_worker

    return train_worker(task)


def _trainer() -> Any:
    """Ray Train's trainer without two helpers in processes of their own, for which there is no work.

    One waits for datasets of Ray Data. The other frees what a dead controller had reserved, which `end_fit` does; where
    the dashboard is off it takes 15 s to end, and every fit waits for that."""
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class Trainer(DataParallelTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
            return [one for one in callbacks if type(one).__name__ not in _IDLE_CALLBACKS]

    return Trainer


def _backend(plan: Plan) -> Any:
    """The process group's settings; no group for a worker that is alone.

    Its thread would wake 100 times a second, and the controller would import torch for it: 1.2 s and 450 MB."""
    from ray.train.backend import BackendConfig

    if plan.workers == (1, 1):
        return BackendConfig()
    from ray.train.torch import TorchConfig

    return TorchConfig(backend="nccl" if plan.gpus else "gloo", timeout_s=COLLECTIVE_SECONDS)


def _verdict(box: dict[str, Any]) -> dict[str, Any] | None:
    if "failure" not in box:
        return box["value"]
    import ray

    failure = box["failure"]
    logger.error("fit failed: %r", failure)
    if isinstance(failure, (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnavailableError)):
        return None
    if isinstance(failure, SportsRayError):
        raise failure
    raise TrainingError(
        "Ray Train failed", got=str(failure).strip().splitlines()[-1], cure="see the run's logs/ folder"
    ) from failure


@contextmanager
def listening(stops: Stops | None) -> Iterator[Stops]:
    """Stops that somebody looks at: those that the command has collected so far, or its own from here on."""
    if stops is not None:
        stops.look()
        yield stops
        return
    own = Stops().install()
    try:
        yield own
    finally:
        own.restore()
