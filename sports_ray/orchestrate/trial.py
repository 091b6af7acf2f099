"""One trial of a sweep, in a process of Ray Tune's that is used again for the next one.

A trial of one worker trains in this very process, as `train --workers 0` does; a trial of several through Ray Train. The
engine works in a thread; Tune calls `step` again and again, which tells what has happened since.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from ray import tune

from sports_ray.data.manifest import Manifest
from sports_ray.engine.link import Outcome
from sports_ray.engine.record import log_to_file
from sports_ray.errors import NonFiniteError, RunError, StorageError, TrainingError, UserError
from sports_ray.orchestrate.plan import Plan, make_plan
from sports_ray.processes import schedule_normally
from sports_ray.stops import DRIVER_GONE, Stops
from sports_ray.store.lease import Owner, is_held
from sports_ray.sweep.conduct import HALVED
from sports_ray.sweep.folder import SweepDir

WATCH_SECONDS, NODE_SECONDS = 0.2, 1.0
"""Between two looks at the driver, and at this process's node."""
PERIOD = 1.0
"""Seconds between two calls of Tune's, as long as nothing happens that it waits for."""
IN_USE_SECONDS = 60.0
"""How long a process of a killed driver may go on holding the run: Ray ends it, within seconds."""
END_SECONDS = 600.0
_TOLD = {"start", "step", "evaluated", "restart", "store"}
_GONE = {"kind": "end", "status": "paused", "reason": "preempted"}


class NodeLeavesError(Exception):
    """Tells Tune to end this process, once all is committed: one that had only come to the end of its trial would get the
    next one, on a node that goes away."""


class TrialProcess(tune.Trainable):
    """What Tune starts, resets and ends."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Workers of Ray Train reserve for themselves; the trial's own process then needs no more than a place."""
        return tune.PlacementGroupFactory([{"memory": 1} if config["workers"] > 1 else config["bundle"]])

    def setup(self, config: dict[str, Any]) -> None:
        self._work = Work(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._work.end("the trial was replaced")
        self._work = Work(new_config)
        return True

    def step(self) -> dict[str, Any]:
        return self._work.told()

    def wish(self, reason: str) -> None:
        """Asks the trial to stop; called between two steps."""
        self._work.stop(reason)

    def cleanup(self) -> None:
        self._work.end("the sweep ends")


class Work:
    """The engine's thread, and what lies between it and Tune's calls."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        self._task = task
        self._stops = Stops()
        self._events: list[dict[str, Any]] = []
        self._change = threading.Condition()
        self._question = ""
        """At a rung: asked, then told (Tune knows of it), then answered by Tune's next call; else empty."""
        self._urgent = self._over = self._stepped = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="trial", daemon=True)
        self._thread.start()
        threading.Thread(target=self._watch, args=(Owner(**task["driver"]),), name="driver", daemon=True).start()

    def told(self) -> dict[str, Any]:
        """Waits until there is something to tell, or a second; what has happened since the last call.

        Raises what ended the training if a new process may mend it, after all has been told."""
        with self._change:
            if self._question == "told":
                self._question = ""
                self._change.notify_all()
            self._change.wait_for(lambda: self._urgent or self._over, PERIOD)
            events, self._events, self._urgent = self._events, [], False
            if self._question == "asked":
                self._question = "told"
            over = self._over
        if over:
            self._thread.join(END_SECONDS)
        if over and self._error is not None and not events:
            raise self._error
        return {"told": events, "done": over and self._error is None}

    def stop(self, reason: str) -> None:
        with self._change:
            self._stops.reasons.append(reason)
            self._change.notify_all()

    def end(self, reason: str) -> None:
        """Stops the training if it has not ended, and waits for its last commit."""
        self.stop(reason)
        self._thread.join(END_SECONDS)

    def _watch(self, driver: Owner) -> None:
        """Stops a trial of which nobody hears any more, at once: Ray takes seconds, and the next driver wants the cores; and
        one whose node goes away."""
        seen = not driver.has_ended()  # of another user's process nothing may be seen
        looked = time.monotonic()
        while not self._over:
            if seen and driver.has_ended():
                self.stop(DRIVER_GONE)
                return
            if time.monotonic() - looked > NODE_SECONDS:
                if self._leaves():
                    return
                looked = time.monotonic()
            time.sleep(WATCH_SECONDS)

    def _leaves(self) -> bool:
        """Whether this process's node goes away. Tells so first, and stops then: should the node die before all is
        committed, that was no crash either."""
        if not node_leaves():
            return False
        with self._change:
            self._events.append({"at": time.time(), "kind": "preempted"})
            self._urgent = True
        self.stop("preempted")
        return True

    def _run(self) -> None:
        end: dict[str, Any] | None = None
        try:
            # A process that is used again may have stood idle while its node got notice.
            end = _GONE if self._leaves() else carry_out(self._task, self._progress, self._stops)
        except (UserError, NonFiniteError) as error:
            end = {"kind": "end", "status": "failed", "reason": str(error)}
        except BaseException as error:  # noqa: BLE001
            self._error = error
        if end == _GONE:
            end, self._error = None, NodeLeavesError("preempted")
        with self._change:
            self._events += [{"at": time.time(), **end}] if end else []
            self._over = True
            self._change.notify_all()

    def _progress(self, event: Mapping[str, Any]) -> None:
        if event["kind"] not in _TOLD:
            return
        with self._change:
            # Of many steps in a row the first and the last are worth telling, and the first of all at once.
            if [one["kind"] for one in self._events[-2:]] == ["step", "step"] and event["kind"] == "step":
                self._events.pop()
            self._events.append({"at": time.time(), **event})
            if event["kind"] == "step" and self._stepped:
                return
            self._stepped = self._stepped or event["kind"] == "step"
            self._urgent = True
            self._change.notify_all()
            # In this process a stop comes exactly at the rung; workers of Ray Train are told as soon as it is known.
            if event["kind"] == "evaluated" and event["epoch"] in self._task["rungs"] and self._task["workers"] == 1:
                self._question = "asked"
                self._change.wait_for(lambda: not self._question or bool(self._stops.reasons), IN_USE_SECONDS / 2)


