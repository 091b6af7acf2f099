"""A validation split carved out of train, as a pure function of what is in the files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from sports_ray.data.label_sets import LabelSets
from sports_ray.data.near import components, near_pairs


def carve(
    sha256: Sequence[str] | np.ndarray,
    phash: np.ndarray,
    labels: np.ndarray,
    fraction: float,
    label_sets: LabelSets = (),
) -> np.ndarray:
    """Choose the validation images: hex digests [n], uint64 [n], int [n], share in (0, 0.5] -> bool [n], true:
    validation. label_sets: the classes that each label stands for; empty: itself.

    Duplicates and near-duplicates (near.near_pairs) stay together. Each class gives about its share, at least one image
    if it has two groups of its own or more, and never its last group: see `uncarved` for those that give none. File
    names and the order of rows do not matter, and one image more changes little: groups are taken in the order of their
    digests."""
    sha256, labels = np.asarray(sha256), np.asarray(labels)
    group = duplicate_groups(sha256, phash, labels)
    digests, inside = groups_of(group, sha256), groups_of(group, labels)
    rank = {number: _rank(values) for number, values in digests.items()}
    share = {number: Counter(_classes_of(values, label_sets)) for number, values in inside.items()}
    groups: dict[int, list[int]] = {}
    for number in sorted(share, key=rank.__getitem__):
        for label in share[number]:
            groups.setdefault(label, []).append(number)
    chosen: set[int] = set()
    # Small classes choose first: they have the least freedom where a group spans classes.
    for label in sorted(groups, key=lambda label: (len(groups[label]), rank[groups[label][0]], label)):
        _choose(label, groups, share, chosen, fraction)
    return np.isin(group, sorted(chosen))


def _choose(
    label: int, groups: dict[int, list[int]], share: dict[int, Counter[int]], chosen: set[int], fraction: float
) -> None:
    """Add groups of one class to `chosen` until its share is full, leaving every class a group to train on."""
    left = {other: sum(number not in chosen for number in groups[other]) for other in _neighbours(label, groups, share)}
    want = max(1, round(fraction * sum(share[number][label] for number in groups[label])))
    held = sum(share[number][label] for number in groups[label] if number in chosen)

    def take(number: int) -> int:
        chosen.add(number)
        for other in share[number]:
            left[other] -= 1
        return share[number][label]

    for number in groups[label]:
        fits = held + share[number][label] <= want and all(left[other] > 1 for other in share[number])
        if fits and number not in chosen:
            held += take(number)
    if not held:  # all groups are larger than the share: the smallest, then
        free = [number for number in groups[label] if all(left[other] > 1 for other in share[number])]
        if free:
            take(min(free, key=lambda number: share[number].total()))


def _neighbours(label: int, groups: dict[int, list[int]], share: dict[int, Counter[int]]) -> set[int]:
    """Classes that have a group in common with this one, itself included."""
    return {other for number in groups[label] for other in share[number]}


def _classes_of(labels: Iterable[int], label_sets: LabelSets) -> Iterable[int]:
    """Classes of images, once for each that shows it; images that show none count as a class of their own, -1."""
    return chain.from_iterable(label_sets[label] or (-1,) for label in labels) if label_sets else labels


def uncarved(labels: np.ndarray, chosen: np.ndarray, label_sets: LabelSets = ()) -> np.ndarray:
    """Classes without a validation image: all images of such a class are duplicates of each other."""
    if label_sets:
        held, there = ({*_classes_of(part.tolist(), label_sets)} - {-1} for part in (labels[chosen], labels))
        return np.array(sorted(there - held), dtype=np.int64)
    return np.setdiff1d(labels, labels[chosen])


def duplicate_groups(sha256: Sequence[str] | np.ndarray, phash: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """First row of each image's group: int64 [n]. Equal bytes or nearness join, also over several steps."""
    _, first, inverse = np.unique(np.asarray(sha256), return_index=True, return_inverse=True)
    equal = np.stack([first[inverse.ravel()], np.arange(len(inverse))], axis=1)
    return components(len(inverse), np.concatenate([equal, near_pairs(phash, labels)]))


def groups_of(group: np.ndarray, values: np.ndarray) -> dict[int, list]:
    """Values of each group's rows."""
    found: dict[int, list] = {}
    for number, value in zip(group.tolist(), values.tolist(), strict=True):
        found.setdefault(number, []).append(value)
    return found


def _rank(digests: list[str]) -> str:
    """A group's place in the order of choice: a hash of its content."""
    return hashlib.sha256("\n".join(sorted(set(digests))).encode()).hexdigest()
