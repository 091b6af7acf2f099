"""A sweep with Ray Tune: which processes there are, what becomes of those that die, who may use which resources.

What a sweep is and how far it is lies in its own folder (`sports_ray.sweep`), not in Tune's: Tune's state is written every
few seconds, holds pickles, and knows a trial by what it reported last, which a kill outruns. So it is given only what has
work left, by a searcher that asks the conductor; retries come from there too. Nothing is restored.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from sports_ray.errors import SportsRayError, TrainingError
from sports_ray.orchestrate.cluster import ray_cluster
from sports_ray.orchestrate.watch import Retries
from sports_ray.processes import Standstill
from sports_ray.stops import TIME_BUDGET, Stops
from sports_ray.store.lease import Lease, Owner
from sports_ray.store.run_dir import RunDir
from sports_ray.sweep.conduct import HALVED, Conductor
from sports_ray.sweep.folder import SweepDir
from sports_ray.sweep.patience import is_waiting
from sports_ray.sweep.spec import SweepSpec

logger = logging.getLogger(__name__)

OnEvent = Callable[[str, Mapping[str, Any]], None]
"""Takes the name of a trial and what has happened to it; called in the thread that called `run_sweep`."""
POLL_SECONDS = 0.2
LEAVE_SECONDS = 6.0
"""Of a time budget, after the trials' last commits: for Tune's end and that of a local cluster."""
SILENT_SECONDS = 120.0
"""How long trials that were asked to stop may say nothing before the sweep leaves without them."""
_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
}


def cluster_nodes(address: str, usage_stats: bool = False) -> list[dict[str, float]]:
    """Resources of each node that there is, or will be: of this machine where no cluster is joined."""
    from sports_ray.orchestrate.plan import gpu_count

    if not joins(address):
        return [{"CPU": float(os.cpu_count() or 1), "GPU": float(gpu_count())}]
    import ray

    with ray_cluster(address, usage_stats=usage_stats):
        return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def joins(address: str) -> bool:
    """Whether `address` leads to a cluster that is there, and not to one of the command's own, on this machine alone."""
    running = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    return address != "auto" or bool(os.environ.get("RAY_ADDRESS")) or running


def run_sweep(
    spec: SweepSpec,
    folder: SweepDir,
    on_event: OnEvent,
    *,
    concurrent: int,
    deadline: float = 0.0,
    stops: Stops | None = None,
    command: Sequence[str] = (),
    prepare: Callable[[], None] = lambda: None,
    retry_failed: bool = False,
) -> tuple[Conductor, str]:
    """Runs the trials that have work left, to the end of the sweep or to the next stop; what is known of it then, and why it
    pauses ("": it is finished). `deadline`: Unix time at which the command has to be over; 0: none; `prepare`: called once the
    sweep is held, makes its folder.

    Raises RunError while another driver holds the sweep, TrainingError when the cluster is gone or gives no resources."""
    from sports_ray.orchestrate.train import listening

    cluster = spec.backbones[0].config.cluster
    with Lease.acquire(folder.storage) as lease, listening(stops) as heard:
        folder.sweep_up()
        prepare()
        conductor = Conductor(spec, folder)
        conductor.catch_up(retry_failed)
        conductor.publish()
        if conductor.finished:
            return conductor, ""
        ray_log = RunDir(folder.storage).local_path("logs/ray.log")
        with ray_cluster(cluster.address, usage_stats=cluster.usage_stats, log=ray_log), _ray_logs_there():
            heard.install()  # ray.init() has put a handler of its own in place
            tuning = Tuning(conductor, deadline - LEAVE_SECONDS if deadline else 0.0, command)
            thread = threading.Thread(target=tuning.fit, args=(concurrent,), name="tune", daemon=True)
            thread.start()
            while thread.is_alive():
                thread.join(POLL_SECONDS)
                tuning.pass_on(on_event)
                if heard.reasons or lease.lost:
                    tuning.stop(heard.reasons[0] if heard.reasons else "another driver took the sweep over")
                if tuning.silent():
                    break
            tuning.pass_on(on_event)
        if tuning.error is not None:
            raise tuning.failure()
        return conductor, "" if conductor.finished else tuning.reason or "trials are left"


