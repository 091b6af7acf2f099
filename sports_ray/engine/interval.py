"""How often to commit and how early to stop, from what steps, evaluations and commits have cost so far.

What a commit costs is what training loses by it: the stall while the state is copied, and how much longer than usual
the steps take beside the writing thread. How long the writing itself takes does not count: work that is not yet safe
adds the same to the expected loss whatever the interval is.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LEAST_INTERVAL, MOST_INTERVAL = 5.0, 3600.0
"""Seconds. Below, commits would wait for one another; above, nobody would trust the assumed time between failures."""
FIRST_INTERVAL = 10.0
"""Seconds to the first commit of a run, which tells what one costs."""
REMEMBERED_SESSIONS = 3
"""Sessions whose slowest pieces count: an outlier is forgotten, so that it cannot eat every later time budget."""
REMEMBERED_COMMITS = 32
MARGIN = 2.0
"""Seconds for what is not measured: the end of the loader, of the interpreter, and of torch in it."""


def commit_interval(cost: float | None, mtbf: float) -> float:
    """Seconds between two commits that waste least: sqrt(2 cost mtbf), within bounds; `cost` None: not known yet.

    Young, "A first order approximation to the optimum checkpoint interval", CACM 17 (1974). Daly's higher orders ("A higher
    order estimate of the optimum checkpoint interval", FGCS 22 (2006), eq. 37) change the waste by less than 1 % where
    cost < mtbf / 20."""
    if cost is None:
        return FIRST_INTERVAL
    return min(max(math.sqrt(2.0 * cost * mtbf), LEAST_INTERVAL), MOST_INTERVAL)


def stop_reserve(piece: float, commit: float, end: float) -> float:
    """Seconds before a deadline at which to stop.

    `piece`: the slowest step or evaluation batch; one is done after the decision, and one more when the decision falls
    just after the last moment. `commit`: the slowest one; one may be under way when the last one is asked for. `end`: what
    follows the last commit."""
    return 2.0 * piece + 2.0 * commit + end + MARGIN


@dataclass(slots=True)
class CommitCost:
    """Measures what commits take from training, in seconds each, from the times of the steps beside them."""

    usual: deque[float] = field(default_factory=lambda: deque(maxlen=30))
    """Seconds of the newest steps with no commit under way."""
    stalls: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED_COMMITS))
    excesses: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED_COMMITS))
    """How much longer than usual the steps from a commit to the end of its writing took, stall included."""
    _stall: float | None = None
    _excess: float = 0.0

    def begin(self, stall: float) -> None:
        """A commit has stalled training for so long, and is now being written."""
        self._close()
        self._stall = stall

    def step(self, seconds: float, writing: bool) -> None:
        """A step took so long, stalls included; `writing`: a commit is still under way at its end."""
        if self._stall is None:
            self.usual.append(seconds)
            return
        self._excess += seconds - statistics.median(self.usual) if self.usual else 0.0
        if not writing:
            self._close()

    def _close(self) -> None:
        if self._stall is not None:
            self.add(self._stall, self._excess)
        self._stall, self._excess = None, 0.0

    def add(self, stall: float, excess: float) -> None:
        self.stalls.append(stall)
        self.excesses.append(excess)

    @property
    def mean(self) -> float | None:
        """Mean of the newest commits, for all of them are paid; None: there was none.

        At least the stall: a difference of steps is noisy, and stands for little where it is small. The larger one of the means
        and not the mean of the larger ones, which noise would raise."""
        if not self.stalls:
            return None
        return max(statistics.fmean(self.stalls), statistics.fmean(self.excesses))

    @property
    def last(self) -> float | None:
        """Excess of the newest commit that is over; None: there was none."""
        return self.excesses[-1] if self.excesses else None


@dataclass(slots=True)
class Costs:
    """The slowest of each kind so far, in seconds, and what commits cost: of this session and the last ones."""

    first: float = 0.0
    """The first step of a session, with all that is made once."""
    step: float = 0.0
    batch: float = 0.0
    """Of an evaluation."""
    commit: float = 0.0
    """Stall and writing."""
    end: float = 0.0
    """What followed the last commit."""
    cost: CommitCost = field(default_factory=CommitCost)
    steps: int = 0
    """Steps of this session."""
    safe_at: float = field(default_factory=time.monotonic)
    """When the state of the newest safe commit was copied, on the monotonic clock; at first: the session's start."""

    def learn(self, timings: Sequence[Mapping[str, Any]]) -> None:
        """Takes over what the last sessions left in timings.jsonl."""
        starts = [index for index, event in enumerate(timings) if event.get("kind") == "start"]
        # The newest start is this session's own.
        for event in timings[starts[-REMEMBERED_SESSIONS - 1] :] if len(starts) > REMEMBERED_SESSIONS else timings:
            slowest = event.get("slowest", {})
            self.first = max(self.first, slowest.get("first", 0.0))
            self.step = max(self.step, slowest.get("step", 0.0))
            self.batch = max(self.batch, slowest.get("batch", 0.0))
            self.end = max(self.end, event.get("end_seconds", 0.0))
            if event.get("kind") == "commit":
                self.commit = max(self.commit, event["stall"] + event["seconds"])
                excess = event.get("excess")
                self.cost.add(event["stall"], event["stall"] if excess is None else excess)

    def slowest(self) -> dict[str, float]:
        """What later sessions learn from."""
        return {name: round(getattr(self, name), 4) for name in ("first", "step", "batch")}

    def took(self, seconds: float, writing: bool) -> None:
        """A step of this session took so long."""
        if self.steps:
            self.step = max(self.step, seconds)
            self.cost.step(seconds, writing)
        else:
            self.first = max(self.first, seconds)
        self.steps += 1

    def reserve(self) -> float:
        """Seconds to keep before the deadline, at this moment."""
        piece = max(self.step, self.batch, 0.0 if self.steps else self.first)
        return stop_reserve(piece, self.commit, self.end)
