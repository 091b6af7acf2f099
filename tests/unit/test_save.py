"""Claims about commits of a session whose store fails: what the writer refuses is not taken for saved, nor lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sports_ray.data.demo import draw_demo
from sports_ray.engine import save
from sports_ray.engine.link import InProcessLink
from sports_ray.engine.save import commit, finish, lost
from sports_ray.engine.session import Session, Snapshot, open_session
from sports_ray.engine.world import World
from sports_ray.errors import StorageError
from sports_ray.orchestrate.plan import make_plan, write_record
from sports_ray.store.commit import newest, read_commit
from sports_ray.store.writer import AsyncWriter, Job
from tests.support.runs import small_config

KEPT, LAST = 4, 6
"""Steps: the end of the second epoch, which is to be kept, and that of the third."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "set"
    draw_demo(folder, classes=4, per_class=6, size=40, seed=3)
    return folder


@pytest.fixture
def session(photos: Path, tmp_path: Path) -> Iterator[Session]:
    plan = make_plan(small_config(photos, tmp_path, loop__epochs=6, loop__eval_every=2, store__keep_epochs=[2]))
    write_record(plan)
    session = open_session(plan.config, plan.manifest, plan.run_dir, InProcessLink(lambda event: None), World(), "")
    yield session
    assert session.writer is not None
    session.writer.close(10)


class Collision:
    """The commit of step 4 fails once, waits, and its next try begins just while a newer state is copied.

    The try lasts until `go_on`: that is set by the first refusal, where `ends` says so, and its end is waited for."""

    def __init__(self, session: Session, patch: pytest.MonkeyPatch, ends: bool) -> None:
        failed, self._begun, self.go_on = threading.Event(), threading.Event(), threading.Event()
        self._tries, self._ends = 0, ends
        self.copies: list[int] = []
        # An hour: the back-off ends when this test says so.
        self.writer = session.writer = AsyncWriter(lambda error, failures: failed.set(), first_delay=3600.0)
        self._submit, self._write, self._copy = self.writer.submit, save.write_commit, save.take_snapshot
        patch.setattr(save, "write_commit", self._write_commit)
        session.progress.step, session.progress.evaluated, session.unsaved = KEPT, KEPT, True
        commit(session)
        assert failed.wait(10) and not self.writer.busy and self.writer.pending
        patch.setattr(save, "take_snapshot", self._take_snapshot)
        patch.setattr(self.writer, "submit", self._submitted)
        session.progress.step, session.progress.evaluated, session.unsaved = LAST, LAST, True

    def _write_commit(self, *arguments: Any) -> object:
        self._tries += 1
        if self._tries == 1:
            raise StorageError("cannot write x", got="ENOSPC")
        if self._tries == 2:
            self._begun.set()
            self.go_on.wait(10)
        return self._write(*arguments)

    def _take_snapshot(self, session: Session) -> Snapshot:
        self.copies.append(session.progress.step)
        with self.writer._changed:
            self.writer._hurry = True
            self.writer._changed.notify_all()
        assert self._begun.wait(10)
        return self._copy(session)

    def _submitted(self, job: Job) -> bool:
        taken = self._submit(job)
        if not taken and self._ends:
            self.go_on.set()
            while self.writer.busy:
                time.sleep(0.001)
        return taken


def steps_of(session: Session) -> set[int]:
    return {int(entry.name[5:13]) for entry in session.run_dir.storage.list("checkpoints") if entry.is_dir}


@pytest.mark.parametrize("reason", ["asked to stop", ""])
def test_last_state_is_safe_though_an_older_commits_next_try_began_while_it_was_copied(
    session: Session, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    collision = Collision(session, monkeypatch, ends=True)
    assert finish(session, reason) == reason
    assert lost(session) == (0, "") and session.committed == LAST and not session.unsaved
    assert collision.copies == [LAST], "the copy that was refused is the one to be written"
    assert read_commit(session.run_dir.storage, LAST).state["step"] == LAST
    assert bool(session.run_dir.describe_weights("last")) == (not reason)


@pytest.mark.parametrize("best", [False, True])
def test_commit_that_the_writer_refuses_is_not_taken_for_submitted(
    session: Session, monkeypatch: pytest.MonkeyPatch, best: bool
) -> None:
    collision = Collision(session, monkeypatch, ends=False)
    session.progress.best_step = LAST if best else 0
    before = session.submitted_at
    commit(session)
    assert session.unsaved and session.submitted_at == before
    assert session.unsaved_best is None or best
    collision.go_on.set()
    assert collision.writer.wait(10) and session.committed == KEPT
    session.progress.step = LAST + 1
    commit(session)
    assert collision.writer.wait(10) and not session.unsaved and session.submitted_at > before
    assert steps_of(session) == ({KEPT, LAST, LAST + 1} if best else {KEPT, LAST + 1})
    assert session.unsaved_best is None and session.unsaved_kept == []


def test_best_that_was_refused_is_submitted_when_the_older_commit_is_done(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    collision = Collision(session, monkeypatch, ends=True)
    session.progress.best_step = LAST
    commit(session)
    assert not session.unsaved and collision.writer.wait(10), "the state to be kept was safe twice"
    assert session.committed == LAST and steps_of(session) == {KEPT, LAST} and collision.copies == [LAST]
    assert session.unsaved_best is None and session.unsaved_kept == []


def test_pause_before_the_first_step_has_lost_nothing(session: Session) -> None:
    assert session.progress.step == 0 and session.committed is None
    assert lost(session) == (0, "")
    session.progress.step = 3
    assert lost(session) == (3, "check the storage")


def test_other_ranks_are_not_kept_waiting_for_a_store_beyond_what_a_sum_may_take(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit of hundreds of gigabytes does not count as failing for hours."""
    monkeypatch.setattr(save, "LONGEST_WAIT", 0.05)
    assert session.writer is not None
    go_on, finished = threading.Event(), threading.Event()

    def slow() -> None:
        go_on.wait(5)
        finished.set()

    assert session.writer.submit(slow)
    session.submitted_at, session.submitted_bytes, session.unsaved = time.monotonic(), 10**12, True
    session.progress.step = session.progress.evaluated = session.progress.best_step = LAST
    commit(session)
    assert not finished.is_set() and session.unsaved and session.unsaved_best is not None
    go_on.set()
    assert finish(session, "asked to stop") == "asked to stop"
    assert newest(session.run_dir.storage)[0].step == LAST  # type: ignore[union-attr]
