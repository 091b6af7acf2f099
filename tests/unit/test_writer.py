"""Claims about commits in the background: one at a time, tried again, and never a fenced one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sports_ray.errors import FencedError, StorageError
from sports_ray.store.attempt import begin_attempt
from sports_ray.store.commit import newest, write_commit
from sports_ray.store.storage import open_storage
from sports_ray.store.writer import AsyncWriter


@pytest.fixture
def writer() -> Iterator[AsyncWriter]:
    writer = AsyncWriter(first_delay=0.01, last_delay=0.05)
    yield writer
    writer._closing = True


def failing(times: int, done: list[str], name: str = "job") -> Callable[[], None]:
    left = [times]

    def job() -> None:
        if left[0]:
            left[0] -= 1
            raise StorageError("cannot write x", got="ENOSPC")
        done.append(name)

    return job


def test_job_runs_beside_training_and_a_second_is_refused_meanwhile(writer: AsyncWriter) -> None:
    started, go_on = threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        go_on.wait()

    assert not writer.busy and not writer.pending and writer.wait(0)
    assert writer.submit(job)
    assert writer.busy and started.wait(10)
    assert not writer.submit(job) and not writer.wait(0.01)
    go_on.set()
    assert writer.wait(10) and not writer.busy and writer.written == 1
    assert writer.seconds > 0.0


def test_failing_storage_is_tried_again_and_reported(writer: AsyncWriter) -> None:
    reports: list[tuple[str, int]] = []
    writer._on_error = lambda error, failures: reports.append((error.got, failures))  # type: ignore[arg-type, func-returns-value]
    done: list[str] = []
    assert writer.submit(failing(3, done)) and writer.wait(10)
    assert done == ["job"] and reports == [("ENOSPC", 1), ("ENOSPC", 2), ("ENOSPC", 3)]
    assert writer.last_error is None and writer.failing_seconds == 0.0


def test_newer_work_takes_the_place_of_a_job_that_waits_for_its_next_try() -> None:
    failed = threading.Event()
    writer = AsyncWriter(lambda error, failures: failed.set(), first_delay=60)
    done: list[str] = []
    assert writer.submit(failing(1, done, "old")) and failed.wait(10)
    assert not writer.busy and writer.pending and writer.failing_seconds > 0 and "ENOSPC" in str(writer.last_error)
    assert writer.submit(failing(0, done, "new"))
    assert not done, "a newer job does not cut the back-off short"
    start = time.monotonic()
    assert writer.close(10) and done == ["new"]
    assert time.monotonic() - start < 30, "but waiting for it does"


@pytest.mark.parametrize("error", [FencedError("attempt 1 has been replaced"), ZeroDivisionError()])
def test_what_no_retry_mends_is_raised_on_the_training_thread(writer: AsyncWriter, error: Exception) -> None:
    tries = []

    def job() -> None:
        tries.append(1)
        raise error

    assert writer.submit(job)
    with pytest.raises(type(error)):
        writer.wait(10)
    for again in (writer.check, lambda: writer.submit(job), writer.close):
        with pytest.raises(type(error)):
            again()  # type: ignore[operator]
    assert tries == [1]


def test_callback_that_fails_is_not_swallowed() -> None:
    def callback(error: StorageError, failures: int) -> None:
        raise KeyError("callback")

    writer = AsyncWriter(callback, first_delay=0.01)
    writer.submit(failing(1, []))
    with pytest.raises(KeyError):
        writer.wait(10)


def test_closing_gives_up_a_job_that_still_fails(writer: AsyncWriter) -> None:
    writer.submit(failing(10**9, []))
    assert not writer.close(0.1)
    writer._thread.join(10)  # a try that was under way is not waited for
    assert not writer.submit(lambda: None) and not writer._thread.is_alive()


def test_training_goes_on_while_the_storage_is_away_and_saves_when_it_is_back(tmp_path: Path) -> None:
    storage, away = open_storage(str(tmp_path / "run")), tmp_path / "away"
    token = begin_attempt(storage, {}).token
    state = {"model": {"w": torch.ones(10)}}
    failed = threading.Event()
    writer = AsyncWriter(lambda error, failures: failed.set(), first_delay=0.01, last_delay=0.02)
    (tmp_path / "run").rename(away)
    assert writer.submit(lambda: write_commit(storage, 10, token, state, {}))
    assert failed.wait(10)
    writer.check()
    away.rename(tmp_path / "run")
    assert writer.close(10)
    assert newest(storage)[0].step == 10  # type: ignore[union-attr]


def test_fenced_writer_stops_and_the_new_attempt_stands(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "run"))
    state = {"model": {"w": torch.ones(10)}}
    old = begin_attempt(storage, {}).token
    write_commit(storage, 10, begin_attempt(storage, {}).token, state, {})
    writer = AsyncWriter()
    assert writer.submit(lambda: write_commit(storage, 20, old, state, {}))
    with pytest.raises(FencedError, match="attempt 2"):
        writer.close(10)
    assert newest(storage)[0].step == 10  # type: ignore[union-attr]
