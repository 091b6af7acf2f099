"""A Ray cluster as `ray start` makes it: a head with a dashboard on loopback and a token, and nodes that come and go."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from sports_ray.processes import Processes, below, still_there

RAY = Path(sys.executable).with_name("ray")
FAST_HEALTH = (
    '{"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_timeout_ms": 1000,'
    ' "health_check_failure_threshold": 3}'
)


@dataclass
class Head:
    """The cluster, and the processes that were started for it: those alone are ended."""

    folder: Path
    """Ray's own files; its path must be short, for sockets lie below it."""
    port: int
    dashboard: int
    token: str
    environment: Mapping[str, str]
    """For processes of the cluster."""
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """The head first."""
    started: Processes = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def client(self) -> JobSubmissionClient:
        return JobSubmissionClient(self.address, headers={"Authorization": f"Bearer {self.token}"})

    def add(self, cpus: int = 1) -> subprocess.Popen[bytes]:
        """Starts a node that joins, with files of its own as on another machine: Ray writes a job's folder anew under the feet
        of those who work in it, where two nodes share it."""
        place = self.folder / f"n{len(list(self.folder.glob('start-*')))}"
        return self._start(f"--address=127.0.0.1:{self.port}", f"--num-cpus={cpus}", f"--temp-dir={place}")

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """SIGKILL for a node and all that it has started, at once, as when the machine is gone."""
        for pid in below(node.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait()
        self.nodes.remove(node)

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"start-{len(list(self.folder.glob('start-*')))}.log").open("wb")
        # Jobs are started through the node's agent, of which another cluster of this machine holds the usual port.
        agent = f"--dashboard-agent-listen-port={free_ports(1)[0]}"
        with log:
            command = [str(RAY), "start", "--block", "--disable-usage-stats", agent, *words]
            node = subprocess.Popen(command, stdout=log, stderr=log, env=dict(self.environment))
        self.nodes.append(node)
        return node

    def end(self) -> None:
        for node in self.nodes:
            self.started |= below(node.pid)
        for pid in still_there(self.started):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for node in self.nodes:
            node.wait()


@contextmanager
def ray_head(cpus: int = 2) -> Iterator[Head]:
    """`ray start --head` on free ports; the cluster answers."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    token = secrets.token_hex(32)
    given = {"RAY_ADDRESS": "", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_DISABLE_IMPORT_WARNING": "1"}
    port, dashboard = free_ports(2)
    # As in a shell of its own: what a driver in this process has set for its Ray is not meant for this one.
    shell = {name: value for name, value in os.environ.items() if name[:4] != "RAY_" or name.startswith("RAY_TRAIN_")}
    head = Head(folder, port, dashboard, token, {**shell, **given})
    try:
        head._start(
            "--head",
            f"--num-cpus={cpus}",
            f"--port={port}",
            f"--dashboard-port={dashboard}",
            f"--temp-dir={folder}",
            f"--system-config={FAST_HEALTH}",
        )
        wait_for(lambda: answers(head))
        yield head
    finally:
        head.end()
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in found]


def answers(head: Head) -> bool:
    with suppress(OSError, RuntimeError, AuthenticationError):
        head.client().list_jobs()
        return True
    assert head.nodes[0].poll() is None, (head.folder / "start-0.log").read_text()
    return False


def wait_for(happened: Callable[[], Any], seconds: float = 90.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return found
