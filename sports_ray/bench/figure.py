"""One measured value with its bound, and the turns that keep a noisy machine fair."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Say = Callable[[str], None]
"""Takes a line of progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of a bench's table."""

    name: str
    """For machines."""
    words: str
    """For people."""
    value: float
    unit: str
    least: float | None = None
    """The value should not be below."""
    most: float | None = None
    """The value should not be above."""
    rounds: tuple[float, ...] = ()
    """What each round gave; `value` is their median."""

    @property
    def met(self) -> bool | None:
        """Whether the value keeps its bound; None where there is none."""
        if self.least is None and self.most is None:
            return None
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    def to_json(self) -> dict[str, Any]:
        bounds = {name: bound for name, bound in (("least", self.least), ("most", self.most)) if bound is not None}
        facts = {"name": self.name, "value": self.value, "unit": self.unit, **bounds, "rounds": list(self.rounds)}
        return facts if self.met is None else {**facts, "met": self.met}


def take_turns(
    rounds: int, turns: Mapping[str, Callable[[], float]], say: Say = lambda line: None
) -> dict[str, list[float]]:
    """A B A B ...: each turn's values by round, so that what slows the machine for a while slows all of them."""
    values: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        for name, turn in turns.items():
            values[name].append(turn())
            say(f"round {number + 1}/{rounds} · {name}: {values[name][-1]:.4g}")
    return values


def middle_rate(done: Sequence[tuple[float, int]]) -> float:
    """Images per second of the middle half of what was done: (seconds, images) of each part when it was finished, in order.

    Neither the start counts, nor what was read ahead before it, nor the end, where nothing is read ahead any more."""
    quarter = len(done) // 4
    if not quarter:
        raise ValueError(f"{len(done)} parts; at least 4 tell a speed")
    first, last = quarter - 1, len(done) - quarter - 1
    return sum(images for _, images in done[first + 1 : last + 1]) / (done[last][0] - done[first][0])


def median(name: str, words: str, values: Sequence[float], unit: str, most: float | None = None) -> Figure:
    """The figure of values that were measured once a round."""
    return Figure(name=name, words=words, value=statistics.median(values), unit=unit, most=most, rounds=tuple(values))


def ratio(
    name: str, words: str, above: Figure, below: Figure, least: float | None = None, most: float | None = None
) -> Figure:
    """How many times `below` is `above`: the median of the rounds' quotients, for a machine's speed drifts between rounds."""
    quotients = tuple(one / other for one, other in zip(above.rounds, below.rounds, strict=True))
    value = statistics.median(quotients)
    return Figure(name=name, words=words, value=value, unit="x", least=least, most=most, rounds=quotients)
