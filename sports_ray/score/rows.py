"""What each image tells, from a table of probabilities that may lie on disk: class, confidence, loss and rank.

A row is *sound* if all its values are finite, none is negative and their sum is positive; it counts divided by its sum.
A row that is not sound counts as an error with the largest loss and no confidence: no input makes a score NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

FLOOR = 2.0**-126
"""Smallest probability that a loss tells apart from 0: the smallest normal float32."""
NLL_CAP = -math.log(FLOOR)
"""Largest loss of an image, 87.3 nats."""
CHUNK_VALUES = 1 << 21
"""So many values of a table are in memory at once: 8 MiB of float32."""
_UNRANKED = np.iinfo(np.int32).max

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


class Rows(Protocol):
    """A table of probabilities [N, K], read in slices of rows: an array, a memory-mapped one, or a reader of a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> Floats: ...


@dataclass(frozen=True, slots=True)
class Facts:
    """Of n images with known labels: arrays [n], in the order of the table."""

    label: NDArray[np.int64]
    predicted: NDArray[np.int64]
    """The class of the highest probability. Where the own class ties with others, the first of those: a tie is an error."""
    confidence: NDArray[np.float64]
    """Probability of the predicted class, in [0, 1]."""
    loss: NDArray[np.float64]
    """Negative log-likelihood in nats, in [0, NLL_CAP]."""
    rank: NDArray[np.int64]
    """How many other classes score at least as high as the own."""
    sound: NDArray[np.bool_]

    def correct(self, k: int = 1) -> NDArray[np.bool_]:
        """Whether fewer than k other classes score at least as high as the own, as in `tally`: bool [n]."""
        return self.rank < k


def soundness(rows: Floats) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Sum of each row, float64 [n], and whether the row is sound, bool [n]; rows [n, K] of any values."""
    with np.errstate(all="ignore"):
        totals = rows.sum(1, dtype=np.float64)
        sound = np.isfinite(totals) & (totals > 0) & (rows.min(1) >= 0)
    return totals, sound


def facts_of(rows: Floats, labels: Ints) -> Facts:
    """Facts of rows [n, K >= 2] with labels int [n] in [0, K)."""
    totals, sound = soundness(rows)
    if not sound.all():
        rows = np.where(sound[:, None], rows, 0)
    label, each = np.asarray(labels, dtype=np.int64), np.arange(len(rows))
    own = rows[each, label]
    rank = np.count_nonzero(rows >= own[:, None], axis=1) - 1
    predicted = rows.argmax(1)
    tied = np.flatnonzero((predicted == label) & (rank > 0))
    others = rows[tied]
    others[np.arange(len(tied)), label[tied]] = -1
    predicted[tied] = others.argmax(1)
    scale = np.where(sound, totals, 1.0)
    loss = 0.0 - np.log(np.maximum(own / scale, FLOOR))
    return Facts(label, predicted, rows[each, predicted] / scale, loss, np.where(sound, rank, _UNRANKED), sound)


def read_facts(table: Rows, labels: Ints) -> Facts:
    """Facts of a table [N, K], read in chunks; rows whose label in `labels` int [N] is negative are left out."""
    found = []
    for part in chunks(*table.shape):
        rows, known = np.asarray(table[part]), labels[part] >= 0
        found.append(facts_of(rows if known.all() else rows[known], labels[part][known]))
    return _joined(found)


def chunks(count: int, classes: int) -> Iterator[slice]:
    """Slices of rows that cover a table [count, classes], CHUNK_VALUES values each; at least one, if an empty one."""
    size = max(1, CHUNK_VALUES // max(1, classes))
    for start in range(0, max(count, 1), size):
        yield slice(start, min(start + size, count))


def _joined(parts: Sequence[Facts]) -> Facts:
    return Facts(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Facts)))
