"""The score that chooses: accuracy where each photograph shows one class, mean average precision where it shows several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Line = Mapping[str, Any]
"""A line of metrics.jsonl, or the scores beside published weights."""
MULTILABEL = "multilabel"
"""The task of scores.json where photographs show several classes; where each shows one it names none."""
NAMES = {"acc1": "acc1", "map": "mAP"}
"""What people read, by the name in the line."""


def score_name(line: Line) -> str:
    """acc1 or map: the line's own score, higher is better."""
    return "map" if "val_map" in line else "acc1"


def score_of(line: Line) -> Any:
    """The score of the weights that are published: the EMA's where there is one; None if the line has none."""
    name = score_name(line)
    return line.get(f"ema_val_{name}", line.get(f"val_{name}"))
