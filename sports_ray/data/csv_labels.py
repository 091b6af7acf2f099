"""The labels of a CSV list's rows: one class in a column, several in it, or a column of 0 and 1 for each class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sports_ray.data.label_sets import word_of
from sports_ray.errors import DataError

SEPARATORS = "|;"
LABELS = "labels"
"""The column's name that speaks of several."""
_OTHERS = ("id", "image_id")
"""Columns that are no class, besides those of path and split."""
_WANT = "0 or 1"


class BadLabels(ValueError):
    """What is wrong with the labels of a row."""


@dataclass(frozen=True, slots=True)
class OneClass:
    """A class in a column."""

    place: int
    multilabel = False

    def name(self, fields: Sequence[str]) -> str:
        return fields[self.place]


@dataclass(frozen=True, slots=True)
class Separated:
    """Classes in a column, with | or ; between them; a separator alone: none of the classes."""

    place: int
    multilabel = True

    def name(self, fields: Sequence[str]) -> str:
        """The word of the row's set; empty: unlabelled. Raises BadLabels."""
        cell = fields[self.place]
        if not cell:
            return ""
        if cell in {*SEPARATORS}:
            return word_of(())
        names = [name.strip() for name in re.split(f"[{SEPARATORS}]", cell)]
        if "" in names:
            raise BadLabels(f"an empty label in {cell!r}")
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise BadLabels(f"label {twice!r} twice in {cell!r}")
        return word_of(names)


@dataclass(frozen=True, slots=True)
class Flags:
    """A column for each class; 1: the photograph shows it."""

    places: Mapping[str, int]
    """Of each class's column."""
    multilabel = True

    def name(self, fields: Sequence[str]) -> str:
        """As `Separated.name`; a row is unlabelled where all its cells are empty."""
        cells = {name: fields[place] for name, place in self.places.items()}
        if not any(cells.values()):
            return ""
        for name, cell in cells.items():
            if cell not in ("0", "1"):
                raise BadLabels(f"{cell!r} in column {name!r}, wanted {_WANT}")
        return word_of([name for name, cell in cells.items() if cell == "1"])


Labels = OneClass | Separated | Flags


def find_labels(
    path: Path,
    header: Sequence[str],
    places: Mapping[str, int],
    rows: Sequence[Sequence[str]],
    how: Literal["auto", "single", "multi"],
) -> Labels | None:
    """How the rows tell their labels; None if no column does. `header`: names as written; `places`: of path, label, split.

    auto: several where a column is called `labels` and some cell holds a separator, and where, without such a column, all
    cells of the first row are 0 or 1. Raises DataError for columns of classes that cannot be told apart."""
    if "label" in places:
        place = places["label"]
        several = header[place].lower() == LABELS and any(
            set(SEPARATORS) & set(fields[place]) for fields in rows if len(fields) > place
        )
        return Separated(place) if how == "multi" or (how == "auto" and several) else OneClass(place)
    columns = {
        place: name for place, name in enumerate(header) if place not in places.values() and name.lower() not in _OTHERS
    }
    first = [rows[0][place] for place in columns if place < len(rows[0])] if rows else []
    if how == "single" or not columns or (how == "auto" and not (len(first) > 1 and set(first) <= {"0", "1"})):
        return None
    wrong = [name for name in columns.values() if not name or set(SEPARATORS) & set(name)]
    if wrong or len(set(columns.values())) < len(columns):
        got = ", ".join(map(repr, wrong)) or "a name twice"
        raise DataError(f"{path}: columns of classes", got=got, want="different names without | and ;")
    return Flags({name: place for place, name in columns.items()})
