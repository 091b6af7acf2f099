"""What came out: kills, differences, work redone, times to recover."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

PHASES = ("start-up", "step", "evaluation", "saving")


@dataclass(slots=True)
class Kill:
    """One SIGKILL and what followed."""

    round: int
    kind: str
    """driver or worker."""
    pid: int
    phase: str
    step: int
    """Steps done, as far as the run had told: it tells four times a second, workers on Ray once."""
    at: float = 0.0
    """When, on the monotonic clock."""
    resumed: int | None = None
    """Step from which the next attempt went on."""
    seconds: float | None = None
    """From the kill to the first step after it; None if no step was left to do, or another kill came first."""

    @property
    def redone(self) -> int:
        """Steps that were lost and done again."""
        return max(0, self.step - self.resumed) if self.resumed is not None else 0


@dataclass(slots=True)
class Round:
    """One run, killed several times and trained to its end."""

    number: int
    path: str
    kills: int = 0
    seconds: float = 0.0
    differences: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    unbroken: str = ""
    unbroken_seconds: float = 0.0
    steps: int = 0
    """Optimiser steps of a run."""
    rounds: list[Round] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    """Processes of the killed that had to be ended at last."""
    seconds: float = 0.0

    @property
    def different(self) -> list[Round]:
        return [one for one in self.rounds if one.differences]

    @property
    def holds(self) -> bool:
        return bool(self.rounds and self.kills) and not self.different and not self.left_behind

    def counts(self) -> dict[str, dict[str, int]]:
        """Kills by kind and phase."""
        found = Counter((kill.kind, kill.phase) for kill in self.kills)
        kinds = sorted({kill.kind for kill in self.kills})
        return {kind: {phase: found[kind, phase] for phase in PHASES} for kind in kinds}

    def redone(self) -> list[int]:
        return [kill.redone for kill in self.kills]

    def recoveries(self, kind: str | None = None) -> list[float]:
        """Seconds from each kill to the first step after it."""
        return [kill.seconds for kill in self.kills if kill.seconds is not None and kind in (None, kill.kind)]

    def to_json(self) -> dict[str, Any]:
        redone, seconds = self.redone(), self.recoveries()
        return {
            "holds": self.holds,
            "rounds": len(self.rounds),
            "kills": len(self.kills),
            "kills_by_phase": self.counts(),
            "steps_a_run": self.steps,
            "unbroken_seconds": round(self.unbroken_seconds, 2),
            "different": [asdict(one) for one in self.different],
            "steps_redone": sum(redone),
            "steps_redone_worst": max(redone, default=0),
            "recovery_seconds_median": round(median(seconds), 2) if seconds else None,
            "recovery_seconds_worst": round(max(seconds), 2) if seconds else None,
            "left_behind": self.left_behind,
            "seconds": round(self.seconds, 1),
        }
