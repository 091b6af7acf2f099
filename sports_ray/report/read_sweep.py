"""What lies in a sweep's folder, as records for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sports_ray.report.read_run import SessionFacts, sessions
from sports_ray.store.codec import unseal
from sports_ray.sweep.board import Row
from sports_ray.sweep.conduct import Conductor
from sports_ray.sweep.folder import SWEEP, SweepDir
from sports_ray.sweep.spec import SweepSpec


@dataclass(frozen=True, slots=True)
class TrialRecord:
    row: Row
    """Of the leaderboard."""
    history: Sequence[Mapping[str, Any]]
    """Its evaluations."""
    sessions: Sequence[SessionFacts]

    @property
    def steps_done_again(self) -> int:
        """At least so many: where a session began before the last step that the one before had recorded."""
        pairs = zip(self.sessions, self.sessions[1:], strict=False)
        return sum(max(0, before.reached - after.first_step) for before, after in pairs)

    @property
    def seconds_lost(self) -> float | None:
        """For as long as those steps take in the sessions that ended by themselves; None where none did."""
        ends = [one.end for one in self.sessions if one.end and one.end.get("steps")]
        steps = sum(end["steps"] for end in ends)
        seconds = sum(end.get("step_seconds", 0.0) for end in ends)
        return self.steps_done_again * seconds / steps if steps else None


@dataclass(frozen=True, slots=True)
class SweepRecord:
    name: str
    where: str
    spec: SweepSpec
    command: Any
    trials: Sequence[TrialRecord]
    """In the order of the leaderboard."""


def read_sweep(folder: SweepDir) -> SweepRecord:
    """Reads a sweep, finished or not. RunError if its record is damaged or missing."""
    record = unseal(folder.storage.read(SWEEP), f"{folder.storage.uri}/{SWEEP}")
    spec = SweepSpec.from_json(record)
    trials = []
    for row in Conductor(spec, folder).rows():
        run_dir = folder.run_dir(row["trial"])
        events = run_dir.read_timings()
        trials.append(TrialRecord(row, run_dir.read_metrics(), sessions(events) if events else ()))
    return SweepRecord(spec.name, folder.storage.uri, spec, record.get("command"), trials)
