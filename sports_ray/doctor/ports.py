"""Whether Ray could start here, without starting it, and without importing it into this process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from functools import partial
from types import MappingProxyType

from sports_ray.doctor.check import Check

PORTS: Mapping[int, str] = MappingProxyType({6379: "head", 8265: "dashboard and jobs", 10001: "client"})
"""What `ray start --head` listens on."""
IMPORT_SECONDS = 90.0
ANSWER_SECONDS = 5.0

_Environment = partial(Check, "environment")


def check_ray() -> Iterator[Check]:
    """All checks of this module."""
    yield check_import()
    yield check_loopback()
    address = os.environ.get("RAY_ADDRESS", "")
    if address:
        yield check_address(address)
    else:
        yield check_ports()


def check_import() -> Check:
    """Imports Ray in a process of its own."""
    program = "import ray; print(ray.__version__)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return _no_ray(str(error))
    if done.returncode:
        return _no_ray((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return _Environment("ray", f"{done.stdout.strip()} can be imported")


def _no_ray(reason: str) -> Check:
    cure = "pip install -c constraints.txt -e .; without Ray, --workers 0 trains in this process"
    return _Environment("ray", f"cannot be imported: {reason}", "bad", "a Ray that starts", cure)


def check_loopback() -> Check:
    """A connection with oneself on loopback and on the address by which Ray would call this node."""
    for host in dict.fromkeys(("127.0.0.1", own_address())):
        try:
            with closing(socket.create_server((host, 0))) as server:
                server.settimeout(ANSWER_SECONDS)
                with closing(socket.create_connection(server.getsockname()[:2], timeout=ANSWER_SECONDS)) as client:
                    there, _ = server.accept()
                    with closing(there):
                        client.sendall(b"?")
                        there.settimeout(ANSWER_SECONDS)
                        if there.recv(1) != b"?":
                            raise ConnectionError("other bytes came than were sent")
        except OSError as error:
            cure = "allow local connections in the firewall, sandbox or VPN; or --workers 0, which needs none"
            want = "processes of this machine that can talk to each other"
            return _Environment(f"connections on {host}", str(error), "bad", want, cure)
    return _Environment("connections", f"this machine reaches itself on 127.0.0.1 and {own_address()}")


def own_address() -> str:
    """The address from which packets leave, as Ray finds it: connecting a datagram socket sends nothing."""
    with suppress(OSError), closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        probe.connect(("8.8.8.8", 80))
        return str(probe.getsockname()[0])
    return "127.0.0.1"


def check_address(address: str) -> Check:
    """The cluster that RAY_ADDRESS names, as far as its port answers."""
    host, _, port = address.removeprefix("ray://").removeprefix("http://").rpartition(":")
    if not port.isdigit():
        return _Environment("RAY_ADDRESS", f"{address}: not looked at")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        cure = "correct RAY_ADDRESS, or unset it: then training starts a cluster of its own"
        return _Environment("RAY_ADDRESS", f"{address}: {error}", "bad", "a head that answers", cure)
    return _Environment("RAY_ADDRESS", f"{address} answers")


def check_ports(ports: Mapping[int, str] = PORTS) -> Check:
    """Whether Ray's fixed ports can be bound. A training's own cluster takes others; `ray start --head` does not."""
    taken = []
    for port, use in ports.items():
        try:
            # As Ray's servers bind: a port of a cluster that has just ended is free.
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as error:
            taken.append(f"{port} ({use}): {error.strerror}")
    names = ", ".join(map(str, ports))
    if not taken:
        return _Environment("ray's ports", f"{names} are free")
    cure = (
        "if that is a cluster to be joined, export RAY_ADDRESS=auto; else start heads with `ray start --head --port=N "
        "--dashboard-port=N`; trainings of one machine find free ports by themselves"
    )
    return _Environment("ray's ports", ", ".join(taken), "look", "free ports", cure)
