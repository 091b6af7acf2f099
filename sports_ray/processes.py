"""Processes of this machine, each known by its id and its start: ids are given out again."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

Processes = dict[int, str]
"""When each process started, by its id."""
SWITCH_SECONDS = 0.0005
"""How soon a computing thread gets the interpreter back from Ray's; Python's default is 5 ms."""


SUSPENDED_SECONDS = 5.0


class Standstill:
    """What a thread that looks every `pause` seconds knows of its process: if a look comes far too late, the clock ran on while
    the process did not (Ctrl-Z, a paused container, a terminal that takes nothing)."""

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._looked = time.monotonic()

    def look(self) -> float:
        """Seconds for which it stood still since the last look; 0.0 if for no more than SUSPENDED_SECONDS."""
        now = time.monotonic()
        late, self._looked = now - self._looked - self._pause, now
        return late if late > SUSPENDED_SECONDS else 0.0


def process_start(pid: int) -> str | None:
    """When a process of this host started, in ticks since boot; "" where that is not told; None if it does not live."""
    if sys.platform != "linux":
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""
    try:
        # The name, in parentheses, may hold anything: the fields are counted from its end.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def below(pid: int) -> Processes:
    """All processes that descend from `pid`, itself included, where there is a /proc; else itself alone."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):  # it has just ended
            parents[int(entry.name)] = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {one: start for one in found if (start := process_start(one)) is not None}


def still_there(processes: Processes) -> Processes:
    """Those that live on."""
    return {pid: start for pid, start in processes.items() if process_start(pid) == start}


def name_of(pid: int) -> str:
    """What a process calls itself, with its arguments; empty if it has just gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def schedule_normally() -> None:
    """Gives this thread, and those it starts, precedence over Ray's own, which run as batch jobs (`orchestrate/cluster.py`).

    In a cluster that was joined they run like this one, but a worker has been made nice; root may take that back.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    with suppress(OSError):
        if hasattr(os, "SCHED_OTHER"):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, 0)
