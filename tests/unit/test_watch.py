"""What counts as a crash, how many are too many, and how a cluster's cores are shared out: pure decisions."""

from __future__ import annotations

from typing import Any

import pytest

from sports_ray.errors import TrainingError
from sports_ray.orchestrate.cluster import shared_cores
from sports_ray.orchestrate.watch import Retries, Watch


def workers(size: int) -> dict[str, Any]:
    return {"kind": "workers", "size": size}


def step(committed: int) -> dict[str, Any]:
    return {"kind": "step", "committed": committed}


def watch(limit: int) -> Watch:
    one = Watch(Retries(limit))
    one.begin(set())
    assert one.take(workers(2), set) == "", "the first attempt has no reason"
    return one


def test_crashes_are_limited_in_a_row_and_forgiven_by_progress() -> None:
    one = watch(limit=2)
    for committed in (0, 0, 7, 7, 9):
        one.take(step(committed), set)
        assert one.take(workers(2), set) == "a worker died"
    one.take(workers(2), set)
    with pytest.raises(TrainingError, match="workers died 3 times in a row with no progress past step 9"):
        one.take(workers(2), set)


def test_lost_nodes_and_other_numbers_of_workers_are_no_crashes() -> None:
    one = watch(limit=0)
    assert one.take(workers(2), lambda: {"a"}) == "a node was lost"
    assert one.take(workers(1), lambda: {"a", "b"}) == "a node was lost, 1 worker now, 2 before"
    assert one.take(workers(2), lambda: {"a", "b"}) == "2 workers now, 1 before"
    with pytest.raises(TrainingError, match="cluster.max_failures = 0"):
        one.take(workers(2), lambda: {"a", "b"})


def test_a_new_fit_forgets_the_notice_and_says_if_it_has_other_workers() -> None:
    one = watch(limit=0)
    one.take({"kind": "preempted", "rank": 1}, set)
    assert one.preempted
    one.begin({"a"})
    assert not one.preempted and not one.alive
    assert one.take(workers(1), lambda: {"a"}) == "1 worker now, 2 before"


def test_silence_is_counted_from_the_last_call_of_a_worker() -> None:
    one = watch(limit=0)
    before = one.heard
    one.called(0)
    assert one.heard == before, "nobody has called since"
    one.called(1)
    assert one.heard > before


@pytest.mark.parametrize(
    ("nodes", "count", "gpus", "cores"),
    [
        ([{"CPU": 2}], 1, False, 2),
        ([{"CPU": 2}], 2, False, 1),
        ([{"CPU": 1}, {"CPU": 1}, {}], 2, False, 1),
        ([{"CPU": 16}, {"CPU": 16}], 2, False, 16),
        ([{"CPU": 16}, {"CPU": 8}], 2, False, 8),
        ([{"CPU": 16}, {"CPU": 4}], 2, False, 8),
        ([{"CPU": 16, "GPU": 1}, {"CPU": 16, "GPU": 1}], 2, True, 16),
        ([{"CPU": 16, "GPU": 4}, {"CPU": 64}], 4, True, 4),
        ([{"CPU": 4}], 8, False, 1),
        ([{}], 1, False, 1),
        ([], 1, False, 1),
    ],
)
def test_cores_of_a_cluster_are_shared_out(nodes: list[dict[str, float]], count: int, gpus: bool, cores: int) -> None:
    assert shared_cores(nodes, count, gpus) == cores
