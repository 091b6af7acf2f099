"""The leaderboard: a row a trial, ranked by validation alone. A function of what was decided, without clocks: equal sweeps
have equal bytes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sports_ray.score.main_score import score_name, score_of
from sports_ray.store.codec import canonical
from sports_ray.sweep.space import Params
from sports_ray.sweep.spec import SweepSpec, Trial

Row = dict[str, Any]
Line = Mapping[str, Any]
"""A line of a run's history: one evaluation."""
_ORDER = {"done": 0, "stopped": 1, "open": 2, "failed": 3}


def score(line: Line, metric: str) -> float:
    """What ranks: higher is better. The EMA's where there is one, as the engine picks its best epoch."""
    value = score_of(line) if metric == "acc1" else _loss(line)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return -math.inf
    return float(value) if metric == "acc1" else -float(value)


def _loss(line: Line) -> Any:
    return line.get("ema_val_loss", line.get("val_loss"))


def best_line(history: Sequence[Line], metric: str) -> Line | None:
    """The evaluation with the best score, the earliest of equal ones; None if there is none."""
    return max(history, key=lambda line: score(line, metric), default=None)


def result(history: Sequence[Line], metric: str) -> dict[str, Any]:
    """What a history is worth: epochs done, and the epoch, step, score and loss of its best evaluation."""
    best = best_line(history, metric) or {}
    return {
        "epochs": history[-1]["epoch"] if history else 0,
        "best_epoch": best.get("epoch"),
        "best_step": best.get("step"),
        f"val_{score_name(best)}": score_of(best),
        "val_loss": _loss(best),
    }


def row(trial: Trial, params: Params | None, end: Mapping[str, Any] | None, name: str = "acc1") -> Row:
    """One trial's row; `end`: what was recorded when it ended, None while it has work left; `name`: of the score."""
    end = end or {}
    found = end.get("result") or {}
    return {
        "trial": trial.name,
        "backbone": trial.backbone.name,
        "state": end.get("state", "open"),
        f"val_{name}": found.get(f"val_{name}"),
        "val_loss": found.get("val_loss"),
        "best_epoch": found.get("best_epoch"),
        "epochs": found.get("epochs"),
        "params": dict(params or {}),
        "reason": end.get("reason", ""),
    }


def ranked(rows: Sequence[Row], metric: str) -> list[Row]:
    """Rows with their rank among all, and among those of their backbone: finished ones by score, then those that were
    stopped, by how far they came; of equal ones the earlier trial."""
    order = sorted(range(len(rows)), key=lambda place: (*_key(rows[place], metric), place))
    counts: dict[str, int] = {}
    found = []
    for rank, place in enumerate(order, 1):
        one = rows[place]
        counts[one["backbone"]] = counts.get(one["backbone"], 0) + 1
        found.append({"rank": rank, "backbone_rank": counts[one["backbone"]], **one})
    return found


def _key(one: Row, metric: str) -> tuple[float, ...]:
    return _ORDER[one["state"]], -(one["epochs"] or 0) if one["state"] == "stopped" else 0, -score(one, metric)


def as_json(spec: SweepSpec, rows: Sequence[Row]) -> bytes:
    """A line a row, so that two leaderboards can be compared by eye."""
    lines = ",\n".join(canonical(one) for one in rows)
    return f'{{"metric":{canonical(spec.metric)},"trials":[\n{lines}\n]}}\n'.encode()


def as_csv(spec: SweepSpec, rows: Sequence[Row]) -> bytes:
    """A column for each searched key."""
    keys = list(dict.fromkeys(one.key for one in spec.space))
    columns = [name for name in rows[0] if name not in ("params", "reason")] if rows else []
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow([*columns, *keys, "reason"])
    for one in rows:
        values = [_cell(one[name]) for name in columns] + [_cell(one["params"].get(key)) for key in keys]
        writer.writerow([*values, one["reason"]])
    return sink.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return repr(value)
    return canonical(value) if isinstance(value, (list, dict, bool)) else "" if value is None else value


def winners(rows: Sequence[Row], count: int) -> dict[str, list[str]]:
    """{backbone: names of its best `count` finished trials, the best first} of ranked rows."""
    found: dict[str, list[str]] = {}
    for one in rows:
        if one["state"] == "done" and len(found.setdefault(one["backbone"], [])) < count:
            found[one["backbone"]].append(one["trial"])
    return found
