"""A run on an object store: a real S3-protocol server, a real network in between that fails, and real kills.

The long form, some hundred faults, kills and races: pytest -m long tests/local/test_s3.py
"""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sports_ray.data.demo import draw_demo
from sports_ray.errors import ConfigError, FencedError, RunError, StorageError
from sports_ray.store.arrow import MERGED_FROM
from sports_ray.store.attempt import begin_attempt
from sports_ray.store.commit import is_finished, list_commits, newest, read_commit, write_commit
from sports_ray.store.fence import is_orphan, read_fences
from sports_ray.store.lease import Lease, Owner
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import Storage, below, open_storage
from tests.support import runs
from tests.support.s3 import CREDENTIALS, FAULTS, FaultyProxy, address, download, s3_server
from tests.support.shell import _call

RUN = "run"


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch, s3_server() as port:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield port


@pytest.fixture
def proxy(server: int) -> Iterator[FaultyProxy]:
    with FaultyProxy(server) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "set"
    draw_demo(folder, classes=4, per_class=12, size=40, seed=1)
    return folder


@pytest.fixture(scope="module")
def unbroken(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Results of the same run on a local store."""
    config = runs.small_config(photos, tmp_path_factory.mktemp("unbroken"))
    assert runs.train_in_child(config) == 0
    return runs.results(config)


def weights_of(step: int) -> dict[str, dict[str, torch.Tensor]]:
    """A small file and one of 6 MB, which goes up in parts."""
    return {"model": {"w": torch.full((1000,), float(step))}, "optim": {"m": torch.full((1_500_000,), float(step))}}


def assert_whole(storage: Storage, step: int) -> None:
    commit = read_commit(storage, step)
    for name, part in weights_of(step).items():
        assert all(torch.equal(commit.load(name)[key], tensor) for key, tensor in part.items())


def commit_under_faults(server: int, proxy: FaultyProxy, rounds: int, seed: int) -> tuple[int, int]:
    """Commits through a network that breaks three requests in ten; (commits, failures). A failed one is tried again."""
    dice, failures, step = random.Random(seed), 0, 1
    name = f"faults-{seed}-{rounds}"
    straight, broken = (
        open_storage(address(server, name)),
        open_storage(address(proxy.port, name, request_timeout=0.3, connect_timeout=0.5)),
    )
    token = begin_attempt(straight, {}).token
    kinds = ("500", "cut", "lost", "slow", *FAULTS)
    proxy.choose = lambda method, path: dice.choice(kinds) if dice.random() < 0.3 else None
    for _ in range(rounds):
        try:
            write_commit(broken, step, token, weights_of(step), {"step": step})
            step += 1
        except StorageError:
            failures += 1
        found, passed_over = newest(straight)
        reached = found.step if found else 0
        assert reached in (step - 1, step), "a commit was lost, or one that never was is trusted"
        if found:
            assert_whole(straight, reached)
        for other in list_commits(straight):
            if is_finished(straight, other):
                assert_whole(straight, other.step)
    return step - 1, failures


def test_faults_during_a_commit_never_leave_what_is_taken_for_one(server: int, proxy: FaultyProxy) -> None:
    commit_under_faults(server, proxy, rounds=2, seed=2)
    assert sum(request.fault is not None for request in proxy.requests) >= 3


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_many_faults_during_commits(server: int, proxy: FaultyProxy) -> None:
    commits, failures = commit_under_faults(server, proxy, rounds=60, seed=3)
    assert commits and failures
    broken = sum(request.fault is not None for request in proxy.requests)
    print(f"{commits} commits, {failures} failed tries, {broken} of {len(proxy.requests)} requests broken")


@pytest.mark.parametrize(
    ("size", "healthy"),
    [(5, 0), (9_000_000, 0), pytest.param(9_000_000, 1, marks=pytest.mark.long)],
    ids=["one put", "parts, the first request", "parts, the second request"],
)
def test_write_that_fails_leaves_the_old_object(server: int, proxy: FaultyProxy, size: int, healthy: int) -> None:
    storage = open_storage(address(proxy.port, "old"))
    storage.write("file", b"old")
    before = len(proxy.requests)
    proxy.choose = lambda method, path: "500" if len(proxy.requests) >= before + healthy else None
    with pytest.raises(StorageError, match="cannot write s3://bucket/old/file"):
        storage.write("file", bytes(size))
    proxy.choose = lambda method, path: None
    assert storage.read("file") == b"old"


def test_source_that_breaks_leaves_the_old_object(server: int) -> None:
    storage = open_storage(address(server, "source"))
    storage.write("file", b"old")

    def broken() -> Iterator[bytes]:
        yield b"new"
        raise ValueError("the source broke")

    with pytest.raises(ValueError, match="source broke"):
        storage.write("file", broken())
    assert storage.read("file") == b"old"


def test_dead_endpoint_is_an_error_in_bounded_time(server: int, proxy: FaultyProxy) -> None:
    start = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(StorageError, match=r"cannot list s3://bucket/dead/.*[Cc]onnect"):
        newest(open_storage(address(port, "dead")))
    proxy.choose = lambda method, path: "silent"
    storage = open_storage(address(proxy.port, "dead", request_timeout=0.5))
    with pytest.raises(StorageError, match=r"cannot read s3://bucket/dead/x.*Timeout"):
        storage.find("x")
    assert time.monotonic() - start < 60
    with pytest.raises(ConfigError, match="request_timeout=soon.*seconds"):
        open_storage(address(port, "dead", request_timeout="soon"))


def test_timings_are_read_side_by_side_and_merged_at_the_next_start(server: int) -> None:
    """An event is an object: read one after another, those of a week would take ten minutes before the first step."""
    events = [{"kind": "commit", "step": step} for step in range(MERGED_FROM)]
    with FaultyProxy(server, delay=0.1) as proxy:
        run = RunDir(open_storage(address(proxy.port, "timings")))
        for event in events:
            run.append_timing(event)
        proxy.choose = lambda method, path: "slow" if method in ("GET", "HEAD") else None
        start = time.monotonic()
        assert run.read_timings() == events
        assert time.monotonic() - start < 0.1 * MERGED_FROM, "one request after another"
        proxy.choose = lambda method, path: None
        run.sweep()
        before = len(proxy.requests)
        assert run.read_timings() == events
        assert len(proxy.requests) - before <= 4


def command(photos: Path, store: str) -> list[str]:
    """`sports-ray train` with the settings of `small_config`."""
    flags = ["--data", str(photos), "--store", store, "--run", RUN]
    return ["train", *flags, *(word for key, value in runs.SETTINGS.items() for word in ("--set", f"{key}={value}"))]


class Child:
    """`sports-ray WORDS` in a process of its own, with the credentials in its environment."""

    def __init__(self, folder: Path, *words: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = [folder / name for name in ("out", "err", "imported")]
        self.process = runs.FORKS.Process(target=_call_there, args=(CREDENTIALS, words, folder, self._files))
        self.process.start()

    def end(self) -> tuple[int, str]:
        """Exit code, and both streams."""
        self.process.join(120)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError("the command hangs")
        return self.process.exitcode, "".join(path.read_text() for path in self._files[:2] if path.exists())


def _call_there(environment: Mapping[str, str], words: tuple[str, ...], folder: Path, files: list[Path]) -> None:
    os.environ.update(environment)
    _call(words, folder, files)


def killed_at(proxy: FaultyProxy, request: int, folder: Path, *words: str) -> int:
    """Runs a command that is killed with SIGKILL when the proxy sees the request of this number; its exit code."""
    first, started = len(proxy.requests), threading.Event()

    def choose(method: str, path: str) -> None:
        if len(proxy.requests) - first == request:
            started.wait(10)
            assert child.process.pid is not None
            os.kill(child.process.pid, signal.SIGKILL)

    proxy.choose = choose
    child = Child(folder, *words)
    started.set()
    code, _ = child.end()
    proxy.choose = lambda method, path: None
    return code


def outage(seconds: float) -> Callable[[str, str], str | None]:
    """From the first write of a checkpoint on, the store fails for some seconds."""
    began: list[float] = []

    def choose(method: str, path: str) -> str | None:
        if "/checkpoints/step-" in path and method in ("PUT", "POST") and not began:
            began.append(time.monotonic())
        return "500" if began and time.monotonic() - began[0] < seconds else None

    return choose


def results(server: int, prefix: str, photos: Path, folder: Path) -> dict[str, bytes]:
    download(address(server, f"{prefix}/{RUN}"), folder / RUN)
    return runs.results(runs.small_config(photos, folder, RUN))


def test_run_on_s3_killed_and_resumed_through_an_outage_equals_the_one_on_disk(
    server: int, proxy: FaultyProxy, photos: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    store = address(proxy.port, "killed")
    assert killed_at(proxy, 75, tmp_path, *command(photos, store)) == -signal.SIGKILL
    code, shown = Child(tmp_path, "status", "--store", store).end()
    assert code == 0 and RUN in shown and "done" not in shown, shown
    proxy.choose = outage(2.0)
    code, shown = Child(tmp_path, "resume", below(store, RUN)).end()
    assert code == 0 and f"s3://bucket/killed/{RUN}" in shown, shown
    assert sum(request.fault is not None for request in proxy.requests) >= 1
    code, shown = Child(tmp_path, "status", RUN, "--store", store).end()
    assert code == 0 and "done" in shown, shown
    assert results(server, "killed", photos, tmp_path / "found") == unbroken


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_runs_on_s3_killed_at_many_requests_equal_the_one_on_disk(
    server: int, photos: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    dice, kills = random.Random(5), 0
    for number in range(12):
        prefix, folder = f"killed-{number}", tmp_path / str(number)
        with FaultyProxy(server) as proxy:
            words = command(photos, address(proxy.port, prefix))
            for _ in range(6):
                code = killed_at(proxy, dice.randrange(160), folder, *words)
                assert code in (0, -signal.SIGKILL)
                kills += code != 0
            assert Child(folder, *words).end()[0] == 0
        assert results(server, prefix, photos, folder / "found") == unbroken
    print(f"{kills} kills in 12 runs")


def race(storage: Storage, writers: int, seed: int) -> list[str]:
    """Writers that all begin in one moment and commit until they are fenced off or have made three commits.

    Each commit's state is the line of commits before it. Returns what each commit that succeeded was told."""
    start, told, lock = threading.Barrier(writers), [], threading.Lock()
    problems: list[BaseException] = []

    def write(name: str) -> None:
        dice = random.Random(f"{seed} {name}")
        start.wait()
        try:
            attempt = begin_attempt(storage, {"name": name})
            line = list(attempt.commit.state["line"]) if attempt.commit else []
            for _ in range(3):
                time.sleep(dice.random() * 0.02)
                step = len(line) + 1
                line.append(f"{step} {name}")
                write_commit(storage, step, attempt.token, {"model": {"w": torch.tensor([step])}}, {"line": line})
                with lock:
                    told.append(line[-1])
        except FencedError:
            pass
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=write, args=(f"writer {number}",)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems
    return told


def assert_one_history(storage: Storage, told: list[str]) -> None:
    """All commits that count are on one line, and every commit that a writer was told of is on it."""
    found, _ = newest(storage)
    assert found is not None
    line = found.state["line"]
    fences = read_fences(storage)
    for other in list_commits(storage):
        if not is_orphan(*other, fences) and is_finished(storage, other):
            before = read_commit(storage, *other).state["line"]
            assert before == line[: len(before)], f"two histories: {before} and {line}"
    assert set(told) <= set(line), f"lost: {set(told) - set(line)}"


def race_rounds(server: int, rounds: int, writers: int, seed: int) -> None:
    for number in range(rounds):
        storage = open_storage(address(server, f"race-{seed}-{number}"))
        told = race(storage, writers, number)
        told += race(storage, writers, number + 1000)
        assert_one_history(storage, told)


def test_writers_that_race_leave_one_history_and_lose_no_commit(server: int) -> None:
    race_rounds(server, rounds=2, writers=2, seed=1)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("writers", [2, 3, 5])
def test_many_races_leave_one_history(server: int, writers: int) -> None:
    race_rounds(server, rounds=60, writers=writers, seed=writers)


def elsewhere() -> Owner:
    """A driver of another host: its process cannot be looked for."""
    return replace(Owner.current(), host="far", place="far boot pid")


def lease_race(server: int, prefix: str, drivers: int) -> None:
    storage = open_storage(address(server, prefix))
    start, won, refused = threading.Barrier(drivers), [], []

    def drive() -> None:
        start.wait()
        try:
            won.append(Lease.acquire(storage, elsewhere(), beat_seconds=0.1, watch_seconds=30.0))
        except RunError as error:
            refused.append(error)

    threads = [threading.Thread(target=drive) for _ in range(drivers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(refused) == drivers - 1
    won[0].check()
    won[0].release()


def test_of_drivers_that_start_in_one_moment_one_gets_the_run(server: int) -> None:
    lease_race(server, "lease", 2)


@pytest.mark.long
def test_of_many_drivers_that_start_in_one_moment_one_gets_the_run(server: int) -> None:
    for number in range(20):
        lease_race(server, f"lease-{number}", 2 + number % 3)
