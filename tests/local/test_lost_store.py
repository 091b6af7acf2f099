"""A store that is full, read-only or gone while a run trains: it goes on, says so, and loses nothing; or pauses in time."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from sports_ray.data.demo import draw_demo
from sports_ray.errors import StorageError
from sports_ray.store.attempt import begin_attempt
from sports_ray.store.commit import newest, write_commit
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import open_storage
from tests.support.running import Running
from tests.support.shell import sports_ray

FILES = ("weights/last.safetensors", "weights/best.safetensors", "metrics.jsonl")
SETTINGS = {
    "data.image_size": 32,
    "data.loader_processes": 0,
    "augment.mixup": 0.2,
    "loop.global_batch": 4,
    "loop.eval_every": 10,
    "cluster.threads": 1,
    "store.every_steps": 4,
    "store.keep": 2,
}
EPOCHS = 48
STEPS = 8
"""Before the first trouble. From there on it waits until more are allowed."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    draw_demo(folder / "set", classes=2, per_class=6, size=40)
    return folder


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, bytes]:
    assert sports_ray(place, *words("whole", place / "whole")).code == 0
    return files(place / "whole/whole")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own where this user may mount one; else a folder."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    mounted = may_mount() and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", folder]).returncode == 0
    (folder / "store").mkdir()
    yield folder / "store"
    if mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


def may_mount() -> bool:
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


def words(run: str, store: Path, *more: str) -> tuple[str, ...]:
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    fixed = ("--data", "set", "--model", "test_resnet", "--weights", "none", "--workers", "0", "--precision", "fp32")
    given = ("--epochs", str(EPOCHS), "--run", run, "--store", str(store), "--json")
    return ("train", *fixed, *settings, *given, *more)


def files(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in FILES}


Trouble = Callable[[Path, Running], AbstractContextManager[str]]
"""Takes the store away in the block; gives what the system calls it."""


@contextmanager
def full(store: Path, run: Running) -> Iterator[str]:
    """Not a byte is left on the disk. Where none could be mounted: no file may grow beyond a checkpoint's small change."""
    if not os.path.ismount(store.parent):
        with limited(store, run) as name:
            yield name
        return
    ballast = store.parent / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            while True:
                try:
                    file.write(b"\0" * size)
                except OSError:
                    break
    yield "ENOSPC"
    ballast.unlink()


