"""`ray job stop` gives a job three seconds between SIGTERM and SIGKILL: enough for a commit, and the same job goes on."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from sports_ray.data.demo import draw_demo
from sports_ray.processes import below
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import open_storage
from tests.support.shell import sports_ray

pytestmark = [pytest.mark.long, pytest.mark.timeout(280)]
FILES = ("weights/last.safetensors", "weights/best.safetensors", "metrics.jsonl")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[JobSubmissionClient]:
    """A cluster of its own with a dashboard on loopback, as `ray start --head` makes it: it asks for a token."""
    token = secrets.token_hex(32)
    environment = {**os.environ, "RAY_ADDRESS": "", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    with socket.socket() as one, socket.socket() as other:
        for found in (one, other):
            found.bind(("127.0.0.1", 0))
        port, dashboard = (found.getsockname()[1] for found in (one, other))
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", f"--port={port}", f"--dashboard-port={dashboard}"]
    ray = Path(sys.executable).with_name("ray")
    log = (tmp_path / "ray-start.log").open("w")
    head = subprocess.Popen([str(ray), *command[1:]], stdout=log, stderr=log, env=environment)
    try:
        yield wait_for(lambda: connected(f"http://127.0.0.1:{dashboard}", token))
    finally:
        for pid in below(head.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait()
        log.close()


def connected(address: str, token: str) -> JobSubmissionClient | None:
    with suppress(ConnectionError, RuntimeError):
        client = JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"})
        client.list_jobs()
        return client
    return None


def submitted(client: JobSubmissionClient, command: str) -> str | None:
    """The job's name; None where the cluster that has just started has no agent for it yet."""
    try:
        return client.submit_job(entrypoint=command)
    except RuntimeError as error:
        assert "No available agent" in str(error)
        return None


def wait_for(happened: Callable[[], Any], seconds: float = 90.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return found


def words(store: Path, *more: str) -> list[str]:
    settings = ("data.image_size=32", "loop.global_batch=4", "store.every_steps=1000", "cluster.threads=1")
    fixed = ["train", "--data", str(store / "set"), "--model", "test_resnet", "--weights", "none", "--json"]
    given = ["--epochs", "60", "--precision", "fp32", "--run", "job", "--store", str(store)]
    return [*fixed, *given, *(word for setting in settings for word in ("--set", setting)), *more]


def told(client: JobSubmissionClient, job: str, kind: str) -> list[dict[str, Any]]:
    lines = [line for line in client.get_job_logs(job).splitlines() if line.startswith("{") and line.endswith("}")]
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def timings(store: Path) -> list[dict[str, Any]]:
    return RunDir.open(open_storage(str(store)), "job").read_timings()


def test_stopped_job_has_committed_its_last_step_and_the_same_job_goes_on(
    client: JobSubmissionClient, tmp_path: Path
) -> None:
    draw_demo(tmp_path / "set", classes=3, per_class=12, size=40)
    command = shlex.join([sys.executable, "-m", "sports_ray", *words(tmp_path, "--workers", "1")])
    stops = []
    for step in (30, 150):
        job = wait_for(lambda: submitted(client, command))
        wait_for(lambda job=job, step=step: [e for e in told(client, job, "step") if e["step"] >= step])  # type: ignore[misc]
        client.stop_job(job)
        wait_for(lambda job=job: client.get_job_status(job).is_terminal())  # type: ignore[misc]
        done = max(event["step"] for event in told(client, job, "step"))
        ends = [event for event in timings(tmp_path) if event["kind"] == "end" and event["step"] >= step]
        assert [end["reason"] for end in ends] == ["SIGTERM"], "no commit within three seconds"
        assert ends[0]["step"] >= done, "a step that was shown is not safe"
        stops.append(ends[0]["step"])
    job = client.submit_job(entrypoint=command)
    wait_for(lambda: client.get_job_status(job).is_terminal())
    assert client.get_job_status(job) == JobStatus.SUCCEEDED, client.get_job_logs(job)[-2000:]
    assert told(client, job, "start")[0]["step"] == stops[-1]
    # The same training in one piece, here.
    place = tmp_path / "whole"
    place.mkdir()
    (place / "set").symlink_to(tmp_path / "set")
    assert sports_ray(place, *words(place, "--workers", "0")).code == 0
    assert [(tmp_path / "job" / name).read_bytes() for name in FILES] == [
        (place / "job" / name).read_bytes() for name in FILES
    ]
