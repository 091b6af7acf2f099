"""The commit interval wastes hardly more than the best one would, and the stop comes in time: simulated over 1,000 sessions."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import numpy as np
import pytest

from sports_ray.engine.interval import (
    FIRST_INTERVAL,
    LEAST_INTERVAL,
    MOST_INTERVAL,
    CommitCost,
    Costs,
    commit_interval,
    stop_reserve,
)

BUDGET = 12 * 3600.0
SESSIONS = 1000
STEP = 0.5
WRITING = 3.0
"""Seconds until a commit is safe, beside the training."""
END = 1.0


class Simulated:
    """One run in sessions of at most 12 h, each of which may die at any time; commits when the engine's own functions say.

    Nothing of the engine is imitated: what it measures goes into its `Costs`, from a session's timings to the next."""

    def __init__(self, cost: float, mtbf: float, seed: int = 0) -> None:
        self.cost, self.mtbf = cost, mtbf
        self.draw = np.random.default_rng(seed)
        self.timings: list[dict[str, Any]] = []
        self.lost = self.paid = self.idle = self.latest = 0.0
        self.lifetimes = self.draw.exponential(mtbf, SESSIONS)
        self.noise = iter(np.resize(self.draw.uniform(-1.0, 1.0, 100_003), 2_000_000).tolist())

    def sessions(self) -> Simulated:
        for lifetime in self.lifetimes:
            self._session(lifetime)
        return self

    def _session(self, lifetime: float) -> None:
        self.timings = self.timings[-60:] + [{"kind": "start"}]
        costs = Costs()
        costs.learn(self.timings)
        for noise in islice(self.noise, 31):
            costs.took((1 + 0.2 * noise) * STEP, False)
        now = copied = safe = 0.0
        while True:
            due = copied + max(commit_interval(costs.cost.mean, self.mtbf), WRITING)
            stop = BUDGET - costs.reserve()
            if min(due, stop) + STEP >= lifetime:
                self.lost += lifetime - (copied if copied + WRITING <= lifetime else safe)
                return
            if stop <= due:
                self._stop(costs, stop)
                return
            safe, copied = copied, due
            now = due + self._commit(costs)
            copied = now

    def _commit(self, costs: Costs) -> float:
        """Training is stalled for half of what a commit costs; the step beside the writing takes the other half more."""
        cost = (1 + 0.5 * next(self.noise)) * self.cost
        costs.cost.begin(cost / 2)
        costs.took((1 + 0.2 * next(self.noise)) * STEP + cost, False)
        costs.commit = max(costs.commit, cost / 2 + WRITING)
        self.timings.append({"kind": "commit", "stall": cost / 2, "seconds": WRITING, "excess": costs.cost.last})
        self.paid += cost
        return cost

    def _stop(self, costs: Costs, decided: float) -> None:
        """The decision falls just after a look: a whole step passes before it, and one follows it."""
        steps = sum((1 + 0.2 * noise) * STEP for noise in islice(self.noise, 2))
        ended = decided + steps + (1.5 + 0.5 * next(self.noise)) * WRITING + END
        self.idle += BUDGET - ended
        self.latest = max(self.latest, ended)

    @property
    def waste(self) -> float:
        return self.lost + self.paid

    def waste_at(self, interval: float) -> float:
        """What a fixed interval would have wasted in the same sessions, at the mean cost."""
        stop = BUDGET - stop_reserve(1.2 * STEP + 1.5 * self.cost, 0.75 * self.cost + WRITING, 0.0)
        lives = np.minimum(self.lifetimes, stop)
        commits = np.floor(lives / (interval + self.cost))
        since = lives - commits * (interval + self.cost)
        lost = np.where(since < WRITING, np.where(commits > 0, since + interval, since), since)
        return float((lost * (self.lifetimes < stop)).sum() + commits.sum() * self.cost)


@pytest.mark.parametrize(
    ("cost", "mtbf"),
    [
        (0.2, 3600.0),
        (1.0, 4 * 3600.0),
        *(
            pytest.param(cost, 3600.0 * hours, marks=pytest.mark.long)
            for cost in (0.05, 0.2, 1.0, 5.0, 20.0, 60.0)
            for hours in (1, 2, 4, 8, 24)
        ),
    ],
)
def test_lost_work_and_overhead_are_within_a_twentieth_of_the_best_interval_s(cost: float, mtbf: float) -> None:
    run = Simulated(cost, mtbf).sessions()
    intervals = np.geomspace(LEAST_INTERVAL, MOST_INTERVAL, 300)
    best = min(run.waste_at(interval) for interval in intervals)
    assert run.waste <= 1.05 * best, f"{run.waste / best:.3f} of the best"
    # The comparison can fail: intervals three times as long or as short waste a good deal more.
    for wrong in (3.5, 1 / 3.5):
        assert run.waste_at(commit_interval(cost, mtbf) * wrong) > 1.3 * best


