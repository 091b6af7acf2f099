"""Scores of single-label classification from the facts of its images; no order of the images changes a bit of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sports_ray.score.rows import Facts, Ints
from sports_ray.score.tally import LOSS_UNIT

Counts = NDArray[np.int64]


def nll(facts: Facts) -> float:
    """Mean negative log-likelihood in nats, of at least one image; summed exactly, as integers (see tally)."""
    return int(np.rint(facts.loss / LOSS_UNIT).astype(np.int64).sum()) * LOSS_UNIT / len(facts.loss)


def confusion(facts: Facts, classes: int) -> Counts:
    """How often class t (row) was taken for class p (column): int64 [classes, classes]; its sum is the images."""
    cells = np.bincount(facts.label * classes + facts.predicted, minlength=classes * classes)
    return cells.astype(np.int64, copy=False).reshape(classes, classes)


def per_class(counts: Counts) -> dict[str, list[Any]]:
    """Support (images), precision, recall and F1 of each class of a confusion matrix; a fraction of nothing is 0."""
    hits, support, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    return {
        "support": support.tolist(),
        "precision": _share(hits, predicted).tolist(),
        "recall": _share(hits, support).tolist(),
        "f1": _share(2 * hits, support + predicted).tolist(),
    }


def extremes(counts: Counts, classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of the classes at 100 % and at 0 % accuracy; those without an image are in neither."""
    hits, support = counts.diagonal(), counts.sum(1)
    seen = support > 0
    perfect, zero = np.flatnonzero(seen & (hits == support)), np.flatnonzero(seen & (hits == 0))
    return [classes[int(i)] for i in perfect], [classes[int(i)] for i in zero]


def confused_pairs(
    facts: Facts, ids: Ints, classes: Sequence[str], pairs: int = 20, ids_each: int = 20
) -> list[dict[str, Any]]:
    """The most frequent mistakes: [{`true`, `predicted`, `count`, `ids`}], at most `pairs`, most frequent first.

    `ids` int [n] of the images; each pair names its smallest, at most `ids_each`. Equal counts: in the order of classes."""
    wrong = np.flatnonzero(facts.predicted != facts.label)
    cell = facts.label[wrong] * len(classes) + facts.predicted[wrong]
    cells, counts = np.unique(cell, return_counts=True)
    return [
        {
            "true": classes[cells[i] // len(classes)],
            "predicted": classes[cells[i] % len(classes)],
            "count": int(counts[i]),
            "ids": np.sort(ids[wrong[cell == cells[i]]])[:ids_each].tolist(),
        }
        for i in np.argsort(-counts, kind="stable")[:pairs]
    ]


def worst(facts: Facts, ids: Ints, classes: Sequence[str], count: int = 50) -> list[dict[str, Any]]:
    """The mistakes made with the most confidence: [{`id`, `true`, `predicted`, `confidence`}]; equal ones by id."""
    wrong = np.flatnonzero(facts.predicted != facts.label)
    order = wrong[np.lexsort((ids[wrong], -facts.confidence[wrong]))][:count]
    return [
        {
            "id": int(ids[i]),
            "true": classes[facts.label[i]],
            "predicted": classes[facts.predicted[i]],
            "confidence": float(facts.confidence[i]),
        }
        for i in order
    ]


def _share(part: Counts, whole: Counts) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
