"""What a sweep's driver hears of its trials and tells them: crashes that count and those that do not, stops that arrive."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sports_ray.orchestrate import tune
from sports_ray.orchestrate.hand import Ear, Hand
from sports_ray.orchestrate.tune import Tuning
from sports_ray.sweep.conduct import HALVED, Conductor
from tests.support.killed import in_memory
from tests.support.sweeps import HALVED as RUNGS
from tests.support.sweeps import leave, line, made_up, sweep_dir

LIMIT = 3
"""Crashes in a row without progress, as cluster.max_failures has it by default."""


class Actor:
    """A trial's process, of which only what it was told is known."""

    def __init__(self) -> None:
        self.wishes: list[str] = []
        self.wish = SimpleNamespace(remote=self.wishes.append)


class Sweep:
    """A driver whose Ray Tune is played by hand."""

    def __init__(self, place: Path, **settings: Any) -> None:
        self.tuning = Tuning(Conductor(made_up(**settings), sweep_dir(place)), 0.0, ["sports-ray", "tune"])
        self.hand, self.ear = Hand(self.tuning), Ear(self.tuning)

    def begin(self) -> Any:
        """The next trial, as Tune knows it."""
        task = self.hand.suggest("an id")
        assert isinstance(task, dict)
        return SimpleNamespace(config=task, temporary_state=SimpleNamespace(ray_actor=Actor()), error_file=None)

    def tells(self, trial: Any, *told: dict[str, Any]) -> Sequence[str]:
        """What its process has been told, after it has told this."""
        self.ear.on_trial_result(1, [], trial, {"told": list(told), "done": any(one["kind"] == "end" for one in told)})
        return list(trial.temporary_state.ray_actor.wishes)

    def breaks_off(self, trial: Any) -> None:
        self.ear.on_trial_error(1, [], trial)

    def events(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        self.tuning.pass_on(lambda name, event: found.append({"trial": name, **event}))
        return [event for event in found if event["kind"] == kind]

    def begin_again(self, name: str) -> Any:
        """That trial, when its turn comes."""
        while (trial := self.begin()).config["trial"] != name:
            pass
        return trial


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Nodes that have left the cluster."""
    nodes: set[str] = set()
    monkeypatch.setattr(tune, "_dead_nodes", lambda: set(nodes))
    return nodes


@pytest.fixture
def place(tmp_path: Path, dead: set[str]) -> Iterator[Path]:
    with in_memory(tmp_path) as folder:
        yield folder


def test_trial_that_shall_stop_is_told_and_one_that_has_ended_is_not(place: Path) -> None:
    sweep = Sweep(place, halving=RUNGS)
    first, other, second = sweep.begin(), sweep.begin(), sweep.begin()
    assert first.config["trial"].rpartition("-")[0] == second.config["trial"].rpartition("-")[0]
    assert sweep.tells(first, {"kind": "evaluated", **line(1, 0.5)}) == []
    assert sweep.tells(second, {"kind": "evaluated", **line(1, 0.4)}) == [HALVED]
    sweep.tuning.stop("SIGTERM")
    assert sweep.tells(first, {"kind": "step", "step": 3}) == ["SIGTERM"]
    leave(sweep.tuning.conductor.folder, other.config["trial"], [line(9, 0.5)], finished=True)
    assert sweep.tells(other, {"kind": "end", "status": "done", "reason": ""}) == []
    assert sweep.hand.suggest("an id") is None, "no trial starts after a stop"


def test_trial_that_broke_off_comes_again_until_that_has_led_nowhere_too_often(place: Path) -> None:
    sweep = Sweep(place)
    trial = sweep.begin()
    name = trial.config["trial"]
    for _ in range(LIMIT):
        sweep.breaks_off(trial)
        assert [event["trial"] for event in sweep.events("restart")] == [name]
        trial = sweep.begin_again(name)
    sweep.breaks_off(trial)
    (end,) = sweep.events("end")
    assert end["status"] == "failed" and end["reason"].startswith("broke off 4 times in a row without progress")
    assert name not in sweep.tuning.conductor.running


def test_lost_node_is_no_crash_but_one_that_was_dead_before_excuses_nothing(place: Path, dead: set[str]) -> None:
    dead.add("dead before the sweep")
    sweep = Sweep(place)
    trials = [sweep.begin(), sweep.begin()]
    for trial in trials:
        sweep.breaks_off(trial)
    crashes = {name: one.crashes for name, one in sweep.tuning._retries.items()}
    assert set(crashes.values()) == {1}, "a sweep's first crash is one"
    trials = [sweep.begin_again(trial.config["trial"]) for trial in trials]
    dead.add("lost with both of them")
    for trial in trials:
        sweep.breaks_off(trial)
    assert {name: one.crashes for name, one in sweep.tuning._retries.items()} == crashes
    sweep.breaks_off(sweep.begin_again(trials[0].config["trial"]))
    assert sweep.tuning._retries[trials[0].config["trial"]].crashes == 2


def test_trial_whose_node_goes_away_goes_on_elsewhere_however_often(place: Path) -> None:
    sweep = Sweep(place)
    trial = sweep.begin()
    for _ in range(LIMIT + 2):
        assert sweep.tells(trial, {"kind": "preempted"}) == []
        sweep.breaks_off(trial)
        (again,) = sweep.events("restart")
        assert (again["trial"], again["reason"]) == (trial.config["trial"], "its node is going away")
        trial = sweep.begin_again(trial.config["trial"])
    sweep.breaks_off(trial)
    assert sweep.tuning._retries[trial.config["trial"]].crashes == 1, "of a new process nothing is excused"


def test_driver_that_stood_still_has_not_waited_for_its_trials(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `fg` it would else give up trials that are about to save their last step."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    sweep = Sweep(place)
    sweep.begin()
    sweep.tuning.stop("Ctrl-C")
    now += tune.SILENT_SECONDS + 3600
    assert not sweep.tuning.silent()
    looks = 1
    while not sweep.tuning.silent():
        now += tune.POLL_SECONDS
        looks += 1
    assert looks * tune.POLL_SECONDS == pytest.approx(tune.SILENT_SECONDS, abs=1), "those that are silent are found"


@pytest.mark.parametrize("committed", [True, False])
def test_trial_that_leaves_at_the_rung_that_stops_it_comes_again_only_to_reach_the_rung(
    place: Path, committed: bool
) -> None:
    sweep = Sweep(place, halving=RUNGS)
    good, _, bad = sweep.begin(), sweep.begin(), sweep.begin()
    name = bad.config["trial"]
    sweep.tells(good, {"kind": "evaluated", **line(1, 0.5)})
    if committed:
        leave(sweep.tuning.conductor.folder, name, [line(1, 0.4)])
    assert sweep.tells(bad, {"kind": "preempted"}, {"kind": "evaluated", **line(1, 0.4)}) == [HALVED]
    sweep.breaks_off(bad)
    if committed:
        assert [event["reason"] for event in sweep.events("end")] == [HALVED]
        assert sweep.tuning.conductor.told(bad.config["trial"].rpartition("-")[0])[0].stopped_at == 1
    else:
        assert [event["trial"] for event in sweep.events("restart")] == [name]
        again = sweep.begin_again(name)
        assert sweep.tells(again, {"kind": "evaluated", **line(1, 0.4)}) == [HALVED], (
            "the same question, the same answer"
        )