@contextmanager
def _ray_logs_there() -> Iterator[None]:
    """Ray's log follows sys.stderr: its handler keeps the stream that it found when Ray was imported."""
    handlers = [one for one in logging.getLogger("ray").handlers if isinstance(one, logging.StreamHandler)]
    before = [one.setStream(sys.stderr) for one in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            if stream is not None:
                handler.setStream(stream)


class Tuning:
    """One `Tuner.fit()`. Everything but `stop`, `silent` and `pass_on` happens in its thread."""

    def __init__(self, conductor: Conductor, deadline: float, command: Sequence[str]) -> None:
        self.conductor = conductor
        self.reason = ""
        """Why no trial shall start any more, and those under way shall stop."""
        self.error: BaseException | None = None
        self._deadline, self._command, self._driver = deadline, list(command), Owner.current()
        self._events: list[tuple[str, dict[str, Any]]] = []
        self._retries: dict[str, Retries] = {}
        self._lost: dict[str, set[str]] = {}
        """Nodes that were dead when a trial was begun."""
        self._leaving: set[str] = set()
        """Trials that have been told that their node goes away."""
        self._heard = time.monotonic()
        self._standstill = Standstill(POLL_SECONDS)

    # From outside.

    def stop(self, reason: str) -> None:
        if not self.reason:
            self.reason, self._heard = reason, time.monotonic()

    def silent(self) -> bool:
        """Whether trials that were asked to stop give no sign, or none has got its resources for too long."""
        self._heard += self._standstill.look()
        if is_waiting():
            self._heard = time.monotonic()
        quiet = time.monotonic() - self._heard
        if self.reason:
            return quiet > SILENT_SECONDS
        limit = self.conductor.spec.backbones[0].config.cluster.start_timeout
        if quiet > limit:
            self.error = TrainingError(
                f"no trial has given a sign for cluster.start_timeout = {limit:.0f} s",
                want=f"{self.conductor.spec.share.words()} for each",
                cure="more nodes, or a longer --set cluster.start_timeout; the same command goes on",
            )
        return self.error is not None

    def pass_on(self, on_event: OnEvent) -> None:
        events, self._events = self._events, []
        for name, event in events:
            on_event(name, event)

    def failure(self) -> BaseException:
        if isinstance(self.error, SportsRayError):
            return self.error
        logger.error("tune failed", exc_info=self.error)
        return TrainingError(
            "Ray Tune failed",
            got=(str(self.error).strip() or repr(self.error)).splitlines()[-1],
            cure="see logs/ray.log in the sweep's folder; the same command goes on from the trials' last commits",
        )

    # For Tune.

    def fit(self, concurrent: int) -> None:
        """Runs in a thread of its own: the main thread stays free for signals, which Tune would take for itself."""
        os.environ.update(_ENVIRONMENT)
        place = tempfile.mkdtemp(prefix="sports-ray-tune-")
        try:
            self._tuner(concurrent, place).fit()
        except BaseException as error:  # noqa: BLE001
            self.error = error
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _tuner(self, concurrent: int, place: str) -> Any:
        from ray import tune

        from sports_ray.orchestrate.hand import Ear, Hand
        from sports_ray.orchestrate.trial import TrialProcess

        return tune.Tuner(
            TrialProcess,
            tune_config=tune.TuneConfig(
                num_samples=-1,
                search_alg=Hand(self),
                max_concurrent_trials=concurrent,
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_folder,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=place,
                callbacks=[Ear(self)],
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )

    def next(self) -> dict[str, Any] | None:
        """The task of the next trial; None if there is none to start now."""
        if not self.reason and self._deadline and time.time() > self._deadline:
            self.stop(TIME_BUDGET)
        name = None if self.reason else self.conductor.next()
        if name is None:
            return None
        self._heard = time.monotonic()
        self._lost[name] = _dead_nodes()
        self._leaving.discard(name)
        spec = self.conductor.spec
        params = self.conductor.params(name)
        self._events.append((name, {"kind": "begin", "params": params}))
        return {
            "trial": name, "sweep": self.conductor.folder.uri, "params": json.dumps(params), "deadline": self._deadline,
            "rungs": list(spec.halving.rungs) if spec.halving else [], "workers": spec.share.workers,
            "bundle": spec.share.bundle, "command": self._command, "driver": asdict(self._driver),
        }  # fmt: skip

    @property
    def over(self) -> bool:
        """Whether no trial is under way, and none will be."""
        return not self.conductor.running and (bool(self.reason) or self.conductor.finished)

    def heard(self, name: str, told: Sequence[Mapping[str, Any]]) -> str:
        """Takes what a trial tells; why it has to stop, or ""."""
        self._heard = time.monotonic()
        wish = self.reason
        for event in told:
            if event["kind"] == "end":
                event = self._ended(name, event)
            elif event["kind"] == "evaluated":
                wish = self.conductor.evaluated(name, event) or wish
            elif event["kind"] == "preempted":
                self._leaving.add(name)
            if event:
                self._events.append((name, dict(event)))
        return wish

    def _ended(self, name: str, event: Mapping[str, Any]) -> Mapping[str, Any]:
        status, reason = event["status"], event["reason"]
        if status != "paused":
            self.conductor.ended(name, status, reason)
        elif reason == HALVED:
            self.conductor.ended(name, "stopped", reason)
        elif reason in (self.reason, TIME_BUDGET):
            self.stop(reason)
            self.conductor.interrupted(name)
        else:
            return self.crashed(name, reason)
        return event

    def crashed(self, name: str, reason: str) -> dict[str, Any]:
        """A trial's process is gone, or its training broke off: it starts again, unless that has led nowhere too often.

        A node that goes away, or was lost since the trial began, is the cluster's affair and not counted."""
        self._heard = time.monotonic()
        if name not in self.conductor.running:
            return {}
        limit = self.conductor.trials[name].backbone.config.cluster.max_failures
        retries = self._retries.setdefault(name, Retries(limit))
        if name in self._leaving:
            reason = "its node is going away"
        elif not _dead_nodes() - self._lost[name] and not retries.crashed(self.conductor.folder.step(name)):
            text = f"broke off {retries.crashes} times in a row without progress past step {retries.step}: {reason}"
            self.conductor.ended(name, "failed", text)
            return {"kind": "end", "status": "failed", "reason": text}
        logger.warning("trial broke off: name=%s reason=%s", name, reason)
        if not self.conductor.interrupted(name):
            return {"kind": "end", "status": "paused", "reason": HALVED}
        return {"kind": "restart", "reason": reason}

    def broke_off(self, name: str, reason: str) -> None:
        if event := self.crashed(name, reason):
            self._events.append((name, event))


def _dead_nodes() -> set[str]:
    from sports_ray.orchestrate.monitor import dead_nodes

    return dead_nodes()


def _name(trial: Any) -> str:
    return str(trial.config["trial"])


def _folder(trial: Any) -> str:
    return f"{trial.config['trial']}-{trial.trial_id}"
