"""A trial's own process: what it does when its node goes away, or its run is in another's hands."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sports_ray.engine.link import Outcome
from sports_ray.errors import RunError, StorageError, TrainingError
from sports_ray.orchestrate import local, trial
from sports_ray.orchestrate.trial import NodeLeavesError, TrialProcess, Work
from sports_ray.stops import Stops
from sports_ray.store.lease import Owner
from sports_ray.sweep.conduct import HALVED
from sports_ray.sweep.folder import SweepDir
from tests.support.sweeps import made_up

LIMIT = 30.0


def task() -> dict[str, Any]:
    return {"driver": dataclasses.asdict(Owner.current()), "rungs": [], "workers": 1, "bundle": {"CPU": 1.0}}


def events(work: Work) -> list[str]:
    """Kinds of all that a process tells; what ends it is raised after that, and only then."""
    kinds: list[str] = []
    while True:
        told = work.told()
        kinds += [event["kind"] for event in told["told"]]
        if told["done"]:
            return kinds


class Node:
    """Where trials run; `leaves` is set when it gets notice."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.leaves, self.begun, self.never = threading.Event(), threading.Event(), threading.Event()
        self.trained = 0
        patch.setattr(trial, "node_leaves", self.leaves.is_set)
        patch.setattr(trial, "NODE_SECONDS", 0.0)
        patch.setattr(trial, "carry_out", self.train)

    def train(self, task: Mapping[str, Any], progress: Callable[[Any], None], stops: Stops) -> dict[str, Any]:
        """Until it is asked to stop, as the engine does; then all is committed."""
        progress({"kind": "start"})
        self.trained += 1
        self.begun.set()
        for _ in range(int(LIMIT / 0.01)):
            if stops.reasons:
                return {"kind": "end", "status": "paused", "reason": stops.reasons[0]}
            self.never.wait(0.01)
        raise AssertionError("nobody stopped it")


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(monkeypatch)


def test_trial_on_a_node_that_gives_notice_says_so_commits_and_ends_its_process(node: Node) -> None:
    work = Work(task())
    assert node.begun.wait(LIMIT)
    node.leaves.set()
    told: list[str] = []
    with pytest.raises(NodeLeavesError, match="preempted"):  # an end would make Tune use the process again
        while True:
            told += [event["kind"] for event in work.told()["told"]]
    assert told == ["start", "preempted"] and node.trained == 1


def test_process_that_is_used_again_on_a_leaving_node_trains_nothing(node: Node) -> None:
    process = object.__new__(TrialProcess)
    process.setup(task())
    assert node.begun.wait(LIMIT)
    process.wish("SIGTERM")
    assert events(process._work) == ["start", "end"], "another stop is an end as before"
    node.leaves.set()
    assert process.reset_config(task())
    assert [event["kind"] for event in process.step()["told"]] == ["preempted"]
    with pytest.raises(NodeLeavesError):
        process.step()
    assert node.trained == 1


class Run:
    """A trial's run whose lease another process holds."""

    def __init__(self, patch: pytest.MonkeyPatch, seconds: float) -> None:
        self.tries = 0
        patch.setattr(local, "train_here", self.refuse)
        patch.setattr(trial, "is_held", lambda storage: True)
        patch.setattr(trial, "IN_USE_SECONDS", seconds)
        patch.setattr(trial, "node_leaves", lambda: False)
        patch.setattr(trial, "carry_out", self.carry_out)

    def refuse(self, *_: object) -> Outcome:
        self.tries += 1
        raise RunError("run is in use", got="a driver that lives", want="one driver at a time", cure="wait for it")

    def carry_out(self, task: Mapping[str, Any], progress: Callable[[Any], None], stops: Stops) -> dict[str, Any]:
        plan: Any = type("Plan", (), {"workers": (0, 0), "run_dir": Any, "schedule": type("", (), {"total_steps": 9})})
        plan.run_dir = type("RunDir", (), {"storage": None})
        outcome = trial._train(plan, progress, stops)
        return {"kind": "end", "status": outcome.status, "reason": outcome.reason}


def test_run_that_stays_in_anothers_hands_is_a_crash_and_no_failure_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, seconds=0.5)
    with pytest.raises(TrainingError, match="run is in use; got a driver that lives"):
        events(Work(task()))
    assert run.tries > 1


def test_stop_while_the_run_is_in_anothers_hands_is_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    Run(monkeypatch, seconds=LIMIT)
    work = Work(task())
    work.stop("SIGTERM")
    (end,) = work.told()["told"]
    assert (end["status"], end["reason"]) == ("paused", "SIGTERM")


@dataclasses.dataclass(frozen=True)
class Planned:
    gpus: int


@pytest.mark.parametrize(
    ("workers", "bundle", "gpus"),
    [(1, {"CPU": 1.0, "GPU": 0.5}, 1), (4, {"CPU": 1.0, "GPU": 1.0}, 4), (1, {"CPU": 1.0}, 0), (4, {"CPU": 1.0}, 0)],
)
def test_trial_trains_on_the_gpus_it_was_given_whatever_its_own_machine_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int, bundle: dict[str, float], gpus: int
) -> None:
    """The process of a trial of several workers may lie on a head without GPUs."""
    monkeypatch.setattr(SweepDir, "read_spec", lambda folder: made_up())
    monkeypatch.setattr(trial, "_manifest", lambda uri, fingerprint: None)
    monkeypatch.setattr(trial, "make_plan", lambda config, manifest: Planned(gpus=2 if gpus == 0 else 0))
    asked = {"sweep": str(tmp_path), "trial": "test_vit-001", "params": "{}", "deadline": 0.0}
    plan: Any = trial.plan_trial({**asked, "workers": workers, "bundle": bundle})
    assert plan.gpus == gpus


def test_trial_that_begins_before_its_storage_is_mounted_tries_again(tmp_path: Path) -> None:
    """An error of the run would be its end for good; this one counts as a crash."""
    asked = {"sweep": str(tmp_path / "mount" / "sweep"), "trial": "test_vit-001", "params": "{}", "deadline": 0.0}
    with pytest.raises(StorageError, match="bring the storage back") as caught:
        trial.plan_trial({**asked, "workers": 1, "bundle": {"CPU": 1.0}})
    assert caught.value.retryable


@pytest.mark.parametrize(("lost", "reason"), [(0, HALVED), (3, "the store fails")])
def test_rung_whose_last_commit_was_not_taken_has_not_stopped_the_trial(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lost: int, reason: str
) -> None:
    """Else the board would show for good the row of an older state."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(trial, "log_to_file", lambda *_: None)
    monkeypatch.setattr(trial, "plan_trial", lambda _: SimpleNamespace(status="training", run_dir=tmp_path))
    monkeypatch.setattr(trial, "_train", lambda *_: Outcome("paused", HALVED, step=7, total_steps=9, lost=lost))
    told = trial.carry_out({"command": ["sports-ray", "tune"]}, lambda event: None, Stops())
    assert told == {"kind": "end", "status": "paused", "reason": reason}
