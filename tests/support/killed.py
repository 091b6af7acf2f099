"""Kills a job with SIGKILL at its k-th system call that changes the disk, in a child process that is forked for it.

`power` goes further than a kill: what was not fsynced is torn (data) or undone (names in folders), as a power cut may do.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of deaths with real fsyncs would take minutes on a busy disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


_CALLS = ("open", "write", "fsync", "replace", "link", "unlink", "mkdir", "rmdir")


def points_of(job: Callable[[], object]) -> int:
    """How many such calls the job makes, by running it to its end in a child."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _end_if_stuck()
            calls = _Calls(-1, None)
            calls.watch()
            job()
            calls.unwatch()
            os.write(write, str(calls.count).encode())
        finally:
            os._exit(0)
    os.close(write)
    count = int(os.read(read, 20) or b"0")
    os.close(read)
    os.waitpid(child, 0)
    assert count, "the job failed"
    return count


def run_killed(job: Callable[[], object], point: int, power: str | None = None) -> None:
    """Run the job in a child that dies just before call `point`; `power`: None, "torn", "lost" or "mixed"."""
    child = os.fork()
    if child == 0:
        try:
            _end_if_stuck()
            _Calls(point, power).watch()
            job()
        finally:
            os._exit(1)  # not reached: the job makes more calls than `point`
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"not killed at {point}: {status}"


def _end_if_stuck() -> None:
    """A forked child has none of torch's threads: a job that computes on large tensors would wait for them for ever."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(20)


class _Calls:
    def __init__(self, point: int, power: str | None) -> None:
        self.count, self.point, self.power = 0, point, power
        self.real: dict[str, Any] = {name: getattr(os, name) for name in _CALLS}
        self.paths: dict[int, str] = {}
        self.dirty: set[str] = set()
        self.pending: list[tuple[str, Callable[[], None]]] = []

    def watch(self) -> None:
        for name in _CALLS:
            setattr(os, name, self._wrapped(name))

    def unwatch(self) -> None:
        for name, function in self.real.items():
            setattr(os, name, function)

    def _wrapped(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                handle = self.real["open"](*args, **kwargs)
                self.paths[handle] = args[0]
                return handle
            if self.count == self.point:
                self.unwatch()
                if name == "write":
                    os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
                if self.power:
                    self._cut()
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1
            path = self._place(args[0], kwargs)
            before = self._kept(name, path if name != "replace" and name != "link" else args[1])
            result = self.real[name](*args, **kwargs)
            self._note(name, path, args, result, before)
            return result

        return call

    def _place(self, path: Any, kwargs: dict[str, Any]) -> str:
        if isinstance(path, int):
            return self.paths[path]
        folder = kwargs.get("dir_fd")
        return os.path.join(self.paths[folder], path) if folder is not None else path

    def _kept(self, name: str, target: str) -> bytes | None:
        if name in ("replace", "unlink") and os.path.isfile(target):
            return Path(target).read_bytes()
        return None

    def _note(self, name: str, path: str, args: Any, result: Any, before: bytes | None) -> None:
        if name == "open":
            self.paths[result] = path
            self._pend(path, lambda: Path(path).unlink(missing_ok=True))
        elif name == "write":
            self.dirty.add(path)
        elif name == "fsync":
            self.dirty.discard(path)
            if stat.S_ISDIR(os.stat(path).st_mode):
                self.pending = [(folder, undo) for folder, undo in self.pending if folder != path]
        elif name in ("replace", "link"):
            target = args[1]
            if path in self.dirty:
                self.dirty.add(target)
            self._pend(target, lambda: _restore(target, before))
        elif name == "unlink":
            self._pend(path, lambda: _restore(path, before))
        elif name == "mkdir":
            self._pend(path, lambda: shutil.rmtree(path, ignore_errors=True))

    def _pend(self, path: str, undo: Callable[[], None]) -> None:
        self.pending.append((os.path.dirname(path), undo))

    def _cut(self) -> None:
        dice = random.Random(self.point)
        for path in self.dirty:
            if os.path.isfile(path):
                os.truncate(path, os.path.getsize(path) // 2)
        for _, undo in reversed(self.pending):
            if self.power == "lost" or (self.power == "mixed" and dice.random() < 0.5):
                undo()


def _restore(path: str, content: bytes | None) -> None:
    if content is None:
        Path(path).unlink(missing_ok=True)
    elif os.path.isdir(os.path.dirname(path)):
        Path(path).write_bytes(content)
