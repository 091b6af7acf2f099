"""A store that fails for a moment, or for good, under a sweep's driver: no wrong row, no lost decision, no end of the sweep
for what passes by."""

from __future__ import annotations

import dataclasses
import errno
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sports_ray.engine.overview import newest_commit
from sports_ray.errors import FencedError, RunError, StorageError
from sports_ray.store.lease import Owner
from sports_ray.store.local import LocalStorage
from sports_ray.store.storage import storage_error
from sports_ray.sweep import patience
from sports_ray.sweep.conduct import HALVED, Conductor
from tests.support.killed import in_memory
from tests.support.sweeps import HALVED as RUNGS
from tests.support.sweeps import leave, line, made_up, sweep_dir

NAME = "test_vit-000"
FOREVER = 1e9
KINDS = [errno.EIO, errno.ETIMEDOUT]
"""Of one file, and of a storage that is away as a whole."""


class Trouble:
    """Calls on some files fail for a while, by a clock that only waiting moves."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        self.meanwhile: Callable[[], object] = lambda: None
        self._files: dict[tuple[str, str], tuple[int, float]] = {}
        patch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: self.seconds, sleep=self._sleep))
        for call in ("read", "write"):
            patch.setattr(LocalStorage, call, self._watched(call, getattr(LocalStorage, call)))

    def begin(self, call: str, ending: str, seconds: float, kind: int = errno.ETIMEDOUT) -> None:
        self._files[call, ending] = kind, self.seconds + seconds

    def end(self) -> None:
        self._files.clear()

    def _sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.meanwhile()

    def _watched(self, call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(storage: LocalStorage, path: str, *rest: Any) -> Any:
            for (name, ending), (kind, until) in self._files.items():
                if name == call and path.endswith(ending) and self.seconds < until:
                    error = OSError(kind, "trouble")
                    raise storage_error(call, path, error) from error
            return real(storage, path, *rest)

        return watched


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> Trouble:
    return Trouble(monkeypatch)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as folder:
        yield folder


def finished(place: Path) -> Conductor:
    """A sweep of which one trial has come to its end; its driver has not heard of it."""
    folder = sweep_dir(place)
    for last in (8, 9):
        leave(folder, NAME, [line(epoch, epoch / 10) for epoch in range(1, last + 1)], finished=last == 9)
    return Conductor(made_up(), folder)


def ends(conductor: Conductor) -> list[dict[str, Any]]:
    return [one for one in conductor.folder.decisions() if one["kind"] == "end"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["COMMIT.json", "step-00000018-a0002/COMMIT.json"])
@pytest.mark.parametrize("how", ["heard", "caught up"])
def test_end_during_a_moment_without_the_store_is_the_true_one(
    place: Path, trouble: Trouble, kind: int, ending: str, how: str
) -> None:
    conductor = finished(place)
    trouble.begin("read", ending, 60.0, kind)
    if how == "heard":
        conductor.ended(NAME, "done")
    else:
        conductor.catch_up()
    (end,) = ends(conductor)
    assert (end["result"]["epochs"], end["result"]["val_acc1"]) == (9, 0.9)
    assert trouble.seconds >= 60.0


def test_end_that_cannot_be_read_is_an_error_and_recorded_later(place: Path, trouble: Trouble) -> None:
    conductor = finished(place)
    trouble.begin("read", "step-00000018-a0002/COMMIT.json", FOREVER)
    with pytest.raises(StorageError, match="cannot read"):
        conductor.ended(NAME, "done")
    assert 60 <= trouble.seconds <= 120 and not ends(conductor)
    trouble.end()
    again = Conductor(conductor.spec, conductor.folder)
    again.catch_up()
    assert ends(again)[0]["result"]["epochs"] == 9


@pytest.mark.parametrize(("kind", "seconds"), [(errno.EIO, 200.0), (errno.EACCES, 0.0)])
@pytest.mark.parametrize("metrics", [True, False])
def test_one_record_that_stays_unreadable_does_not_stop_the_sweep(
    place: Path, trouble: Trouble, kind: int, seconds: float, metrics: bool
) -> None:
    """A bad sector: its run would pass that commit over. What the metrics know beyond it is in the row."""
    conductor = finished(place)
    if metrics:
        conductor.folder.run_dir(NAME).write_metrics([line(epoch, epoch / 10) for epoch in range(1, 10)])
    trouble.begin("read", "step-00000018-a0002/COMMIT.json", FOREVER, kind)
    conductor.catch_up()
    assert ends(conductor)[0]["result"]["epochs"] == (9 if metrics else 8)
    assert trouble.seconds == pytest.approx(seconds, abs=10)


def test_who_tries_again_is_known_to_wait(place: Path, trouble: Trouble) -> None:
    conductor = finished(place)
    seen: list[bool] = []
    trouble.meanwhile = lambda: seen.append(patience.is_waiting())
    trouble.begin("read", "COMMIT.json", 60.0)
    conductor.ended(NAME, "done")
    assert len(seen) > 3 and all(seen) and not patience.is_waiting()


def test_trial_that_is_done_without_any_evaluation_is_refused(place: Path) -> None:
    conductor = Conductor(made_up(), sweep_dir(place))
    with pytest.raises(RunError, match=f"trial {NAME}; got an end without an evaluation.*cure: .*delete .*{NAME}"):
        conductor.ended(NAME, "done")
    assert not ends(conductor) and conductor.left()["test_vit"] == 4
    conductor.ended(NAME, "failed", "bad settings")
    assert ends(conductor)[0]["result"]["epochs"] == 0, "what failed may have none"


def test_commits_of_a_store_that_is_away_are_not_called_faulty(place: Path, trouble: Trouble) -> None:
    run_dir = finished(place).folder.run_dir(NAME)
    trouble.begin("read", "step-00000018-a0002/COMMIT.json", FOREVER, errno.ETIMEDOUT)
    with pytest.raises(StorageError):
        newest_commit(run_dir)
    trouble.begin("read", "step-00000018-a0002/COMMIT.json", FOREVER, errno.EIO)
    found, _, reason = newest_commit(run_dir)
    assert found is not None and found.step == 16 and "EIO" in reason, "one file, as the engine goes on from here"
    with pytest.raises(StorageError):
        newest_commit(run_dir, sure=True)


def test_trial_that_left_and_cannot_be_read_waits_to_be_started_again(place: Path, trouble: Trouble) -> None:
    conductor = Conductor(made_up(halving=RUNGS), sweep_dir(place))
    leave(conductor.folder, NAME, [line(1, 0.4)])
    conductor.evaluated("test_vit-001", line(1, 0.5))
    assert conductor.evaluated(NAME, line(1, 0.4)) == HALVED
    trouble.begin("read", "COMMIT.json", FOREVER)
    assert conductor.interrupted(NAME) and not ends(conductor)


def test_decision_is_written_again_until_the_store_is_back(place: Path, trouble: Trouble) -> None:
    conductor = Conductor(made_up(halving=RUNGS), sweep_dir(place))
    trouble.begin("write", "decisions.jsonl", 60.0)
    assert conductor.evaluated(NAME, line(1, 0.5)) == ""
    assert [one["score"] for one in conductor.folder.decisions()] == [0.5]
    waited = trouble.seconds
    trouble.begin("write", "decisions.jsonl", FOREVER)
    with pytest.raises(StorageError, match="cannot write"):
        conductor.evaluated(NAME, line(3, 0.5))
    assert 60 <= trouble.seconds - waited <= 120


def test_driver_whose_sweep_was_taken_over_meanwhile_writes_no_more(place: Path, trouble: Trouble) -> None:
    conductor = Conductor(made_up(halving=RUNGS), sweep_dir(place))
    conductor.evaluated(NAME, line(1, 0.5))
    before = bytes(conductor.folder.storage.read("decisions.jsonl"))
    other = dataclasses.replace(Owner.current(), id="another", host="elsewhere", place="elsewhere")
    trouble.meanwhile = lambda: conductor.folder.storage.write("lease.json", other.record())
    trouble.begin("write", "decisions.jsonl", 60.0)
    with pytest.raises(FencedError, match="taken over; got host elsewhere"):
        conductor.evaluated(NAME, line(3, 0.5))
    trouble.end()
    assert bytes(conductor.folder.storage.read("decisions.jsonl")) == before


def test_leaderboard_that_cannot_be_written_ends_no_sweep_and_comes_with_the_next_end(
    place: Path, trouble: Trouble, caplog: pytest.LogCaptureFixture
) -> None:
    conductor = finished(place)
    trouble.begin("write", "leaderboard.json", FOREVER)
    with caplog.at_level(logging.WARNING):
        conductor.ended(NAME, "done")
    assert len(ends(conductor)) == 1 and "leaderboard.not_written" in caplog.text
    assert not conductor.folder.storage.exists("leaderboard.json")
    trouble.end()
    conductor.ended("test_vit-001", "failed", "bad settings")
    assert NAME.encode() in conductor.folder.storage.read("leaderboard.json")
