"""Claims about the lease: one driver at a time, the next as soon as it is dead, and whoever wakes up too late sees it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from sports_ray.errors import FencedError, RunError
from sports_ray.processes import process_start
from sports_ray.store.attempt import begin_attempt
from sports_ray.store.lease import Lease, Owner, check_holder, holder
from sports_ray.store.storage import Storage, open_storage

DRIVER = """
import sys
from sports_ray.store.lease import Lease
from sports_ray.store.storage import open_storage
try:
    with Lease.acquire(open_storage(sys.argv[1]), beat_seconds=0.05) as lease:
        print("held", lease.id, flush=True)
        sys.stdin.readline()
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run"))


@contextmanager
def driver(storage: Storage) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A driver in a process of its own, and the first line it says."""
    command = [sys.executable, "-c", DRIVER, storage.uri]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


def elsewhere(**fields: object) -> Owner:
    """An owner whose process cannot be looked for from here."""
    return replace(Owner.current("sports-ray train"), host="far", place="far boot pid", **fields)  # type: ignore[arg-type]


def test_second_driver_is_refused_while_the_first_lives_and_admitted_after_its_end(storage: Storage) -> None:
    with driver(storage) as (process, said):
        assert said.startswith("held ")
        with pytest.raises(RunError, match=f"in use.*host .*pid {process.pid}, since .* s .*kill {process.pid}"):
            Lease.acquire(storage)
        with driver(storage) as (_, other):
            assert other.startswith("RunError") and f"pid {process.pid}" in other
        process.communicate("end\n")
        assert storage.list() == [entry for entry in storage.list() if entry.name == "lease"] and not storage.list(
            "lease"
        )
        with Lease.acquire(storage) as lease:
            assert holder(storage) == lease.owner


@pytest.mark.parametrize("reaped", [False, True])
def test_killed_driver_is_followed_at_once(storage: Storage, reaped: bool) -> None:
    with driver(storage) as (process, _):
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        if reaped:
            process.wait()
        start = time.monotonic()
        with Lease.acquire(storage, watch_seconds=60) as lease:
            assert time.monotonic() - start < 30 and not lease.lost
            assert [entry.name for entry in storage.list("lease")] == [f"{lease.id}.beat.json"]


def test_only_a_process_of_this_host_is_known_to_have_ended(storage: Storage) -> None:
    with driver(storage) as (process, _):
        owner = holder(storage)
        assert owner is not None and owner.pid == process.pid and not owner.has_ended()
        process.kill()
        process.wait()
        assert owner.has_ended() and not replace(owner, place="far boot pid").has_ended()


def test_process_id_that_was_used_again_is_not_the_old_driver(storage: Storage) -> None:
    old = replace(Owner.current(), pid=os.getppid(), start="1")
    storage.write("lease.json", old.record())
    Lease.acquire(storage, watch_seconds=60).release()


def test_driver_that_stands_still_on_this_host_is_not_dead(storage: Storage) -> None:
    with driver(storage) as (process, _):
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(RunError, match=f"pid {process.pid}"):
            Lease.acquire(storage, watch_seconds=0)
        process.send_signal(signal.SIGCONT)


def test_owner_on_another_host_is_watched_and_lives_while_it_beats(storage: Storage) -> None:
    with Lease.acquire(storage, elsewhere(), beat_seconds=0.02), pytest.raises(RunError, match="host far"):
        Lease.acquire(storage, watch_seconds=10)


def test_owner_on_another_host_whose_beat_stands_still_is_followed(storage: Storage) -> None:
    silent = Lease.acquire(storage, elsewhere(since=9e9), beat_seconds=60)
    start = time.monotonic()
    with Lease.acquire(storage, watch_seconds=0.3) as lease:
        assert time.monotonic() - start >= 0.3
        assert holder(storage) == lease.owner
        silent._confirmed -= 1000.0  # as if it had slept
        with pytest.raises(FencedError, match=f"taken over.*pid {os.getpid()}"):
            silent.check()
        assert silent.lost
        silent.release()
        assert holder(storage) == lease.owner and not lease.lost, "the old owner deleted the new lease"


def test_driver_that_wakes_up_finds_out_by_itself(storage: Storage) -> None:
    with driver(storage) as (process, said):
        process.send_signal(signal.SIGSTOP)
        storage.write("lease.json", elsewhere().record())
        process.send_signal(signal.SIGCONT)
        process.communicate("end\n")
        assert holder(storage) is not None and holder(storage).host == "far", said  # type: ignore[union-attr]


def test_check_looks_again_when_the_last_look_is_old(storage: Storage) -> None:
    with Lease.acquire(storage, beat_seconds=0.05) as lease:
        lease._stop.set()
        lease._thread.join()
        storage.write("lease.json", elsewhere().record())
        lease._confirmed -= 1.0
        with pytest.raises(FencedError, match="host far"):
            lease.check()


def test_of_many_heirs_one_wins(storage: Storage) -> None:
    # The old one is seen to be dead at once; each heir is watched for a beat by the others.
    storage.write("lease.json", replace(Owner.current(), pid=os.getppid(), start="1").record())
    start, won, refused = threading.Barrier(6), [], []

    def inherit() -> None:
        start.wait()
        try:
            won.append(Lease.acquire(storage, elsewhere(), beat_seconds=0.02, watch_seconds=60))
        except RunError as error:
            refused.append(error)

    threads = [threading.Thread(target=inherit) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(refused) == 5
    won[0].check()
    assert holder(storage) == won[0].owner
    won[0].release()


def test_heir_that_died_while_taking_over_is_followed(storage: Storage) -> None:
    first, heir = elsewhere(id="first"), elsewhere(id="heir")
    storage.write("lease.json", first.record())
    storage.write("lease/first.taken.json", heir.record())
    assert holder(storage) == heir
    with Lease.acquire(storage, watch_seconds=0.1) as lease:
        assert holder(storage) == lease.owner
        assert [entry.name for entry in storage.list("lease")] == [f"{lease.id}.beat.json"]


def test_winner_takes_nothing_away_under_the_hands_of_another_heir(storage: Storage) -> None:
    first, theirs, torn = elsewhere(id="first"), ".first.taken.json.1f.tmp", ".older.taken.json.2e.tmp"
    storage.write("lease.json", first.record())
    for name in (theirs, torn, "older.beat.json"):
        storage.write(f"lease/{name}", b"{")
    with Lease.acquire(storage, watch_seconds=0.1) as lease:
        assert [entry.name for entry in storage.list("lease")] == [theirs, f"{lease.id}.beat.json"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 1}\n'])
@pytest.mark.parametrize("mended_before", [False, True])
def test_damaged_lease_is_taken_after_watching(storage: Storage, content: bytes, mended_before: bool) -> None:
    storage.write("lease.json", content)
    if mended_before:
        storage.write("lease/unknown.taken.json", elsewhere().record())
    with Lease.acquire(storage, watch_seconds=0.05) as lease:
        assert holder(storage) == lease.owner


def test_storage_that_is_away_for_a_moment_does_not_lose_the_lease(storage: Storage) -> None:
    root = Path(storage.uri)
    with Lease.acquire(storage, beat_seconds=0.02) as lease:
        root.rename(root.with_name("away"))
        lease._confirmed -= 1.0
        lease.check()
        assert not lease.lost
        root.with_name("away").rename(root)
        before = storage.read(f"lease/{lease.id}.beat.json")
        end = time.monotonic() + 60
        while storage.read(f"lease/{lease.id}.beat.json") == before:
            assert time.monotonic() < end, "the beat did not go on"
        lease.check()


def test_workers_of_a_replaced_driver_cannot_fence_off_the_new_ones(storage: Storage) -> None:
    with Lease.acquire(storage) as lease:
        assert begin_attempt(storage, {}, lease.id).token == 1
        check_holder(storage, lease.id)
        with pytest.raises(FencedError, match="taken over"):
            begin_attempt(storage, {}, "id-of-the-dead-driver")
        assert begin_attempt(storage, {}, lease.id).token == 2


def test_dead_and_living_processes_are_told_apart() -> None:
    assert process_start(os.getpid()) == process_start(os.getpid()) is not None
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_start(child.pid) is None, "a process that waits to be reaped is dead"
    child.wait()
    assert process_start(child.pid) is None
