"""Accuracy of parts of the classes: by how many training images they had, and by groups that the user names."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sports_ray.errors import DataError
from sports_ray.score.main_score import wilson
from sports_ray.score.multiclass import Counts
from sports_ray.score.rows import Ints

Groups = Mapping[str, Mapping[str, str]]
"""Column -> class -> group, such as {"place": {"archery": "outdoor"}}."""


def by_frequency(counts: Counts, train_images: Ints, classes: Sequence[str], parts: int = 5) -> list[dict[str, Any]]:
    """Accuracy by class frequency, rare classes first: [{`train_images` [least, most], `classes`, ...}].

    `counts`: confusion matrix; `train_images` int [K]: images of each class in train. The classes, sorted by that number,
    are cut into at most `parts` parts of about equally many; classes with equal numbers stay together. Parts without an
    image to score are left out."""
    ranks = np.searchsorted(np.sort(train_images), train_images, side="left")
    part = ranks * parts // len(classes)
    found = []
    for number in np.unique(part):
        members = np.flatnonzero(part == number)
        seen = train_images[members]
        found.append({"train_images": [int(seen.min()), int(seen.max())], **_accuracy(counts, members, classes)})
    return [entry for entry in found if entry["images"]]


def by_group(counts: Counts, groups: Groups, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Accuracy of each group of each column: [{`column`, `group`, `classes`, ...}]; groups by name, empty ones left out."""
    found = []
    for column, group_of in groups.items():
        for group in sorted(set(group_of.values())):
            members = np.array([i for i, name in enumerate(classes) if group_of.get(name) == group], dtype=np.int64)
            found.append({"column": column, "group": group, **_accuracy(counts, members, classes)})
    return [entry for entry in found if entry["images"]]


def _accuracy(counts: Counts, members: Ints, classes: Sequence[str]) -> dict[str, Any]:
    """`classes` by name, `images`, `acc1` with its interval, and `mean_recall`: the mean over classes with images."""
    support, hits = counts.sum(1)[members], counts.diagonal()[members]
    images, correct, seen = int(support.sum()), int(hits.sum()), support > 0
    return {
        "classes": [classes[i] for i in members],
        "images": images,
        "acc1": correct / images if images else 0.0,
        "acc1_interval": list(wilson(correct, images)),
        "mean_recall": float((hits[seen] / support[seen]).mean()) if seen.any() else 0.0,
    }


def read_groups(path: Path | str, classes: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read a CSV `class,COLUMN,...`, one row a class: {column: {class: group}}.

    A class without a row, or with an empty cell, is in no group. DataError for a file that cannot be read, for names that
    are no class, and for classes named twice."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header, *rows = [row for row in csv.reader(file, strict=True) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"groups {path}", got=error, want="a CSV in UTF-8: class,group,...") from None
    columns = [name.strip() for name in header[1:]]
    if not columns or header[0].strip() != "class" or "" in columns or len(set(columns)) < len(columns):
        raise DataError(
            f"groups {path}", got=f"header {','.join(header)!r}", want="class, then columns of different names"
        )
    found: dict[str, dict[str, str]] = {column: {} for column in columns}
    seen: set[str] = set()
    for row in rows:
        name, *cells = (cell.strip() for cell in row)
        _check_row(path, name, len(cells), len(columns), classes, seen)
        seen.add(name)
        for column, cell in zip(columns, cells, strict=True):
            if cell:
                found[column][name] = cell
    return found


def _check_row(path: Path | str, name: str, cells: int, columns: int, classes: Sequence[str], seen: set[str]) -> None:
    where = f"groups {path}: row of {name!r}"
    if cells != columns:
        raise DataError(where, got=f"{cells} groups", want=f"{columns}, as in the header")
    if name in seen:
        raise DataError(where, got="a second row for this class", want="one row a class")
    if name not in classes:
        near = difflib.get_close_matches(name, classes, 1)
        raise DataError(where, got="no class of these data", cure=f"did you mean {near[0]!r}?" if near else "remove it")
