"""Orders classes so that those taken for each other stand side by side."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def clustered(counts: ArrayLike) -> list[int]:
    """Order of the K classes of a confusion matrix (counts [K, K], rows true), a permutation of range(K).

    Agglomerative, average linkage (Sokal & Michener 1958), on the shares in which two classes are taken for each other.
    Groups are joined end to end, turned so that the most alike ends meet; what is never confused with another group
    keeps the order of its first class. O(K^2) memory, K steps of O(K^2)."""
    likeness = _likeness(np.asarray(counts, dtype=float))
    groups: list[list[int]] = [[index] for index in range(len(likeness))]
    alike = likeness.copy()
    while len(groups) > 1:
        first, second = divmod(int(alike.argmax()), len(alike))
        if alike[first, second] <= 0:
            break
        first, second = min(first, second), max(first, second)
        sizes = len(groups[first]), len(groups[second])
        merged = (sizes[0] * alike[first] + sizes[1] * alike[second]) / sum(sizes)
        groups[first] = _joined(groups[first], groups[second], likeness)
        alike[first], alike[:, first] = merged, merged
        alike[first, first] = 0.0
        alike = np.delete(np.delete(alike, second, 0), second, 1)
        del groups[second]
    return [index for group in sorted(groups, key=min) for index in group]


def _likeness(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Symmetric [K, K]: mean share in which each of two classes is taken for the other, 0 on the diagonal."""
    shares = counts / np.maximum(1.0, counts.sum(1, keepdims=True))
    both = (shares + shares.T) / 2
    np.fill_diagonal(both, 0.0)
    return both


def _joined(first: list[int], second: list[int], likeness: NDArray[np.float64]) -> list[int]:
    """Both end to end, in the way of four that brings the most alike ends together."""
    ways = [(a, b) for a in (first, first[::-1]) for b in (second, second[::-1])]
    left, right = max(ways, key=lambda way: likeness[way[0][-1], way[1][0]])
    return left + right
