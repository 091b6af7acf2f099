"""What the engine asks of whoever runs it, and the twin for a run inside this process."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol


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
    """Link for `--workers 0`: SIGINT and SIGTERM ask for a stop; a second SIGINT ends the process at once."""

    def __init__(
        self,
        on_progress: Callable[[Mapping[str, Any]], None],
        time_budget: float = 0.0,
        other_reason: Callable[[], str] = lambda: "",
    ) -> None:
        self.deadline = time.time() + time_budget if time_budget else 0.0
        self._on_progress = on_progress
        self._other_reason = other_reason
        self._reason = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> InProcessLink:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        if self._reason and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._reason = signal.Signals(number).name

    def should_stop(self) -> str:
        return self._reason or self._other_reason()

    def progress(self, event: Mapping[str, Any]) -> None:
        self._on_progress(event)

    def report(self, metrics: Mapping[str, float]) -> None:
        """Nobody else listens in this process."""
