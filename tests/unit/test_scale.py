"""The simulation of scale says what theory says where there is one, and its limits are where it says they are."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from sports_ray.bench.scale import (
    BEARABLE,
    Constants,
    Setting,
    between_deaths,
    interval_seconds,
    limits,
    restart_seconds,
    simulate,
    write_seconds,
)  # fmt: skip
from sports_ray.bench.scale_measure import measure
from sports_ray.engine.save import stuck_after

COSTS = Constants(
    restart_seconds=6.4, write_gb_s=0.7, read_gb_s=0.9, copy_gb_s=4.0, order_seconds=1e-7, start_seconds=1e-6,
    worker_bytes=400, plan_seconds=3e-5, plan_bytes=2000,
)  # fmt: skip
WEEKS = Setting(images=1_000_000, storm_hours=0, days=300)


def test_equal_seeds_give_equal_runs_and_all_time_is_accounted_for() -> None:
    for setting in (
        Setting(),
        Setting(one_reader=False),
        Setting(workers=1024),
        Setting(workers=8, storm_hours=1),
        Setting(workers=1024, one_reader=False),
    ):
        outcome = simulate(setting, COSTS, 3)
        assert outcome == simulate(setting, COSTS, 3) != simulate(setting, COSTS, 4)
        shares = outcome[:5]
        assert sum(shares) == pytest.approx(1.0) and min(shares) >= 0 and outcome.deaths > 0


def test_where_nothing_dies_only_the_copies_cost() -> None:
    outcome = simulate(replace(WEEKS, node_hours=1e9), COSTS)
    stall = WEEKS.checkpoint_gb / COSTS.copy_gb_s / interval_seconds(replace(WEEKS, node_hours=1e9), COSTS)
    assert outcome.deaths == outcome.resizes == 0 and outcome.useful == pytest.approx(1 - stall)


@pytest.mark.parametrize("node_hours", [100.0, 1000.0])
def test_rare_deaths_cost_what_young_says(node_hours: float) -> None:
    """Half an interval, what is being written, and the restart, at each death; nodes are replaced at once."""
    setting = replace(WEEKS, node_hours=node_hours, return_minutes=1e-6, resize_seconds=1e-3)
    outcome, mtbf = simulate(setting, COSTS, 1), between_deaths(setting)
    interval, writing, restart = (f(setting, COSTS) for f in (interval_seconds, write_seconds, restart_seconds))
    assert outcome.lost == pytest.approx((interval / 2 + writing) / mtbf, rel=0.15)
    # Each death is followed by a resize: the node that came back is taken in.
    assert outcome.down == pytest.approx(restart / mtbf, rel=0.15)
    assert outcome.deaths == pytest.approx(setting.days * 86_400 / mtbf, rel=0.2)


def test_limits_are_where_they_say_and_the_nearest_comes_first() -> None:
    found = limits(Setting(), COSTS)
    assert [limit.now for limit in found] == sorted((limit.now for limit in found), reverse=True)
    named = {limit.name: limit for limit in found}
    for name, one in (("restart", True), ("restart_all_read", False)):
        workers = int(named[name].value)
        strains = [
            restart_seconds(there, COSTS) / (BEARABLE * between_deaths(there))
            for there in (replace(Setting(), workers=count, one_reader=one) for count in (workers - 1, workers))
        ]
        assert strains[0] < 1 <= strains[1]
    assert named["restart_all_read"].value < named["restart"].value
    full = replace(Setting(), images=int(named["worker_memory"].value))
    assert {limit.name: limit for limit in limits(full, COSTS)}["worker_memory"].now == pytest.approx(1.0)


@pytest.mark.long
def test_constants_are_measured_on_the_real_parts() -> None:
    costs = asdict(measure(20_000, 64))
    assert all(value > 0 for value in costs.values())
    assert 100 < costs["worker_bytes"] < 5_000 and costs["order_seconds"] < 1e-5 < costs["plan_seconds"] * 10


def test_a_large_commit_is_waited_for_longer_than_a_small_one() -> None:
    assert stuck_after(54_000_000, 0.2) == 60 and stuck_after(54_000_000, 30) == 300
    assert stuck_after(20_000_000_000, 0.0) == 1000
