"""How a run learned, from the lines of its metrics.jsonl: best epoch, rate, plateaus, and what each session added.

The lines hold no clock and no session, so that a resumed run has those of an unbroken one; the events of timings.jsonl
tell which session evaluated at which step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

Metric = Literal["acc1", "map", "loss"]
Line = Mapping[str, Any]

MIN_DELTA = 0.002
"""Less than this is no progress: a fraction for acc1 and map, nats for loss."""
PATIENCE = 3
"""So many evaluations in a row without progress are a plateau."""


def learning_progress(
    history: Iterable[Line],
    events: Iterable[Line] = (),
    metric: Metric = "acc1",
    min_delta: float = MIN_DELTA,
    patience: int = PATIENCE,
) -> dict[str, Any]:
    """Lines of metrics.jsonl, events of timings.jsonl -> {`metric`, `curve`, `best`, `plateaus`, `segments`}.

    The score of a line is the EMA's where there is one. Lines without an epoch, a step or a finite score are passed over.
    curve: an entry a line: `epoch`, `step`, `score`, `rate` (gain per epoch since the line before, or null), `best` (so
    far), `lr`, `train_loss`, `segment`. best: {`epoch`, `step`, `score`} of the first line with the best score; null
    without lines. plateaus: see `plateaus`; segments: see `segments`. A gain is positive where things get better."""
    lines = [line for line in history if _is_sound(line, metric)]
    scores = [float(_score(line, metric)) for line in lines]
    sign = -1.0 if metric == "loss" else 1.0
    gains = [sign * score for score in scores]
    events = list(events)
    owners = segment_of([line["step"] for line in lines], events)
    best = max(range(len(lines)), key=gains.__getitem__, default=None)
    return {
        "metric": metric,
        "curve": _curve(lines, gains, sign, owners),
        "best": None if best is None else _point(lines[best], scores[best]),
        "plateaus": [
            {
                "from_epoch": lines[first]["epoch"],
                "to_epoch": lines[last]["epoch"],
                "evaluations": last - first,
                "score": scores[first],
            }
            for first, last in plateaus(gains, min_delta, patience)
        ],
        "segments": _segments(lines, gains, sign, owners, _starts(events)),
    }


def plateaus(gains: Sequence[float], min_delta: float = MIN_DELTA, patience: int = PATIENCE) -> list[tuple[int, int]]:
    """Stretches without progress: [(place of the last progress, last place before the next one)].

    Progress is a value more than `min_delta` above that of the last progress; `patience` or more values in a row that are
    none make a plateau (as early stopping counts them)."""
    found, anchor = [], 0
    for place in range(1, len(gains) + 1):
        if place == len(gains) or gains[place] > gains[anchor] + min_delta:
            if place - 1 - anchor >= patience:
                found.append((anchor, place - 1))
            anchor = place
    return found


def segment_of(steps: Sequence[int], events: Iterable[Line]) -> list[int]:
    """Number of the session, from 0, in which each of the steps was evaluated for the last time.

    That is the last session that started before the step; at the very step, if it noted an evaluation there."""
    starts: list[int] = []
    noted: dict[int, int] = {}
    for event in events:
        step = event.get("step")
        if not isinstance(step, int):
            continue
        if event.get("kind") == "start":
            starts.append(step)
        elif event.get("kind") == "evaluation" and starts:
            noted[step] = len(starts) - 1
    before = [max((i for i, start in enumerate(starts) if start < step), default=0) for step in steps]
    return [max(first, noted.get(step, 0)) for first, step in zip(before, steps, strict=True)]


def _segments(
    lines: Sequence[Line], gains: Sequence[float], sign: float, owners: Sequence[int], starts: Sequence[int]
) -> list[dict[str, Any]]:
    """What each session that evaluated added: `segment`, `start_step`, `from_epoch`, `to_epoch`, `evaluations`, its `best`
    point, and `gain` and `rate` (gain per epoch) since the last line before it (for the first one: since its own first
    line); null where there is nothing to compare with."""
    found = []
    for owner in sorted(set(owners)):
        places = [place for place, one in enumerate(owners) if one == owner]
        first, last = places[0], places[-1]
        base = max(0, first - 1)
        best = max(places, key=gains.__getitem__)
        epochs = lines[last]["epoch"] - lines[base]["epoch"]
        gain = gains[last] - gains[base] if last > base else None
        found.append(
            {
                "segment": owner,
                "start_step": starts[owner] if owner < len(starts) else 0,
                "from_epoch": lines[first]["epoch"],
                "to_epoch": lines[last]["epoch"],
                "evaluations": len(places),
                "best": _point(lines[best], sign * gains[best]),
                "gain": gain,
                "rate": gain / epochs if gain is not None and epochs > 0 else None,
            }
        )
    return found


def _curve(lines: Sequence[Line], gains: Sequence[float], sign: float, owners: Sequence[int]) -> list[dict[str, Any]]:
    found, best = [], -math.inf
    for place, (line, gain) in enumerate(zip(lines, gains, strict=True)):
        best = max(best, gain)
        epochs = line["epoch"] - lines[place - 1]["epoch"] if place else 0
        found.append(
            {
                **_point(line, sign * gain),
                "rate": (gain - gains[place - 1]) / epochs if epochs > 0 else None,
                "best": sign * best,
                "lr": line.get("lr"),
                "train_loss": line.get("train_loss"),
                "segment": owners[place],
            }
        )
    return found


def _point(line: Line, score: float) -> dict[str, Any]:
    return {"epoch": line["epoch"], "step": line["step"], "score": score}


def _starts(events: Iterable[Line]) -> list[int]:
    return [e["step"] for e in events if e.get("kind") == "start" and isinstance(e.get("step"), int)]


def _score(line: Line, metric: Metric) -> Any:
    return line.get(f"ema_val_{metric}", line.get(f"val_{metric}"))


def _is_sound(line: Line, metric: Metric) -> bool:
    score = _score(line, metric)
    numbers = isinstance(line.get("epoch"), (int, float)) and isinstance(line.get("step"), int)
    return numbers and isinstance(score, (int, float)) and math.isfinite(score)
