"""`eval-ensemble` on Ray Data: the bytes of the in-process command, whoever is killed on the way.

The default suite kills a driver and an actor; `pytest -m long tests/cluster/test_eval_ray.py` drivers, actors and nodes at
fifty moments, every other one while a block is being written.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path

import pytest

from sports_ray.errors import SportsRayError
from sports_ray.orchestrate.predict import compute_all_here, compute_on_ray
from sports_ray.predict.blocks import ROWS, Shelf
from sports_ray.predict.compute import Job
from sports_ray.predict.images import list_split
from sports_ray.predict.member import find_member
from sports_ray.predict.views import views_of
from sports_ray.processes import below
from tests.support.evaluating import results
from tests.support.members import make_member, photographs
from tests.support.nodes import Nodes, named_below, raylet
from tests.support.running import Running, Started
from tests.support.shell import sports_ray

COUNT = 4 * 256 + 50
ACTOR = "ray::MapWorker"
MANY, VIEWS = 4, 10
"""Blocks and views of the short test: enough for deaths on the way."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members, and photographs of which one is none."""
    folder = tmp_path_factory.mktemp("place")
    photographs(folder / "set", COUNT)
    (folder / "set" / "test" / "golf" / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    make_member(folder / "runs", "a", seed=1)
    make_member(folder / "runs", "b", model="test_efficientnet", size=40, seed=2)
    return folder


def words_of(place: Path, workers: str, *names: str, data: str = "set") -> tuple[str, ...]:
    runs = [word for name in names or ("a", "b") for word in ("--run", str(place / "runs" / name))]
    fixed = ("--data", str(place / data), "--tta", "10crop", "--store", "store", "--json")
    return ("eval-ensemble", *fixed, *runs, "--workers", workers)


@pytest.fixture(scope="module")
def expected(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("expected")
    shown = sports_ray(folder, *words_of(place, "0"))
    assert shown.code == 0, shown.err
    return results(folder / "store")


def blocks_of(folder: Path) -> dict[Path, int]:
    """Blocks on disk with the time at which each was written."""
    return {path: path.stat().st_mtime_ns for path in (folder / "store" / "predictions").rglob("*.parquet")}


def kill_group(pids: set[int] | list[int]) -> int:
    killed = 0
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed += 1
    return killed


def schedulers(pids: list[int]) -> set[int]:
    """How Linux schedules the threads of these processes."""
    found = set()
    for thread in (path.name for pid in pids for path in Path(f"/proc/{pid}/task").glob("*")):
        with suppress(ProcessLookupError):
            found.add(os.sched_getscheduler(int(thread)))
    return found


def test_killed_driver_and_killed_actor_end_in_the_bytes_of_the_in_process_command(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None
) -> None:
    """Both drivers join one cluster, so that the dead one's actors are there when the other begins."""
    import ray

    place = tmp_path_factory.mktemp("place")
    photographs(place / "set", 2 * MANY * ROWS)
    make_member(place / "runs", "a", seed=1)
    assert sports_ray(place / "whole", *words_of(place, "0", "a"), timeout=180.0).code == 0
    joined = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with Running(tmp_path, *words_of(place, "1", "a"), environment=joined) as running:
        assert running.wait_until(lambda: blocks_of(tmp_path)), running.end().err
        assert running.send(signal.SIGKILL) and running.end().code == -signal.SIGKILL
    kept = blocks_of(tmp_path)
    assert 0 < len(kept) < 2 * MANY * VIEWS and not (tmp_path / "store" / "evaluations").exists()
    with Running(tmp_path, *words_of(place, "2", "a"), environment=joined) as running:
        assert running.wait_until(lambda: running.events("block")), running.end().err
        assert os.SCHED_OTHER in schedulers(named_below(os.getpid(), ACTOR)), "what computes yields to nobody"
        assert kill_group(named_below(os.getpid(), ACTOR)[:1]) == 1
        shown = running.end()
    assert shown.code == 0 and not shown.err, shown.err
    assert results(tmp_path / "store") == results(place / "whole" / "store")
    assert {path: written for path, written in blocks_of(tmp_path).items() if path in kept} == kept


def test_error_that_no_retry_mends_is_told_as_without_ray(place: Path, tmp_path: Path, ray_session: None) -> None:
    """A worker's own: of its model, and of what it writes."""
    member = find_member("a", str(place / "runs"))
    images, views = list_split(str(place / "set"), "test", member.classes), tuple(views_of("none", member.spec))
    shelf = Shelf.of(str(tmp_path), "a", {}, len(images), len(member.classes))
    job = Job(member, images, views, shelf, {0: [view.name for view in views]}, "cpu", 32)
    (tmp_path / "file").write_bytes(b"")
    for broken in (
        replace(job, member=replace(member, sha256="0" * 64)),
        replace(job, shelf=replace(shelf, store=str(tmp_path / "file"))),
    ):
        told = []
        for compute in (compute_all_here, partial(compute_on_ray, workers="1")):
            with pytest.raises(SportsRayError) as caught:
                compute([broken], lambda event: None)
            told.append((type(caught.value), str(caught.value)))
        assert told[0] == told[1] and "Traceback" not in told[0][1]


@pytest.mark.long
@pytest.mark.timeout(180)
def test_driver_killed_with_its_cluster_goes_on_in_another_and_a_finished_evaluation_starts_none(
    place: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    photographs(place / "many", 2 * MANY * ROWS)
    whole = tmp_path_factory.mktemp("whole")
    assert sports_ray(whole, *words_of(place, "0", "b", data="many")).code == 0
    with Started(tmp_path, *words_of(place, "1:2", "b", data="many")) as running:
        assert running.wait_until(lambda: blocks_of(tmp_path)), running.end().err
        # With all that it has started: orphans would go on for a second, and write what is missing.
        assert kill_group(list(below(running.pid))) > 3
        running.end()
    kept = blocks_of(tmp_path)
    assert 0 < len(kept) < 2 * MANY * VIEWS and not (tmp_path / "store" / "evaluations").exists()
    with Started(tmp_path, *words_of(place, "2", "b", data="many")) as running:
        assert running.wait_until(lambda: len(blocks_of(tmp_path)) > len(kept) + VIEWS), running.end().err
        assert kill_group(named_below(running.pid, ACTOR)[:1]) == 1
        shown = running.end()
    assert shown.code == 0 and not shown.err, shown.err
    assert results(tmp_path / "store") == results(whole / "store")
    assert {path: written for path, written in blocks_of(tmp_path).items() if path in kept} == kept
    start = time.monotonic()
    with Started(tmp_path, *words_of(place, "1:8", "b", data="many")) as running:
        shown = running.end()
    assert shown.code == 0 and time.monotonic() - start < 3.0, "a finished evaluation starts no Ray"
    assert "finished" in {event["event"] for event in shown.events}


def wait_for_commit(folder: Path, ended: Callable[[], bool]) -> None:
    """Returns while a block is being written, as its temporary file tells, or when the command has ended."""
    predictions = folder / "store" / "predictions"
    while not ended():
        for view in predictions.glob("*/*"):
            with suppress(OSError):
                if any(name.endswith(".tmp") for name in os.listdir(view)):
                    return


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tenth", range(10))
def test_five_deaths_of_drivers_actors_and_nodes_and_every_byte_is_right(
    place: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tenth: int
) -> None:
    """Ten times five: fifty moments, every other one while a block is being written."""
    dice, deaths, folder = random.Random(date.today().toordinal() + tenth), 0, tmp_path
    with Nodes(2) as nodes:
        monkeypatch.setenv("RAY_ADDRESS", nodes.cluster.address)
        for attempt in range(60):
            with Started(folder, *words_of(place, "1:2")) as running:
                running.wait_until(lambda running=running: running.events("work"))
                if deaths % 2 == 0:
                    wait_for_commit(folder, lambda running=running: running.code is not None)
                else:
                    time.sleep(dice.uniform(1.0, 9.0))
                kind = dice.choice(["driver", "actor", "node"])
                if running.code is None:
                    deaths += kill_one(kind, running, nodes)
                shown = running.end()
            assert shown.code in (0, -signal.SIGKILL), shown.err
            if shown.code == 0:
                assert results(folder / "store") == expected, (attempt, deaths)
                folder = tmp_path / str(attempt)
                if deaths >= 5:
                    return
    raise AssertionError(f"only {deaths} deaths")


def kill_one(kind: str, running: Started, nodes: Nodes) -> int:
    """Kills the driver, an actor or a node with all that is on it; how many died."""
    if kind == "driver":
        return int(running.send(signal.SIGKILL))
    if kind == "actor":
        return kill_group([pid for node in nodes.nodes for pid in named_below(raylet(node), ACTOR)][:1])
    nodes.kill(nodes.nodes[0])
    nodes.add()
    return 1
