"""Guards of a training: the loss scale of fp16, running out of memory, and a process that stops moving."""

from __future__ import annotations

import faulthandler
import logging
import math
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from sports_ray.processes import SUSPENDED_SECONDS, Standstill

logger = logging.getLogger(__name__)

GROWTH_INTERVAL = 2000
HOST_MEMORY = ("can't allocate memory", "could not create a primitive")
"""What torch's allocator and oneDNN say on a CPU when there is no memory left."""
FIRST_SECONDS = 900.0
"""What a step may take that compiles or tunes kernels, as the first ones do."""

Kind = Literal["step", "evaluation"]
"""What a beat ends: a training step, or a batch of an evaluation."""


@dataclass(slots=True)
class LossScale:
    """Dynamic loss scale (Micikevicius et al. 2018): halved at an overflow, doubled after 2,000 steps without one.

    Own code in place of torch's GradScaler, because finite check, unscaling and clipping are here one pass over the
    gradients, after they were summed over ranks: every rank decides alike with no further collective.
    """

    value: float = 1.0
    good_steps: int = 0
    dynamic: bool = False

    @classmethod
    def for_precision(cls, precision: str) -> LossScale:
        return cls(2.0**16, 0, True) if precision == "fp16" else cls()

    def update(self, finite: bool) -> None:
        if not self.dynamic:
            return
        if not finite:
            self.value, self.good_steps = max(self.value / 2, 2.0**-14), 0
        elif self.good_steps + 1 == GROWTH_INTERVAL:
            self.value, self.good_steps = min(self.value * 2, 2.0**24), 0
        else:
            self.good_steps += 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the host."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in HOST_MEMORY)
    )


class Watchdog:
    """Ends a process that does not move: no `beat` for longer than max(60 s, 20 x the median time of a beat).

    Steps and evaluation batches have a median each, of which the larger counts: after hundreds of quick batches a slow
    step is still known for what it takes. Time for which the process was suspended (Ctrl-Z, a paused container) is no
    hang. The stacks of all threads go to the log, then the process exits with code 3, so that it can be replaced.
    """

    def __init__(
        self, least: float = 60.0, first: float = FIRST_SECONDS, on_hang: Callable[[float], None] | None = None
    ) -> None:
        self._least, self._first = least, first
        # Both from the start: the watchdog's thread goes over them while the other one beats.
        self._gaps: dict[Kind, deque[float]] = {"step": deque(maxlen=101), "evaluation": deque(maxlen=101)}
        self._last = time.monotonic()
        self._granted = 0.0
        self._pause = min(1.0, self._least / 4)
        self._still, self._stood, self._looking = Standstill(self._pause), 0.0, threading.Lock()
        self._on_hang = on_hang or _exit_with_stacks
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()

    def beat(self, kind: Kind) -> None:
        now = time.monotonic()
        self._gaps[kind].append(now - self._last)
        self._last = now

    def wait(self) -> None:
        """Says that the process waits on purpose, for a slow store; leaves the measured times alone."""
        self._last = time.monotonic()

    @contextmanager
    def waiting(self, seconds: float) -> Iterator[None]:
        """As `wait`, around a call that cannot say so itself on the way; it has at least so many seconds."""
        self.wait()
        self._granted = seconds
        try:
            yield
        finally:
            self.wait()
            self._granted = 0.0

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Around a call that may wait for people: a terminal that is stopped (Ctrl-S) is no hang, and no step took so long."""
        begin, before, self._granted = time.monotonic(), self._granted, math.inf
        try:
            yield
        finally:
            seconds = time.monotonic() - begin
            if seconds > SUSPENDED_SECONDS:
                self._stood += seconds
            self._last += seconds
            self._granted = before

    def stood_still(self) -> float:
        """Seconds, since the last call, for which the process was suspended or waited `aside`."""
        self._look()
        stood, self._stood = self._stood, 0.0
        return stood

    @property
    def patience(self) -> float:
        """Seconds without a beat that are too many. The first steps may compile or tune kernels: they get more."""
        if len(self._gaps["step"]) < 3:
            return max(self._first, self._least)
        return max(self._least, *(20 * statistics.median(gaps) for gaps in self._gaps.values() if gaps))

    def _watch(self) -> None:
        while not self._stopped.wait(self._pause):
            # Read before the time of the last beat: at the end of a wait that is set first, and then the limit falls.
            now, limit = time.monotonic(), max(self.patience, self._granted)
            self._look()
            still = now - self._last
            if still > limit:
                self._on_hang(still)
                return

    def _look(self) -> None:
        """Whichever thread comes first after a suspension; the step then needs the time that was left of it."""
        with self._looking:
            if stood := self._still.look():
                self._stood += stood
                self._last = time.monotonic()


def _exit_with_stacks(still: float) -> None:
    logger.critical("hang: no step for %.0f s; stacks of all threads follow on stderr, the process ends", still)
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    sys.stderr.flush()
    os._exit(3)
