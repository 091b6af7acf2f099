"""Numbers as a person reads them."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

NOTHING = "–"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value from a file is a finite number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def percent(share: Any, digits: int = 1) -> str:
    """0.873 -> 87.3 %, in one line."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%" if is_number(share) else NOTHING


def span(interval: Any, digits: int = 1) -> str:
    """[0.851, 0.893] -> 85.1–89.3."""
    if not (isinstance(interval, (list, tuple)) and len(interval) == 2 and all(map(is_number, interval))):
        return NOTHING
    return f"{100 * interval[0]:.{digits}f}–{100 * interval[1]:.{digits}f}"


def points(difference: Any) -> str:
    """A difference of shares in percent points, signed: 0.012 -> +1.2."""
    return f"{100 * difference:+.1f}".replace("-", "−") if is_number(difference) else NOTHING


def decimal(value: Any, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if is_number(value) else NOTHING


def count(value: Any) -> str:
    return f"{value:,.0f}" if is_number(value) else NOTHING


def p_value(value: Any) -> str:
    if not is_number(value):
        return NOTHING
    return "< 0.001" if value < 1e-3 else f"{value:.3f}"


def duration(seconds: Any) -> str:
    """3725 -> 1:02:05."""
    if not is_number(seconds):
        return NOTHING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def plural(number: int, word: str) -> str:
    """(3, "image") -> 3 images; (2, "class") -> 2 classes."""
    many = f"{word}es" if word.endswith("s") else f"{word}s"
    return f"{number:,} {word if number == 1 else many}"
