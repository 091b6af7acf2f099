"""The score that chooses: accuracy where each photograph shows one class, mean average precision where it shows several;
and how sure an accuracy is."""

from __future__ import annotations

import math
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


def wilson(correct: int, images: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of an accuracy (Wilson 1927), both ends in [0, 1]; z = 1.96 for 95 %."""
    if images == 0:
        return 0.0, 1.0
    share, spread = correct / images, z * z / images
    center = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / images + spread / (4 * images))
    return max(0.0, center - half), min(1.0, center + half)
