"""Scores of multi-label classification from a table of probabilities; each equals scikit-learn's of the same name.

Arrays: probabilities [N, K] in [0, 1], targets bool [N, K], thresholds [K]: a class is predicted where its probability is
at least its threshold. A row with a value that is not finite predicts nothing, and costs the largest loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sports_ray.score.rows import FLOOR, Floats

Bools = NDArray[np.bool_]
Vector = NDArray[np.float64]

DEFAULT = 0.5
"""The threshold of a class without a positive among the validation images."""


def sound_rows(probabilities: Floats) -> Bools:
    """Rows of which all values are finite, [N]."""
    return np.asarray(np.isfinite(probabilities).all(1))


def average_precision(scores: Floats, targets: Bools) -> float:
    """Sum over thresholds of (R_n - R_n-1) P_n of one class: scores [N], targets [N]; NaN without a positive.

    Equal scores share a threshold (Zhu 2004; scikit-learn's average_precision_score)."""
    positives = int(targets.sum())
    if not positives:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(targets[order])
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # the last of equal scores
    gained = np.diff(hits[last], prepend=0)
    return float((gained * (hits[last] / (last + 1))).sum() / positives)


def average_precisions(probabilities: Floats, targets: Bools) -> Vector:
    """Of each class, [K]; NaN without a positive. Rows that are not sound come last."""
    ranked = np.where(sound_rows(probabilities)[:, None], probabilities, -1.0)
    return np.array([average_precision(ranked[:, k], targets[:, k]) for k in range(targets.shape[1])])


def mean_of_defined(values: Vector) -> float:
    """The mean of the values that are no NaN; 0 without one."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def log_loss(probabilities: Floats, targets: Bools) -> float:
    """Binary cross-entropy in nats, the mean over images and classes; no probability counts as less than FLOOR."""
    sound = sound_rows(probabilities)[:, None]
    own = np.where(targets, probabilities.astype(np.float64), 1.0 - probabilities.astype(np.float64))
    return float(-np.log(np.maximum(np.where(sound, own, 0.0), FLOOR)).mean())


def chosen(probabilities: Floats, thresholds: Vector) -> Bools:
    """Which classes are predicted, [N, K]."""
    # NaN is not at least anything, but a NaN in a row spoils the others of it too.
    return np.asarray((probabilities >= thresholds) & sound_rows(probabilities)[:, None])


def summary(predicted: Bools, targets: Bools) -> dict[str, Any]:
    """Scores of predicted sets: `hamming` loss, `subset` accuracy, `f1_micro`, `f1_macro`, and `per_class`.

    per_class: `support`, `precision`, `recall`, `f1` [K]; a fraction of nothing is 0, also in the mean over classes."""
    hits = (predicted & targets).sum(0)
    support, given = targets.sum(0), predicted.sum(0)
    f1 = _share(2 * hits, support + given)
    return {
        "hamming": float((predicted != targets).mean()),
        "subset": float((predicted == targets).all(1).mean()),
        "f1_micro": float(_share(2 * hits.sum(keepdims=True), (support + given).sum(keepdims=True))[0]),
        "f1_macro": float(f1.mean()),
        "per_class": {
            "support": support.tolist(),
            "precision": _share(hits, given).tolist(),
            "recall": _share(hits, support).tolist(),
            "f1": f1.tolist(),
        },
    }


def fit_thresholds(probabilities: Floats, targets: Bools) -> Vector:
    """The threshold of each class with the best F1 on these images, [K] in [0, 1]: give validation images, never test ones.

    Thresholds lie half-way between neighbouring probabilities, so that rounding does not move a prediction over them. Of
    equally good ones the nearest to DEFAULT is taken; DEFAULT without a positive."""
    sound = sound_rows(probabilities)
    return np.array([_fit(probabilities[sound, k], targets[sound, k]) for k in range(targets.shape[1])])


def _fit(scores: Floats, targets: Bools) -> float:
    positives = int(targets.sum())
    if not positives:
        return DEFAULT
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order].astype(np.float64), np.cumsum(targets[order])
    last = np.flatnonzero(np.append(np.diff(ranked) != 0, True))
    f1 = 2 * hits[last] / (last + 1 + positives)
    between = (ranked[last] + np.append(ranked[last[:-1] + 1], 0.0)) / 2
    best = np.flatnonzero(f1 == f1.max())
    # Any value of the whole gap gives the same sets: DEFAULT itself where it lies in one of the best gaps.
    high, low = ranked[last][best], np.append(ranked[last[:-1] + 1], 0.0)[best]
    if ((low < DEFAULT) & (high >= DEFAULT)).any():
        return DEFAULT
    return float(between[best][np.argmin(np.abs(between[best] - DEFAULT))])


def mean_rows(members: Sequence[Floats], weights: Sequence[float]) -> NDArray[np.float32]:
    """Weighted average of members' rows [n, K], all probabilities or all logits: float32 [n, K].

    Logits have to be averaged as such: the float32 sigmoid of 17.4 is 1.0, and no logarithm gets it back. In a row where a
    member's values are not all finite the others' weights are scaled up; NaN where no member's are."""
    if len(members) == 1:
        rows = members[0].astype(np.float32)
        return np.where(sound_rows(rows)[:, None], rows, np.float32("nan"))
    total, share = np.zeros(members[0].shape), np.zeros((len(members[0]), 1))
    for rows, weight in zip(members, weights, strict=True):
        sound = sound_rows(rows)[:, None]
        values = np.where(sound, rows, DEFAULT).astype(np.float64)
        total += np.where(sound, weight * values, 0.0)
        share += np.where(sound, weight, 0.0)
    return np.divide(total, share, out=np.full(total.shape, np.nan), where=share > 0).astype(np.float32)


def sigmoid(logits: Floats) -> Vector:
    """1 / (1 + exp(-x)) as float64, without overflow."""
    with np.errstate(over="ignore"):
        found: Vector = 1.0 / (1.0 + np.exp(-np.asarray(logits, dtype=np.float64)))
    return found


def scores_of(probabilities: Floats, targets: Bools, thresholds: Vector) -> dict[str, Any]:
    """All of a candidate's scores on images with known targets: `images`, `unsound`, `map`, `nll`, those of `summary` at
    the thresholds, `per_class` with `ap` (null without a positive) and `threshold`."""
    precisions = average_precisions(probabilities, targets)
    found = summary(chosen(probabilities, thresholds), targets)
    found["per_class"] |= {
        "ap": [None if np.isnan(value) else float(value) for value in precisions],
        "threshold": [float(value) for value in thresholds],
    }
    return {
        "images": len(targets),
        "unsound": int((~sound_rows(probabilities)).sum()),
        "map": mean_of_defined(precisions),
        "nll": log_loss(probabilities, targets),
        **found,
    }


def training_scores(logits: Floats, targets: Bools, prefix: str = "") -> dict[str, float]:
    """Scores of an evaluation in training: {`val_map`, `val_loss`, `val_f1_macro`, ...} at thresholds of DEFAULT."""
    found = scores_of(sigmoid(logits), targets, np.full(targets.shape[1], DEFAULT))
    names: Mapping[str, str] = {"map": "map", "nll": "loss"} | {
        name: name for name in ("f1_macro", "f1_micro", "hamming", "subset")
    }
    return {f"{prefix}val_{name}": found[key] for key, name in names.items()}


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> Vector:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