def node_leaves() -> bool:
    """Whether Ray is draining this process's node."""
    import ray

    from sports_ray.orchestrate.worker import draining_nodes

    return ray.get_runtime_context().get_node_id() in draining_nodes()


def carry_out(task: Mapping[str, Any], progress: Any, stops: Stops) -> dict[str, Any]:
    """Trains the trial's run from where it is; how it ended, as an event."""
    from sports_ray.orchestrate.worker import stderr_to_log

    schedule_normally()
    sys.argv = list(task["command"])  # what the run's record and its lease shall name
    plan = plan_trial(task)
    if plan.status == "finished":
        return {"kind": "end", "status": "done", "reason": ""}
    log_to_file(plan.run_dir, "trial.log")
    with stderr_to_log():
        outcome = _train(plan, progress, stops)
    # A rung whose last commit the store did not take is passed again: the row is made from what is safe.
    reason = "the store fails" if outcome.lost and outcome.reason == HALVED else outcome.reason
    return {"kind": "end", "status": outcome.status, "reason": reason}


def plan_trial(task: Mapping[str, Any]) -> Plan:
    """The trial's run as `train` would plan it, on the photographs of the sweep, with the GPUs that the trial has been given:
    this process may be on a machine without, while its workers have some."""
    folder = SweepDir(task["sweep"])
    spec = folder.read_spec()
    if spec is None:  # its driver wrote it before any trial began: what is missing is the storage, for now
        raise StorageError(
            f"cannot read {folder.storage.uri}", got="no sweep.json there", cure="bring the storage back"
        )
    trial = next(one for one in spec.trials() if one.name == task["trial"])
    config = spec.config(trial, json.loads(task["params"]), folder.uri)
    if task["deadline"]:
        budget = max(1.0, task["deadline"] - time.time())
        config = dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, time_budget=budget))
    plan = make_plan(config, manifest=_manifest(folder.uri, spec.data["fingerprint"]))
    return dataclasses.replace(plan, gpus=task["workers"] if task["bundle"].get("GPU") else 0)


@functools.lru_cache(maxsize=1)
def _manifest(uri: str, fingerprint: str) -> Manifest:
    """Read once in a process."""
    manifest = SweepDir(uri).manifest()
    if manifest.fingerprint() != fingerprint:
        raise RunError("photographs of the sweep", got=f"another list in {uri}", want="the one it was started with")
    return manifest


def _train(plan: Plan, progress: Any, stops: Stops) -> Outcome:
    """As soon as the process of a driver that has just been killed is gone.

    TrainingError if the run stays in another's hands: one on a node that was cut off goes on beating for a while, so that a
    later try may have it."""
    from sports_ray.orchestrate.local import train_here
    from sports_ray.orchestrate.train import train_on_ray

    train, end = train_on_ray if plan.workers[1] else train_here, time.monotonic() + IN_USE_SECONDS
    while True:
        try:
            return train(plan, progress, time.time(), stops)
        except RunError as error:
            if not is_held(plan.run_dir.storage):
                raise
            if stops.reasons:
                return Outcome("paused", stops.reasons[0], 0, plan.schedule.total_steps)
            if time.monotonic() > end:
                raise TrainingError(*error.args) from error
            time.sleep(0.2)
