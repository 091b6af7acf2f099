"""Processes of a test, found by name, waited for, or made to stand still."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from sports_ray.orchestrate.nodes import Nodes, raylet
from sports_ray.processes import below, name_of

__all__ = ["Nodes", "named_below", "raylet", "standing_still", "wait_for_end"]


def named_below(pid: int, name: str) -> list[int]:
    """Processes below `pid` whose command starts with `name`."""
    return [one for one in below(pid) if name_of(one).startswith(name)]


def wait_for_end(pid: int, seconds: float) -> None:
    """Returns when a process, of whomever, has ended; AssertionError if it lives longer."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([handle], [], [], seconds)
    finally:
        os.close(handle)
    assert ended, f"process {pid} still lives after {seconds} s"


@contextmanager
def standing_still(pids: Iterable[int]) -> Iterator[Callable[[], None]]:
    """Stops processes; gives a function that wakes those that are still there. Nothing of them is left behind."""
    pids = sorted(pids)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)

    def wake() -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    try:
        yield wake
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
