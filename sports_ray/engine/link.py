"""What the engine asks of whoever runs it, what it returns, and the twin for a run inside this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sports_ray.stops import Stops


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a stretch of training ended."""

    status: str
    """done or paused."""
    reason: str
    """Why it paused; empty when done."""
    step: int
    """Steps done that are safe in the store."""
    total_steps: int
    lost: int = 0
    """Steps done that the store did not take."""
    cure: str = ""
    """What would mend that."""
    note: str = ""
    """Why no step was done in this session, where that is worth a word."""


class Link(Protocol):
    deadline: float
    """Unix time at which the run has to be over; 0: none."""

    def should_stop(self) -> str:
        """Reason to stop at the next step's end, or "". Called by each rank at each step: must be cheap and local."""
        ...

    def progress(self, event: Mapping[str, Any]) -> None:
        """Takes a JSON-able fact for people to see; rank 0 alone calls it, and it must not block."""
        ...

    def report(self, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of one evaluation; every rank calls it equally often."""
        ...


class InProcessLink:
    """Link for `--workers 0`: SIGINT and SIGTERM ask for a stop; a second SIGINT ends the process at once, with code 130."""

    def __init__(
        self,
        on_progress: Callable[[Mapping[str, Any]], None],
        deadline: float = 0.0,
        other_reason: Callable[[], str] = lambda: "",
        stops: Stops | None = None,
    ) -> None:
        """`stops`: what a command has collected from its start on; None: signals count from `with` to its end."""
        self.deadline = deadline
        self._on_progress = on_progress
        self._other_reason = other_reason
        self._own = stops is None
        self._stops = stops or Stops()

    def __enter__(self) -> InProcessLink:
        if self._own:
            self._stops.install()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._own:
            self._stops.restore()

    def should_stop(self) -> str:
        return self._stops.look() or self._other_reason()

    def progress(self, event: Mapping[str, Any]) -> None:
        self._on_progress(event)

    def report(self, metrics: Mapping[str, float]) -> None:
        """Nobody else listens in this process."""
