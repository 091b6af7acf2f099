"""A CSV list of images to predict: a column of paths, and perhaps one that says what to call each."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

from sports_ray.errors import DataError

_PATHS = ("path", "file", "filename", "file_name", "filepath", "filepaths", "image", "image_path")
_NAMES = ("image_id", "id")


class Named(NamedTuple):
    path: str
    """As written, relative to the list's folder or absolute."""
    name: str
    """The list's id where it has such a column, else the path."""


def read_names(path: Path) -> list[Named]:
    """The rows of a list, in its order. Raises DataError for a file that is no such list, and for a name given twice."""
    want = f"a header with a column {_PATHS[0]} (or {', '.join(_PATHS[1:4])}, ...), then one row an image"
    try:
        text = path.read_text(encoding="utf-8-sig")
        delimiter = max(",;\t|", key=text.split("\n", 1)[0].count)
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: not readable as a CSV list", got=error, want=want) from None
    header = [name.strip().lower() for name in rows[0]] if rows else []
    place = next((header.index(name) for name in _PATHS if name in header), None)
    called = next((header.index(name) for name in _NAMES if name in header), place)
    if place is None and called is not None:  # `image_id` alone: submissions name files so
        place = called
    if place is None or called is None:
        raise DataError(f"{path}: no column of paths", got=", ".join(header) or "an empty file", want=want)
    found: dict[str, Named] = {}
    for number, row in enumerate(rows[1:], 1):
        if len(row) <= max(place, called) or not row[place].strip():
            raise DataError(f"{path}, row {number}: no path", got=repr(row), want=want)
        named = Named(row[place].strip(), row[called].strip())
        if named.name in found:
            raise DataError(f"{path}, row {number}: a name given twice", got=repr(named.name), want="each image once")
        found[named.name] = named
    return list(found.values())
