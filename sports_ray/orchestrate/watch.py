"""Decides what comes after the end of an attempt: which ends count as crashes, and when there have been too many."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sports_ray.errors import TrainingError


@dataclass(slots=True)
class Retries:
    """Decides after an end of training what comes next: a pure state machine, fed with causes and steps.

    Preemptions are unlimited; crashes are limited to `limit` in a row without a step of progress between them.
    """

    limit: int
    crashes: int = 0
    step: int = -1

    def crashed(self, step: int) -> bool:
        """Takes note of a crash at `step` steps done; whether to try again."""
        self.crashes = self.crashes + 1 if step <= self.step else 1
        self.step = max(self.step, step)
        return self.crashes <= self.limit


@dataclass(slots=True)
class Watch:
    """What the driver knows of the running attempt, from the monitor's events."""

    retries: Retries
    heard: float = field(default_factory=time.monotonic)
    """When a worker called last, or the fit began, on the monotonic clock."""
    pushes: int = 0
    alive: bool = False
    attempts: int = 0
    preempted: bool = False
    """Whether a worker of this fit has been told that its node goes away."""
    step: int = 0
    size: int = 0
    """Workers of the newest attempt."""
    lost: set[str] = field(default_factory=set)
    """Nodes known to be dead."""

    def begin(self, lost: set[str]) -> None:
        """A new fit; `lost`: the nodes that are dead by now."""
        self.heard, self.pushes, self.alive, self.attempts, self.preempted = time.monotonic(), 0, False, 0, False
        self.lost = lost

    def called(self, pushes: int) -> None:
        if pushes != self.pushes:
            self.heard, self.pushes = time.monotonic(), pushes

    def take(self, event: Mapping[str, Any], lost: Callable[[], set[str]]) -> str:
        """The reason for a new attempt of Ray's own, if the event tells of one; `lost` looks which nodes are dead.

        The loss of a node, and another number of workers, are the cluster's affair and not counted as crashes.
        Raises TrainingError when workers keep dying without progress.
        """
        reason = ""
        if event["kind"] == "workers":
            reason = self._new_attempt(event["size"], lost())
        self.preempted = self.preempted or event["kind"] == "preempted"
        self.step = max(self.step, int(event.get("committed") or 0))
        return reason

    def _new_attempt(self, size: int, lost: set[str]) -> str:
        gone, before = len(lost - self.lost), self.size
        self.alive, self.attempts, self.size, self.lost = True, self.attempts + 1, size, lost
        if self.attempts == 1 and before in (0, size):
            return ""
        now = f"{size} worker{'s' * (size > 1)} now, {before} before" if size != before else ""
        if gone:
            return f"a node was lost{', ' * bool(now)}{now}"
        if now:
            return now
        if not self.retries.crashed(self.step):
            raise crash_limit(self.retries)
        return "a worker died"


def crash_limit(retries: Retries) -> TrainingError:
    return TrainingError(
        f"workers died {retries.crashes} times in a row with no progress past step {retries.step}",
        want=f"at most cluster.max_failures = {retries.limit}",
        cure="the reason is in the run's logs/ folder; mend it and give the same command again",
    )
