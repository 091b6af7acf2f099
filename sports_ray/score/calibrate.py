"""Whether confidence can be believed, and the temperature that mends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sports_ray.score.convex import Vector, minimise
from sports_ray.score.rows import FLOOR, Facts, Floats, Ints, chunks, soundness

BINS = 15
COLDEST, HOTTEST = 0.05, 20.0
"""Temperatures are sought between these; data that a model separates perfectly would ask for 0."""
_CONFIDENCE_UNIT = 2.0**-32
"""Confidences are summed in this unit, as integers: exact in any order."""


def reliability(facts: Facts, bins: int = BINS) -> dict[str, list[Any]]:
    """Mean confidence, accuracy and count in `bins` equal-width bins (lo, hi] of confidence, the first with 0.

    {`edges` [bins + 1], `confidence`, `accuracy`, `count` [bins]}; confidence and accuracy are 0 where count is 0."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.searchsorted(edges[1:-1], facts.confidence, side="left")
    count = np.bincount(place, minlength=bins)
    correct = np.bincount(place[facts.correct()], minlength=bins)
    total = np.zeros(bins, dtype=np.int64)
    np.add.at(total, place, np.rint(facts.confidence / _CONFIDENCE_UNIT).astype(np.int64))
    divisor = np.maximum(count, 1)
    return {
        "edges": edges.tolist(),
        "confidence": (total * _CONFIDENCE_UNIT / divisor).tolist(),
        "accuracy": (correct / divisor).tolist(),
        "count": count.tolist(),
    }


def ece(table: dict[str, list[Any]]) -> float:
    """Expected calibration error of a `reliability` table, in [0, 1]: the mean over images of |accuracy - confidence| of
    their bin (Naeini et al. 2015; 15 bins as in Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3)."""
    count = np.array(table["count"])
    gap = np.abs(np.array(table["accuracy"]) - np.array(table["confidence"]))
    return float((count * gap).sum() / max(1, count.sum()))


def log_rows(rows: Floats) -> NDArray[np.float64]:
    """Logarithms of rows [n, K] divided by their sums, at least log FLOOR; 0 throughout for rows that are not sound."""
    totals, sound = soundness(rows)
    shares = np.divide(rows, totals[:, None], out=np.ones(rows.shape), where=sound[:, None])
    return np.log(np.maximum(shares, FLOOR))


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows [n, K] of finite scores -> probabilities."""
    powers: NDArray[np.float64] = np.exp(scores - scores.max(1, keepdims=True))
    powers /= powers.sum(1, keepdims=True)
    return powers


def at_temperature(rows: Floats, temperature: float) -> NDArray[np.float32]:
    """softmax(log(rows) / temperature), float32 [n, K]; rows that are not sound become uniform."""
    return softmax(log_rows(rows) / temperature).astype(np.float32)


def temperature(rows: Floats, labels: Ints) -> float:
    """The temperature in [COLDEST, HOTTEST] at which probabilities [n, K] have the lowest loss (Guo et al. 2017, sec. 4.2).

    labels int [n] in [0, K). The loss is convex in 1 / temperature, so this is the only minimum."""
    return 1.0 / float(log_linear([rows], labels, 1 / HOTTEST)[0])


def log_linear(members: Sequence[Floats], labels: Ints, low: float = 0.0) -> Vector:
    """Factors v [M], each in [low, 1 / COLDEST], for which softmax(sum of v_m log p_m) has the lowest loss on labels [n].

    members: probabilities [n, K] each. A convex problem: multinomial logistic regression with shared coefficients.
    v / sum(v) are the weights of a logarithmic pool, 1 / sum(v) is its temperature."""
    count, classes = members[0].shape

    def objective(v: Vector) -> tuple[float, Vector, NDArray[np.float64]]:
        value, gradient, hessian = 0.0, np.zeros(len(v)), np.zeros((len(v), len(v)))
        for part in chunks(count, classes * len(v)):
            logs = np.stack([log_rows(rows[part]) for rows in members])
            own = logs[:, np.arange(logs.shape[1]), labels[part]]
            mixed = np.tensordot(v, logs, 1)
            top = mixed.max(1, keepdims=True)
            powers = np.exp(mixed - top)
            norms = powers.sum(1, keepdims=True)
            shares = powers / norms
            value += float((np.log(norms) + top).sum() - v @ own.sum(1))
            means = (shares * logs).sum(2)
            gradient += (means - own).sum(1)
            weighted = logs * shares
            hessian += np.einsum("ank,bnk->ab", weighted, logs) - means @ means.T
        return value / count, gradient / count, hessian / count

    return minimise(objective, np.full(len(members), 1.0 / len(members)), low, 1 / COLDEST)
