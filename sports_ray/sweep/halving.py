"""Asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", ASHA).

At a rung, an epoch, a trial goes on if it belongs to the best 1/reduction of those that have reached it, as far as they have.
Only trials of the same backbone are compared: who learns slowly at first is not cut by who learns fast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sports_ray.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Halving:
    """At which epochs trials are compared, and how many go on: one of `reduction`."""

    rungs: tuple[int, ...]
    reduction: int = 3


def make_halving(epochs: int, eval_every: int = 1, reduction: int = 3, grace: int = 0) -> Halving:
    """Rungs at grace, grace * reduction, ... epochs, each moved up to the next evaluation, all below `epochs`.

    `grace`: epochs that every trial gets; 0: a ninth of all, so that there are two rungs. ConfigError where there is none."""
    if reduction < 2:
        raise ConfigError("--reduction", got=reduction, want="at least 2")
    first = grace or math.ceil(epochs / reduction**2)
    found, rung = [], first
    while rung < epochs:
        found.append(math.ceil(rung / eval_every) * eval_every)
        rung *= reduction
    rungs = tuple(sorted({rung for rung in found if rung < epochs}))
    if not rungs:
        raise ConfigError(
            "--scheduler asha",
            got=f"{epochs} epochs, evaluated every {eval_every}, the first rung at {first}",
            want="an evaluation before the last epoch",
            cure="--scheduler none, or more --epochs",
        )
    return Halving(rungs, reduction)


def goes_on(before: Sequence[float], score: float, reduction: int) -> bool:
    """Whether a trial goes on at a rung, where `before` are the scores of those that were there earlier; higher is better.

    The first one always does; one of equal score does where the other did."""
    better = sum(other > score for other in before)
    return better < math.ceil((len(before) + 1) / reduction)
