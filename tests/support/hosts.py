"""Hosts with addresses of their own on one machine: network and process namespaces on one switch, whose cables can be pulled.

Needs Linux, iproute2 and the right to make namespaces; all hosts see the same files, as with a shared store.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from sports_ray.processes import below
from tests.support.head import FAST_HEALTH, RAY, wait_for

ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "GLOO_SOCKET_IFNAME": "eth0"}
PORT = 6379


def may_make_hosts() -> bool:
    """Whether this machine lets us."""
    if not all(shutil.which(name) for name in ("ip", "unshare", "nsenter")):
        return False
    name = f"try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    made = made and subprocess.run(
        ["ip", "netns", "exec", name, "unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, check=False
    ).returncode == 0  # fmt: skip
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made


class Host:
    """One of them: its init does nothing but live, and all that runs there dies with it."""

    def __init__(self, net: Net, number: int) -> None:
        self.net, self.name, self.address = net, f"{net.name}-{number}", f"10.77.0.{number}"
        self.cable = f"c{number}"
        _ip("netns", "add", self.name)
        _ip("-n", net.name, "link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("-n", net.name, "link", "set", self.cable, "master", "switch", "up")
        for link in ("lo", "eth0"):
            _ip("-n", self.name, "link", "set", link, "up")
        _ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self.name, "route", "add", "default", "via", "10.77.0.254")
        live = "import signal; print('up', flush=True); signal.pause()"
        apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", live]
        self._init = subprocess.Popen(["ip", "netns", "exec", self.name, *apart], stdout=subprocess.PIPE)
        assert self._init.stdout is not None and self._init.stdout.readline() == b"up\n"
        (self.init,) = set(below(self._init.pid)) - {self._init.pid}
        self._started: list[subprocess.Popen[bytes]] = []
        self._log = (net.folder / f"{self.name}.log").open("ab")

    @property
    def inside(self) -> tuple[str, ...]:
        """Words before a command that shall run there."""
        return "nsenter", "--target", str(self.init), "--net", "--pid", "--mount", "--"

    def start_ray(self, head: Host | None = None, cpus: int = 1) -> subprocess.Popen[bytes]:
        """Ray on this host; the head's, or one that joins it. Returns when it runs."""
        own = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={self.net.folder}"]
        own += [f"--system-config={FAST_HEALTH}"]
        joining = [f"--address={head.address}:{PORT}"] if head else own
        command = [str(RAY), "start", "--block", f"--node-ip-address={self.address}", f"--num-cpus={cpus}", *joining]
        environment = {**os.environ, **ENVIRONMENT, "RAY_ADDRESS": ""}
        begun = os.path.getsize(self._log.name)
        ray = subprocess.Popen([*self.inside, *command], stdout=self._log, stderr=self._log, env=environment)
        self._started.append(ray)
        wait_for(lambda: b"Ray runtime started" in self._written(begun) or ray.poll() is not None)
        assert ray.poll() is None, self._written(begun).decode(errors="replace")[-2000:]
        return ray

    def _written(self, begun: int) -> bytes:
        return Path(self._log.name).read_bytes()[begun:]

    def cut_off(self) -> None:
        """Pulls the cable: packets are lost, nothing is closed."""
        _ip("-n", self.net.name, "link", "set", self.cable, "down")

    def plug_in(self) -> None:
        _ip("-n", self.net.name, "link", "set", self.cable, "up")

    def end(self) -> None:
        for pid in below(self._init.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._init.communicate()
        for ray in self._started:
            ray.wait()
        self._log.close()
        _ip("netns", "del", self.name)


class Net:
    """A switch and its hosts; a context manager that leaves no process and no namespace behind."""

    def __init__(self, hosts: int) -> None:
        self.name = f"net-{os.getpid()}"
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.hosts: list[Host] = []
        _ip("netns", "add", self.name)
        try:
            _ip("-n", self.name, "link", "add", "switch", "type", "bridge")
            _ip("-n", self.name, "link", "set", "switch", "up")
            for number in range(1, hosts + 1):
                self.hosts.append(Host(self, number))
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Net:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        for host in self.hosts:
            host.end()
        _ip("netns", "del", self.name)
        shutil.rmtree(self.folder, ignore_errors=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