def test_no_session_overruns_and_little_time_is_left_over() -> None:
    run = Simulated(1.0, 24 * 3600.0, seed=1).sessions()
    assert 0 < run.latest <= BUDGET
    survivors = (run.lifetimes > BUDGET).sum()
    assert survivors > 300 and run.idle / survivors < 12


@pytest.mark.parametrize(("cost", "mtbf"), [(0.2, 14400.0), (5.0, 3600.0), (30.0, 86400.0)])
def test_interval_is_where_the_expected_waste_is_least(cost: float, mtbf: float) -> None:
    def waste(interval: float) -> float:
        """Per second of training: the commits' cost, and half an interval for each death (Young 1974, eq. 3)."""
        return cost / interval + interval / (2 * mtbf)

    found = commit_interval(cost, mtbf)
    assert found == pytest.approx(math.sqrt(2 * cost * mtbf))
    assert waste(found) <= min(waste(found * factor) for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2))


def test_interval_stays_within_its_bounds_and_the_first_commit_comes_soon() -> None:
    assert commit_interval(0.0, 14400.0) == LEAST_INTERVAL
    assert commit_interval(1e-9, 60.0) == LEAST_INTERVAL
    assert commit_interval(1e9, 1e9) == MOST_INTERVAL
    assert commit_interval(None, 14400.0) == FIRST_INTERVAL


def test_cost_of_a_commit_is_what_steps_beside_it_take_longer_stall_included() -> None:
    cost = CommitCost()
    assert cost.mean is None
    for seconds in (1.0, 1.1, 0.9, 1.0):
        cost.step(seconds, False)
    cost.begin(0.2)
    cost.step(1.3, True)  # the stall, and a slower step
    cost.step(1.2, False)
    cost.step(5.0, False)  # no commit under way: a usual step, though a slow one
    assert cost.mean == pytest.approx(0.5)
    cost.begin(0.3)
    cost.step(0.5, False)  # a fast step, by chance
    assert cost.mean == pytest.approx((0.2 + 0.3) / 2), "not less than the stalls, which were paid all the same"


def test_cost_measured_from_noisy_steps_is_the_true_one() -> None:
    draw, cost = np.random.default_rng(3), CommitCost()
    for _ in range(40):
        for seconds in draw.normal(0.4, 0.02, 20):
            cost.step(seconds, False)
        cost.begin(0.05)
        cost.step(draw.normal(0.4, 0.02) + 0.05 + 0.08, True)
        cost.step(draw.normal(0.4, 0.02) + 0.08, False)
    assert cost.mean == pytest.approx(0.21, abs=0.03)


def test_reserve_has_room_for_the_slowest_of_all_that_follows() -> None:
    costs = Costs()
    costs.took(9.0, False)  # the first step, with all that is made once
    for seconds in (1.0, 4.0, 2.0):
        costs.took(seconds, False)
    costs.batch, costs.commit, costs.end = 3.0, 7.0, 0.5
    # Decided just too late: one step passes, one follows; a commit is under way, and one follows.
    assert costs.reserve() >= 2 * 4.0 + 2 * 7.0 + 0.5
    costs.batch = 6.0
    assert costs.reserve() >= 2 * 6.0 + 2 * 7.0 + 0.5


def test_next_session_knows_what_the_last_ones_took_before_its_first_step() -> None:
    slow = {"kind": "end", "slowest": {"first": 20.0, "step": 2.0, "batch": 3.0}, "end_seconds": 1.5}
    commit = {"kind": "commit", "stall": 0.1, "seconds": 4.0, "excess": 0.7}
    timings = [{"kind": "start"}, commit, slow, {"kind": "start"}]
    costs = Costs()
    costs.learn(timings)
    assert (costs.first, costs.step, costs.batch, costs.end) == (20.0, 2.0, 3.0, 1.5)
    assert costs.commit == pytest.approx(4.1) and costs.cost.mean == pytest.approx(0.7)
    assert costs.reserve() >= 2 * 20.0
    costs.took(15.0, False)
    assert costs.reserve() < 2 * 20.0, "a first step is done once"


def test_an_outlier_is_forgotten_after_three_sessions() -> None:
    """Else a store that once took an hour for a commit would eat every later time budget, and nothing would ever be done."""
    timings: list[dict[str, Any]] = [{"kind": "start"}, {"kind": "commit", "stall": 0.1, "seconds": 3600.0}]
    seen = []
    for _ in range(4):
        timings.append({"kind": "start"})
        costs = Costs()
        costs.learn(timings)
        seen.append(costs.commit > 3600)
    assert seen == [True, True, True, False]
