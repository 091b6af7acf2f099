"""What a chart shows, apart from how it is painted (svg.py, png.py); and the places of its ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Series:
    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    """None, or what is not finite, breaks the line."""
    colour: int
    """1 to 4, the page's palette."""
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Lines over a common x axis."""

    name: str
    """Of the PNG file, without its ending."""
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    marks: Sequence[tuple[float, str]] = ()
    """x of vertical lines, with their words."""
    points: Sequence[tuple[float, float, str]] = ()
    """Single points worth a ring, with their words."""
    bands: Sequence[tuple[float, float, str]] = ()
    """Stretches of x that are shaded, with their words."""
    percent: bool = False
    """Fractions, to be written in percent."""
    x_span: tuple[float, float] | None = None
    y_span: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """A bar for each name, in the order given."""

    name: str
    title: str
    x_label: str
    names: Sequence[str]
    values: Sequence[float | None]
    percent: bool = True
    spans: Sequence[tuple[float, float] | None] = ()
    """An interval for each bar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Calibration (Guo et al. 2017): how often predictions of a confidence were right, by bins of confidence."""

    name: str
    title: str
    edges: Sequence[float]
    confidence: Sequence[float | None]
    """Mean confidence of each bin."""
    accuracy: Sequence[float | None]
    count: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Counts by true class (rows) and predicted class (columns)."""

    name: str
    title: str
    names: Sequence[str]
    counts: Sequence[Sequence[int]]
    order: Sequence[int] = field(default_factory=tuple)
    """Rows and columns as they are to stand."""


Chart = Lines | Bars | Reliability | Matrix


def finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def span_of(values: Iterable[float | None], pad: float = 0.05) -> tuple[float, float]:
    """Least and largest value with some room; (0, 1) for none, and room around a single one."""
    sound = finite(values)
    if not sound:
        return 0.0, 1.0
    low, high = min(sound), max(sound)
    room = (high - low) * pad or abs(high) * 0.1 or 0.5
    return low - room, high + room


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most about `most` round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def label(value: float, step: float, percent: bool = False) -> str:
    """A tick's number, with as many digits as ticks `step` apart need."""
    if percent:
        return f"{100 * value:.{_digits(100 * step)}f}%"
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        text = f"{value:.1e}"
        mantissa, _, exponent = text.partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.{_digits(step)}f}"


def _digits(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
