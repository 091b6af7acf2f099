"""Commits in the background: one thread, one commit at a time, tried again with back-off while training goes on."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from sports_ray.errors import SportsRayError, StorageError

log = logging.getLogger(__name__)

Job = Callable[[], object]
OnError = Callable[[StorageError, int], None]
"""Called on the writer's thread with the error and the number of failures in a row."""


class AsyncWriter:
    """Runs jobs on one background thread. Not to be shared: `submit`, `wait`, `check`, `close` belong to one thread.

    A job that raises a StorageError is tried again after `first_delay` seconds, then after twice as long each time, at
    most `last_delay`; a newer job submitted in between takes its place. Any other error ends it, and is raised at the
    next `check`, `submit`, `wait` or `close` of the training thread: FencedError above all.
    """

    def __init__(self, on_error: OnError | None = None, first_delay: float = 1.0, last_delay: float = 60.0) -> None:
        self._on_error = on_error
        self._first_delay, self._last_delay = first_delay, last_delay
        self._changed = threading.Condition()
        self._job: Job | None = None
        self._running = self._closing = self._hurry = self._awaited = False
        self._fatal: BaseException | None = None
        self._failing_since: float | None = None
        self.last_error: StorageError | None = None
        """Why the last try failed; None after a success."""
        self.seconds = 0.0
        """How long the last successful job took, without the failures before it."""
        self.written = 0
        """Jobs that have succeeded."""
        self._thread = threading.Thread(target=self._work, name="commit", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a job is running, so that `submit` refuses. Between two tries it is not: newer work is welcome."""
        return self._running

    @property
    def pending(self) -> bool:
        """Whether a job is running or waits for its next try: not everything that was submitted is saved."""
        return self._job is not None

    @property
    def failing_seconds(self) -> float:
        """How long the storage has been failing; 0 if it is not."""
        since = self._failing_since
        return 0.0 if since is None else time.monotonic() - since

    def submit(self, job: Job) -> bool:
        """Hand over a job; False, and nothing taken, while another is running."""
        self.check()
        with self._changed:
            if self._running or self._closing:
                return False
            self._job = job
            self._hurry = self._failing_since is None
            self._running = self._hurry
            self._changed.notify_all()
            return True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all is saved, at most `timeout` seconds; whether it is. Tries at once, then each `first_delay`."""
        with self._changed:
            self._hurry = self._awaited = True
            self._changed.notify_all()
            saved = self._changed.wait_for(lambda: self._job is None or self._fatal is not None, timeout)
            self._awaited = False
        self.check()
        return saved

    def check(self) -> None:
        """Raise what ended a job for good, if anything did."""
        error = self._fatal
        if error is not None:
            raise error

    def close(self, timeout: float | None = None) -> bool:
        """Wait as `wait` does, then end the thread; a job that still fails is dropped. Whether all was saved."""
        try:
            return self.wait(timeout)
        finally:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            if not self._running:
                self._thread.join()

    def _work(self) -> None:
        with suppress(OSError, AttributeError):
            # On Linux a thread has its own niceness: hashing must not take the cores that training computes on.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        failures = 0
        while (job := self._next(failures)) is not None:
            try:
                failures = failures + 1 if self._fails(job, failures + 1) else 0
            except BaseException as error:  # handed to the training thread, which raises it
                self._end(error)
                return

    def _next(self, failures: int) -> Job | None:
        """The job to run now, after its back-off; None when the writer is closed."""
        with self._changed:
            slowest = self._first_delay if self._awaited else self._last_delay
            delay = min(slowest, self._first_delay * 2 ** min(failures - 1, 30)) if failures else None
            self._changed.wait_for(lambda: self._closing or (self._job is not None and self._hurry), delay)
            while self._job is None and not self._closing:
                self._changed.wait()
            if self._closing:
                return None
            self._running, self._hurry = True, False
            return self._job

    def _fails(self, job: Job, failures: int) -> bool:
        """Run the job; whether the storage failed it, so that it is to be tried again."""
        start = time.monotonic()
        try:
            job()
        except StorageError as error:
            log.warning("commit.failed failures=%d reason=%s", failures, error)
            with self._changed:
                self._running, self.last_error = False, error
                self._failing_since = self._failing_since or start
                self._changed.notify_all()
            if self._on_error is not None:
                self._on_error(error, failures)
            return True
        with self._changed:
            self._job, self._running = None, False
            self.last_error, self._failing_since = None, None
            self.seconds, self.written = time.monotonic() - start, self.written + 1
            self._changed.notify_all()
        return False

    def _end(self, error: BaseException) -> None:
        log.error("commit.ended reason=%s", error if isinstance(error, SportsRayError) else repr(error))
        with self._changed:
            self._fatal, self._running = error, False
            self._changed.notify_all()
