"""`sports-ray submit` against a real `ray start --head`: what is shown, exit codes, lost connections, deaths, stops.

The default suite submits one job that ends well and one that does not; `pytest -m long` has the rest.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sports_ray.data.demo import draw_demo
from sports_ray.processes import below, name_of
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import open_storage
from tests.support.head import Head, ray_head
from tests.support.shell import sports_ray
from tests.support.wire import Wire

pytestmark = pytest.mark.timeout(240)
FILES = ("weights/last.safetensors", "weights/best.safetensors", "metrics.jsonl")
EPOCHS = 60


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as found:
        yield found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    draw_demo(tmp_path / "set", classes=3, per_class=12, size=40)
    return tmp_path


class Submitted:
    """`sports-ray WORDS` as a user starts it, with the cluster's token in the environment; leaves no process behind."""

    def __init__(self, head: Head, *words: str, port: int = 0) -> None:
        environment = {**os.environ, "RAY_AUTH_MODE": "", "RAY_AUTH_TOKEN": head.token}
        self.seen: list[dict[str, Any]] = []
        address = ("--address", f"http://127.0.0.1:{port or head.dashboard}")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sports_ray", words[0], *address, *words[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self.lines: list[str] = []

    def __enter__(self) -> Submitted:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()

    def until(self, kind: str, **having: Any) -> dict[str, Any]:
        """Waits for an event with these values; of numbers, at least so much."""
        for event in self._events():
            if event["event"] == kind and all(_reached(event.get(key), value) for key, value in having.items()):
                return event
        raise AssertionError(f"it ended without {kind}, exit code {self.process.wait()}: {self.lines[-5:]}")

    def end(self) -> int:
        for _ in self._events():
            pass
        return self.process.wait(60)

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.seen if event["event"] == kind]

    def _events(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith('{"event"'):
                self.seen.append(json.loads(line))
                yield self.seen[-1]


def _reached(found: Any, wanted: Any) -> bool:
    return found == wanted if isinstance(wanted, str) else found is not None and found >= wanted


def train(place: Path, *more: str, data: str = "", epochs: int = EPOCHS) -> list[str]:
    settings = ("data.image_size=32", "loop.global_batch=4", "store.every_steps=1000", "cluster.threads=1")
    given = ["--data", data or str(place / "set"), "--model", "test_resnet", "--weights", "none", "--precision", "fp32"]
    fixed = ["--epochs", str(epochs), "--run", "job", "--store", str(place), "--workers", "0"]
    return ["train", *given, *fixed, *(word for setting in settings for word in ("--set", setting)), *more]


def submit(*more: str) -> list[str]:
    return ["submit", "--python", sys.executable, *more]


def results(place: Path) -> list[bytes]:
    return [(place / "job" / name).read_bytes() for name in FILES]


def whole(place: Path) -> list[bytes]:
    """The results of the same training in one piece, here."""
    other = place / "whole"
    other.mkdir()
    (other / "set").symlink_to(place / "set")
    assert sports_ray(other, *train(other)).code == 0
    return results(other)


def evaluations(place: Path) -> list[int]:
    lines = RunDir.open(open_storage(str(place)), "job").read_metrics()
    return [line["epoch"] for line in lines]


def driver(head: Head, place: Path) -> int:
    """The process of the job's command, the oldest of that name; those it has forked are called like it."""
    named = f"{sys.executable} -m sports_ray train --data {place}"
    return min(pid for pid in below(head.nodes[0].pid) if name_of(pid).startswith(named))


def test_submitted_job_shows_what_the_command_shows_and_returns_its_exit_code(head: Head, place: Path) -> None:
    good, bad = submit(*train(place, epochs=2)), submit(*train(place, data="/nowhere"))
    with Submitted(head, *good) as done, Submitted(head, *bad) as failed:
        assert failed.end() == 2 and done.end() == 0, [*failed.lines, *done.lines]
    assert [line for line in failed.lines if "error: data not found; got /nowhere; wanted a folder" in line]
    assert failed.lines[-1].endswith("failed, exit code 2")
    told = "\n".join(done.lines)
    assert "epoch 2: train loss " in told and "job_manager" not in told and "{" not in told
    assert "best        val acc1 " in told and f"{place}/job/weights/best.safetensors" in told
    assert done.lines[-1].endswith("succeeded, exit code 0")
    assert evaluations(place) == [1, 2]
    with Submitted(head, "jobs", "--json") as listed:
        listed.end()
    assert sorted(job["exit_code"] for job in json.loads(listed.lines[-1])) == [0, 2]


@pytest.mark.long
def test_lost_connection_loses_neither_the_job_nor_a_line(head: Head, place: Path) -> None:
    with Wire(head.dashboard) as wire, Submitted(head, *submit("--json", *train(place)), port=wire.port) as client:
        client.until("evaluated", epoch=5)
        wire.cut()
        client.until("connection")
        # Meanwhile another client finds the job by its words, and sees it from its start.
        with Submitted(head, *submit("--json", *train(place))) as other:
            assert other.until("job")["id"] == client.all("job")[0]["id"]
            other.until("evaluated", epoch=15)
            other.process.send_signal(signal.SIGINT)
            assert other.end() == 130 and other.all("left")
        wire.mend()
        assert client.end() == 0
    lost, back = (event["text"] for event in client.all("connection"))
    assert lost.startswith("! the cluster does not answer") and back == "! the cluster answers again"
    assert [event["epoch"] for event in client.all("evaluated")] == list(range(1, EPOCHS + 1))
    assert len({event["id"] for event in client.all("job")}) == 1


@pytest.mark.long
def test_killed_job_is_submitted_again_and_no_bit_is_lost(head: Head, place: Path) -> None:
    with Submitted(head, *submit("--json", "--retries", "1", *train(place, "--set", "store.every_steps=7"))) as client:
        client.until("step", step=40)
        os.kill(driver(head, place), signal.SIGKILL)
        died = client.until("job", status="FAILED")
        assert died["exit_code"] == 137
        assert client.until("restart")["reason"] == f"job {died['id']} died"
        assert client.until("start")["step"] >= 35, "the newest commit"
        assert client.end() == 0
    assert len({event["id"] for event in client.all("job")}) == 2
    assert results(place) == whole(place)


@pytest.mark.long
def test_job_that_dies_again_is_an_error_with_its_own_exit_code(head: Head, place: Path) -> None:
    with Submitted(head, *submit("--json", *train(place))) as client:
        client.until("step", step=10)
        os.kill(driver(head, place), signal.SIGKILL)
        assert client.end() == 137 and not client.all("restart")


@pytest.mark.long
def test_stopped_job_has_committed_and_the_same_submission_goes_on(head: Head, place: Path) -> None:
    with Submitted(head, *submit("--json", *train(place))) as client:
        client.until("step", step=50)
        # Ray's supervisor of the job reads it, and hands its environment on: its own three seconds may be too few.
        assert b"RAY_JOB_STOP_WAIT_TIME_S=60\0" in Path(f"/proc/{driver(head, place)}/environ").read_bytes()
        began = time.monotonic()
        with Submitted(head, "stop", "--json", client.all("job")[0]["id"]) as stopped:
            assert stopped.end() == 0 and stopped.all("job")[-1]["status"] == "STOPPED"
            assert time.monotonic() - began < 20, "it waited for what had ended"
        assert client.end() == 75
    with Submitted(head, "logs", "--json") as log:
        assert log.end() == 0 and log.all("evaluated") == client.all("evaluated"), "the newest job's"
    (paused,) = client.all("paused")
    assert paused["step"] >= 50 and paused["reason"] == "SIGTERM"
    with Submitted(head, *submit("--json", *train(place))) as client:
        assert client.until("start")["step"] == paused["step"], "not one step was lost"
        assert client.end() == 0
    assert results(place) == whole(place)
