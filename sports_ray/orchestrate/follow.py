"""Follows what a job writes, through lost connections: the job needs nobody who listens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from sports_ray.errors import TrainingError
from sports_ray.orchestrate.jobs import CUT, LOST, Job, Jobs, first_line

PATIENCE = 600.0
"""Seconds for which a cluster may be out of reach before nobody waits any longer; the job goes on without us."""
QUIET_SECONDS = 20.0
"""How long a log may be silent until the cluster is asked whether the job still runs."""
RETRY_SECONDS = 1.0

Answer = TypeVar("Answer")


class Follower:
    """The log of a job, line by line to its end, through lost connections: no line is missed, none comes twice."""

    def __init__(self, jobs: Jobs, job: str, trouble: Callable[[str], None], patience: float = PATIENCE) -> None:
        """`trouble` is told when the cluster cannot be reached, and when it can again."""
        self._jobs, self._job, self._trouble = jobs, job, trouble
        self._patience = Patience(job, trouble, patience)
        self._seen = 0  # characters
        self._rest = ""

    def __iter__(self) -> Iterator[tuple[str, bool]]:
        """(line, whether it was written while somebody followed). Raises TrainingError when patience is at its end."""
        live = False
        while True:
            try:
                job = self._jobs.info(self._job)  # asked first: the log of a job that is over is read whole
                if job.status == LOST:
                    return
                for line in self._take(self._log(job)[self._seen :]):
                    yield line, live
                self._patience.answered()
                if job.over:
                    if self._rest:
                        yield self._rest, live
                    return
                live = True
                for piece in self._pieces():
                    for line in self._take(piece):
                        yield line, True
            except CUT as error:
                self._patience.failed(error)

    def _log(self, job: Job) -> str:
        try:
            return self._jobs.log(job.id)
        except RuntimeError as error:
            if not job.over:
                raise
            # It lies on the node where the job ran, which may have gone with it.
            self._trouble(f"the end of its log cannot be read ({first_line(error)})")
            return ""

    def _take(self, text: str) -> list[str]:
        self._seen += len(text)
        *lines, self._rest = (self._rest + text).split("\n")
        return lines

    def _pieces(self) -> Iterator[str]:
        """What the connection brings beyond what was seen; it ends with the job."""
        skip = self._seen
        loop = asyncio.new_event_loop()
        tail: Any = self._jobs.tail(self._job)
        pending: asyncio.Task[str] | None = None
        try:
            while True:
                pending = pending or loop.create_task(anext(tail))
                done, _ = loop.run_until_complete(asyncio.wait({pending}, timeout=QUIET_SECONDS))
                if not done:
                    if self._jobs.info(self._job).over:
                        return
                    continue
                finished, pending = pending, None
                try:
                    piece = finished.result()
                except StopAsyncIteration:
                    return
                old, skip = min(skip, len(piece)), max(0, skip - len(piece))
                if piece[old:]:
                    yield piece[old:]
        finally:
            if pending is not None:
                pending.cancel()
                loop.run_until_complete(asyncio.wait({pending}))
            loop.run_until_complete(tail.aclose())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


class Patience:
    """Waits between tries while a cluster does not answer, tells when it begins and ends, and gives up in the end."""

    def __init__(self, job: str, trouble: Callable[[str], None], seconds: float = PATIENCE) -> None:
        self._job, self._trouble, self._seconds = job, trouble, seconds
        self._away: float | None = None

    def answered(self) -> None:
        if self._away is not None:
            self._trouble("the cluster answers again")
        self._away = None

    def failed(self, error: BaseException) -> None:
        """Returns when it is time for another try; TrainingError when there were enough."""
        now = time.monotonic()
        if self._away is None:
            self._away = now
            self._trouble(f"the cluster does not answer ({first_line(error)}): trying again, its jobs go on without us")
        if now - self._away > self._seconds:
            raise TrainingError(
                f"the cluster has not answered for {self._seconds:.0f} s",
                got=first_line(error),
                cure=f"when it is back, `sports-ray logs {self._job} --follow` goes on from here",
            ) from error
        time.sleep(RETRY_SECONDS)


def patiently(act: Callable[[], Answer], patience: Patience) -> Answer:
    """What `act` returns, once the cluster answers."""
    while True:
        try:
            found = act()
        except CUT as error:
            patience.failed(error)
        else:
            patience.answered()
            return found
