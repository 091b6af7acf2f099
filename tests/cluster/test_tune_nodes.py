"""A sweep on several real nodes, of which one gives notice: its trial commits, leaves it and goes on elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from sports_ray.sweep.folder import SweepDir
from tests.cluster.test_tune import boards, expected, trial_processes, words
from tests.support.nodes import Nodes, raylet
from tests.support.running import Started


@pytest.mark.long
@pytest.mark.timeout(300)
def test_trial_on_a_node_that_gives_notice_loses_not_one_step_and_no_other_begins_there(
    photos: Path, tmp_path: Path
) -> None:
    folder = SweepDir(str(tmp_path / "runs" / "one"))
    # No commit falls due by itself: what is safe was committed for the notice.
    command = words(photos, "--set", "store.every_steps=100000", samples=1, epochs=60)
    with Nodes(2) as nodes, Started(tmp_path, *command, environment=nodes.environment) as driver:
        assert driver.wait_until(lambda: len({one["trial"] for one in driver.events("evaluated")}) == 2), driver.end()
        leaving = next(node for node in nodes.nodes if trial_processes(raylet(node)))
        nodes.drain(leaving, seconds=120)
        assert driver.wait_until(lambda: driver.events("restart")), driver.end()
        nodes.add()
        (trial,) = [event["trial"] for event in driver.events("preempted")]
        assert driver.wait_until(lambda: len([one for one in driver.events("start") if one["trial"] == trial]) == 2)
        assert not trial_processes(raylet(leaving))
        nodes.kill(leaving)
        shown = driver.end()
    assert shown.code == 0 and not shown.err, shown.err
    (again,) = [event for event in shown.events if event["event"] == "restart"]
    assert (again["trial"], again["reason"]) == (trial, "its node is going away")
    timings = folder.run_dir(trial).read_timings()
    steps = {kind: [line["step"] for line in timings if line["kind"] == kind] for kind in ("start", "end")}
    assert steps["start"][1] == steps["end"][0] > 0, "not one step was lost"
    assert boards(folder) == expected(folder, tmp_path / "alone")