@contextmanager
def limited(store: Path, run: Running) -> Iterator[str]:
    """The kernel refuses that the process writes files of a checkpoint's size: real, and needs no right."""
    before = resource.prlimit(run.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield "EFBIG"
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(store: Path, run: Running) -> Iterator[str]:
    """Mounted anew, read-only, where that may be; else the folders lose their write permission, which binds all but root."""
    if os.path.ismount(store.parent):
        subprocess.run(["mount", "--bind", store, store], check=True)
        read_only_now = ["mount", "-o", "remount,bind,ro", store]
        # Busy, while a file is open for writing.
        assert run.wait_until(lambda: subprocess.run(read_only_now, capture_output=True).returncode == 0)
        yield "EROFS"
        subprocess.run(["umount", "--lazy", store], check=True)
        return
    folders = [folder for folder in (store, *store.rglob("*")) if folder.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    yield "EACCES"
    for folder in folders:
        if folder.exists():
            folder.chmod(0o755)


@contextmanager
def gone(store: Path, run: Running) -> Iterator[str]:
    away = store.with_name("away")
    store.rename(away)
    yield "ENOENT"
    away.rename(store)


def suffer(run: Running, store: Path, trouble: Trouble) -> None:
    """The store fails in the middle of the training, for a while: told, lived with, and told when it is over."""
    before = len(run.events("store"))
    with trouble(store, run) as name:
        assert run.step_until(lambda: len(run.events("store")) > before, 0.1), (
            "the run ended before the store failed it"
        )
        failing = run.events("store")[before]
        assert failing["state"] == "failing" and name in failing["reason"]
        more = run.steps + 8
        run.allow(more)
        assert run.wait_until(lambda: run.steps >= more), "training did not go on"
    assert run.step_until(lambda: run.events("store")[-1]["state"] == "back", 0.25)
    back = run.events("store")[-1]
    assert back["committed"] > failing["committed"], "nothing was saved when the store was back"


@pytest.mark.parametrize(
    "troubles",
    [
        pytest.param((full, read_only, gone), id="full, then read-only, then gone"),
        *(
            pytest.param((trouble,) * 3, marks=pytest.mark.long, id=trouble.__name__)
            for trouble in (full, read_only, gone)
        ),
        pytest.param((limited, gone, limited), marks=pytest.mark.long, id="files limited in size"),
    ],
)
def test_run_goes_on_without_its_store_and_ends_with_the_bytes_of_the_unbroken_run(
    place: Path, whole: dict[str, bytes], store: Path, troubles: tuple[Trouble, ...]
) -> None:
    with Running(place, *words("run", store), steps=STEPS) as run:
        assert run.wait_until(lambda: list(store.glob("run/checkpoints/*/COMMIT.json")))
        for trouble in troubles:
            suffer(run, store, trouble)
        run.release()
        shown = run.end()
    assert shown.code == 0 and not shown.err, shown.err
    assert files(store / "run") == whole
    log = (store / "run/logs/driver.log").read_text()
    assert log.count("store: failing") >= 3 and log.count("store: back") == 3


@pytest.mark.parametrize("trouble", [full, pytest.param(gone, marks=pytest.mark.long)])
def test_run_pauses_before_more_is_unsaved_than_allowed_and_goes_on_from_what_is_safe(
    place: Path, whole: dict[str, bytes], store: Path, trouble: Trouble
) -> None:
    limit, run_dir = 2.0, RunDir(open_storage(str(store / "run")))
    with Running(place, *words("run", store, "--set", f"store.max_unsaved_seconds={limit}"), steps=STEPS) as run:
        # One that the run knows of: a store that goes away between a commit's record and its last check leaves one more.
        assert run.wait_until(lambda: any(line["kind"] == "commit" for line in run_dir.read_timings()))
        with trouble(store, run) as name:
            begun, steps = time.time(), run.steps
            assert run.step_until(lambda: run.code is not None, 0.1)
            shown = run.end()
            assert limit * 0.5 < time.time() - begun
            (paused,) = run.events("paused")
        assert shown.code == 75 and not shown.err, shown.err
        assert name in paused["reason"] and paused["cure"]
        assert paused["lost_steps"] == run.steps - paused["step"] > 0 and paused["step"] <= steps
        # The commit that was safe last is older than the trouble. A busy machine may take longer for the last step.
        assert run.last_step - begun <= limit + 5
    commit, passed = newest(open_storage(str(store / "run")))
    assert commit is not None and commit.step == paused["step"], passed
    assert sports_ray(place, *shlex.split(paused["command"])[1:]).code == 0
    assert files(store / "run") == whole


def test_commit_that_filled_the_disk_makes_room_for_a_newer_one(store: Path) -> None:
    if not os.path.ismount(store.parent):
        pytest.skip("needs a small disk of its own")
    storage = open_storage(str(store / "run"))
    token = begin_attempt(storage, {}).token

    def commit(step: int, megabytes: int) -> None:
        parts = {name: {"w": torch.zeros(megabytes << 20, dtype=torch.uint8)} for name in ("model", "optim", "ema")}
        write_commit(storage, step, token, parts, {"step": step})

    commit(1, 5)
    for _ in range(2):
        with pytest.raises(StorageError, match="ENOSPC"):
            commit(2, 20)
    commit(3, 14)  # with 15 MB of the first one and 40 MB of the second one there would be 9 MB left of 64 MB
    found, passed_over = newest(storage)
    assert found is not None and found.step == 3 and not passed_over
