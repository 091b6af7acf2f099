"""What lies in a run's folder, as records for the page. Nothing is loaded that predicts, and nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sports_ray.config import TrainConfig
from sports_ray.data.manifest import Manifest
from sports_ray.data.order import steps_per_epoch
from sports_ray.errors import RunError, SportsRayError
from sports_ray.recipe import config_from_dict
from sports_ray.report.words import is_number
from sports_ray.store.run_dir import RunDir

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """One session: from a start or resume to its end, or to the death that timings.jsonl cannot know of."""

    number: int
    """From 1."""
    start: Facts
    """Its `start` event: step, precision, device, host, world, versions."""
    end: Facts | None
    """Its `end` event; None: killed, or still under way."""
    commits: int
    stall: float
    """Seconds for which commits held training up."""
    reached: int
    """The last step that it is known to have done."""

    @property
    def first_step(self) -> int:
        return _step(self.start)

    @property
    def images_per_second(self) -> float | None:
        end = self.end or {}
        images, seconds = end.get("images"), end.get("step_seconds")
        return images / seconds if is_number(images) and is_number(seconds) and seconds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    name: str
    where: str
    """Path or address of its folder."""
    record: Facts
    """run.json."""
    config: TrainConfig | None
    """None where this version cannot read it."""
    history: Sequence[Facts]
    """Lines of metrics.jsonl."""
    events: Sequence[Facts]
    """Of timings.jsonl."""
    sessions: Sequence[SessionFacts]
    settled: Facts
    weights: Facts
    """Sidecars of published weights, by name (best, last)."""
    class_counts: Mapping[str, Sequence[int]]
    """Images of each class, by split; empty where there is no manifest."""
    notes: Sequence[str]
    """What the scan warned of."""

    @property
    def model(self) -> str:
        return str(self.record.get("config", {}).get("model", {}).get("name") or self.name)

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.record.get("classes") or ()]

    @property
    def data(self) -> Facts:
        return self.record.get("data") or {}

    @property
    def steps_per_epoch(self) -> int:
        """0: unknown."""
        images = self.data.get("train")
        if self.config is None or not is_number(images):
            return 0
        return steps_per_epoch(int(images), self.config.loop.global_batch)

    @property
    def steps_done_again(self) -> int:
        """At least so many: known where a session began before the last step that the one before had recorded."""
        pairs = zip(self.sessions, self.sessions[1:], strict=False)
        return sum(max(0, before.reached - after.first_step) for before, after in pairs)


def read_run(run_dir: RunDir, name: str) -> RunRecord:
    """Reads a run. Raises RunError if there is none; what else is damaged is left out of the page."""
    record = run_dir.read_record()
    if record is None:
        raise RunError("run", got=run_dir.storage.uri, want="the folder of a run", cure="see `sports-ray status`")
    config, settled = None, None
    with suppress(SportsRayError, TypeError, KeyError, AttributeError, ValueError):
        config = config_from_dict(record["config"])
    with suppress(SportsRayError):
        settled = run_dir.read_settled()
    counts, notes = _manifest_facts(run_dir)
    events = run_dir.read_timings()
    return RunRecord(
        name=name,
        where=run_dir.storage.uri,
        record=record,
        config=config,
        history=run_dir.read_metrics(),
        events=events,
        sessions=sessions(events),
        settled=settled or {},
        weights={key: found for key in ("best", "last") if (found := _sidecar(run_dir, key))},
        class_counts=counts,
        notes=notes,
    )


def sessions(events: Sequence[Facts]) -> list[SessionFacts]:
    """Events of timings.jsonl, cut where sessions start."""
    cuts = [place for place, event in enumerate(events) if event.get("kind") == "start"]
    found = []
    for number, (first, last) in enumerate(zip(cuts, [*cuts[1:], len(events)], strict=True), 1):
        inside = events[first:last]
        commits = [event for event in inside if event.get("kind") == "commit"]
        end = next((event for event in inside if event.get("kind") == "end"), None)
        stall = sum(event["stall"] for event in commits if is_number(event.get("stall")))
        found.append(SessionFacts(number, inside[0], end, len(commits), stall, max(map(_step, inside))))
    return found


def _step(event: Facts) -> int:
    step = event.get("step")
    return int(step) if is_number(step) else 0


def _sidecar(run_dir: RunDir, name: str) -> Facts | None:
    with suppress(SportsRayError):
        return run_dir.describe_weights(name)
    return None


def _manifest_facts(run_dir: RunDir) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """Images of each class by split, and the scan's notes; nothing where there is no sound manifest."""
    with suppress(SportsRayError):
        manifest = Manifest.from_bytes(run_dir.read_manifest())
        return {split: manifest.class_images(split).tolist() for split in ("train", "val", "test")}, manifest.notes
    return {}, ()
