"""K folds of the photographs that a run may learn from, as a pure function of what is in the files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from sports_ray.config import DataConfig
from sports_ray.data.rules import some
from sports_ray.data.split import duplicate_groups, groups_of
from sports_ray.errors import ConfigError, DataError


def check(data: DataConfig) -> None:
    """ConfigError for a fold that there is not."""
    if data.folds == 1:
        raise ConfigError("data.folds", got=1, want="2 or more, or 0 for none")
    if data.fold >= max(1, data.folds):
        want = f"from 0 to {data.folds - 1}" if data.folds else "data.folds besides"
        raise ConfigError(
            "data.fold", got=data.fold, want=want, cure="for example --set data.folds=5 --set data.fold=4"
        )


def assign_folds(
    sha256: Sequence[str] | np.ndarray, phash: np.ndarray, labels: np.ndarray, classes: Sequence[str], folds: int
) -> np.ndarray:
    """The fold of each photograph: hex digests [n], uint64 [n], int [n] in [0, K) -> int64 [n] in [0, folds).

    Duplicates and near-duplicates (near.near_pairs) share a fold. Large groups are placed first, each where its classes have
    the smallest share so far, then where there are the fewest photographs: of single photographs each class has as many in
    each fold, but for one. File names and the order of rows do not matter.

    Raises DataError where a class, or the whole, has too few groups: every fold needs something to learn each class from."""
    sha256, labels = np.asarray(sha256), np.asarray(labels)
    group = duplicate_groups(sha256, phash, labels)
    digests, inside = groups_of(group, sha256), groups_of(group, labels)
    share = {number: Counter(values) for number, values in inside.items()}
    _check(share, labels, classes, folds)
    total = np.bincount(labels, minlength=len(classes)).astype(np.float64)
    load = np.zeros((folds, len(classes)))
    size = np.zeros(folds, np.int64)
    fold_of: dict[int, int] = {}
    for number in sorted(share, key=lambda number: (-share[number].total(), _rank(digests[number]))):
        held, counts = np.array([*share[number]]), np.array([*share[number].values()])
        # In whole photographs for a group of one class, so that equal loads are equal.
        cost = (load[:, held] / total[held] * counts).sum(1) if len(held) > 1 else load[:, held[0]]
        chosen = int(np.lexsort((size, cost))[0])
        load[chosen, held] += counts
        size[chosen] += counts.sum()
        fold_of[number] = chosen
    found = np.array([fold_of[number] for number in group.tolist()], np.int64)
    _check_found(found, labels, classes, folds)
    return found


def _check(share: dict[int, Counter[int]], labels: np.ndarray, classes: Sequence[str], folds: int) -> None:
    groups = Counter(label for counts in share.values() for label in counts)
    single = [classes[label] for label in np.unique(labels).tolist() if groups[label] < 2]
    if single:
        raise DataError(
            "data.folds: nothing is left to learn a class from while its fold is held out",
            got=some(map(repr, single)),
            want="two different photographs or more of each class",
            cure="add photographs, or choose the other classes with --set data.classes=...",
        )
    if len(share) < folds:
        raise DataError(
            "data.folds", got=folds, want=f"at most {len(share)}, as many as there are different photographs"
        )


def _check_found(found: np.ndarray, labels: np.ndarray, classes: Sequence[str], folds: int) -> None:
    """What groups that span classes could bring about."""
    whole = [classes[label] for label in np.unique(labels).tolist() if len(np.unique(found[labels == label])) < 2]
    if whole or len(np.unique(found)) < folds:
        raise DataError(
            "data.folds: near-duplicates hang together so that the photographs cannot be cut",
            got=some(map(repr, whole)) or f"{len(np.unique(found))} folds of {folds}",
            want="classes that are in two folds or more",
            cure="fewer --folds; `sports-ray data scan` lists near-duplicates",
        )


def _rank(digests: list[str]) -> str:
    return hashlib.sha256("\n".join(["fold", *sorted(set(digests))]).encode()).hexdigest()
