"""Processes that fill buffers: requests go out in turn, results come back in the same order.

Not torch's DataLoader, because of what it does when things go wrong: a worker's death raises a bare RuntimeError from a
signal handler, anywhere in the training loop; it takes its buffers from /dev/shm, which containers make small; and it
draws from torch's global generator. Here the death of a process is an error that names its signal, and buffers
are memory files, made once and used again.
"""

from __future__ import annotations

import mmap
import multiprocessing
import multiprocessing.util
import os
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, NoReturn, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from sports_ray.errors import ProcessDied, SportsRayError, TrainingError

T = TypeVar("T")
R = TypeVar("R")

_PARENT_CHECK_S = 1.0


class Pool(Generic[T, R]):
    """`work(task, buffer) -> result` in forked processes; `size(task)` is the buffer's bytes.

    The processes ignore SIGINT and SIGTERM, which reach whole process groups: the parent decides when they end. They
    end by themselves within about a second of the parent's death."""

    def __init__(
        self, work: Callable[[T, NDArray[np.uint8]], R], size: Callable[[T], int], processes: int, depth: int = 2
    ) -> None:
        self._size = size
        self._buffers = [_Buffer() for _ in range(processes * depth)]
        self._children: list[tuple[BaseProcess, Connection]] = []
        fork = multiprocessing.get_context("fork")
        for _ in range(processes):
            mine, theirs = fork.Pipe()
            others = [mine, *(connection for _, connection in self._children)]
            args = (theirs, others, work, size, self._buffers, os.getpid())
            child = fork.Process(target=_serve, args=args, daemon=True)
            child.start()
            theirs.close()
            self._children.append((child, mine))
        # Before multiprocessing's own end, which would wait for processes that ignore SIGTERM.
        args_end = (self._children, self._buffers)
        self._finalize = multiprocessing.util.Finalize(self, _end, args=args_end, exitpriority=100)

    def results(self, tasks: Iterable[T]) -> Iterator[tuple[T, NDArray[np.uint8], R]]:
        """(task, its buffer, its result) for each task, in order. A buffer is valid until the next is asked for.

        Raises what `work` raised, or ProcessDied."""
        source = iter(tasks)
        pending: deque[tuple[T, int]] = deque()
        turn = 0
        while True:
            while len(pending) < len(self._buffers):
                try:
                    task = next(source)
                except StopIteration:
                    break
                slot = turn % len(self._buffers)
                self._send(slot, task)
                pending.append((task, slot))
                turn += 1
            if not pending:
                return
            task, slot = pending.popleft()
            result = self._receive(slot)
            yield task, self._buffers[slot].array(self._size(task)), result

    def close(self) -> None:
        """End the processes and free the buffers; may be called twice."""
        self._finalize()

    def _send(self, slot: int, task: T) -> None:
        child, connection = self._children[slot % len(self._children)]
        try:
            connection.send((slot, task))
        except OSError:
            _died(child)

    def _receive(self, slot: int) -> Any:
        child, connection = self._children[slot % len(self._children)]
        wait([connection, child.sentinel])
        try:
            result = connection.recv() if connection.poll() else _died(child)
        except (EOFError, OSError):
            _died(child)
        if isinstance(result, Exception):
            raise result
        return result


class _Buffer:
    """Memory behind a file descriptor that parent and child both hold, so that it can grow after the fork."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.memfd_create("sports-ray"), "r+b") if hasattr(os, "memfd_create") else _unlinked()
        self._array = np.empty(0, np.uint8)

    def array(self, size: int) -> NDArray[np.uint8]:
        if len(self._array) < size:
            if os.fstat(self._file.fileno()).st_size < size:
                os.ftruncate(self._file.fileno(), size)
            self._array = np.frombuffer(mmap.mmap(self._file.fileno(), size), dtype=np.uint8)
        return self._array[:size]

    def close(self) -> None:
        self._array = np.empty(0, np.uint8)
        self._file.close()


def _unlinked() -> Any:
    return tempfile.TemporaryFile()


def _serve(
    connection: Connection,
    others: list[Connection],
    work: Callable[[Any, NDArray[np.uint8]], Any],
    size: Callable[[Any], int],
    buffers: list[_Buffer],
    parent: int,
) -> None:
    """A child's life. Without the parent's ends of the pipes (`others`), the parent's death is an EOF here."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    for other in others:
        other.close()
    try:
        while True:
            while not connection.poll(_PARENT_CHECK_S):
                if os.getppid() != parent:
                    return
            slot, task = connection.recv()
            try:
                result = work(task, buffers[slot].array(size(task)))
            except SportsRayError as error:
                result = error
            except Exception as error:
                result = TrainingError("a loader process failed", got=f"{type(error).__name__}: {error}")
            connection.send(result)
    except (EOFError, OSError):  # the parent is gone
        return


def _died(child: BaseProcess) -> NoReturn:
    child.join(timeout=5)
    code = child.exitcode
    how = "no exit code"
    if code is not None:
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
    raise ProcessDied(
        f"loader process {child.pid} died",
        got=how,
        cure="run the same command again; if memory ran out, lower data.cache_gb or data.loader_processes",
    )


def _end(children: list[tuple[BaseProcess, Connection]], buffers: list[_Buffer]) -> None:
    for child, connection in children:
        connection.close()
        child.kill()  # holds nothing that needs an orderly end
    for child, _ in children:
        child.join()
    for buffer in buffers:
        buffer.close()
