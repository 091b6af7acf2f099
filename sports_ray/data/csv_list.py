"""A CSV list of images: columns path, label (or several labels) and split, as they are called in the field."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, NamedTuple

from sports_ray.data.csv_labels import BadLabels, Labels, find_labels
from sports_ray.data.files import Folder
from sports_ray.data.listing import VAL_NAMES, Entry, Listing, table_of
from sports_ray.errors import DataError

if TYPE_CHECKING:
    from sports_ray.config import DataConfig

_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "filepaths", "image", "image_path"),
    "label": ("label", "labels", "class", "class_name", "category", "target"),
    "split": ("split", "set", "subset", "data set", "dataset"),
}
_NAMES = {"": "train", "training": "train", "testing": "test", **dict.fromkeys(VAL_NAMES, "val")}
_DEFAULT = {"train": "train", "val": "auto", "test": "test"}
"""Settings that may name no row: data.val=val is a wish for rows of that name, where auto carves if there are none."""
_WANT = "a header with path, label and split (split may be missing: all train), then one row an image"


class _Row(NamedTuple):
    number: int
    """Counted from 1 below the header, as a table of data is."""
    line: int
    """In the file, as an editor counts."""
    fields: list[str]


def read_csv_list(path: Path, config: DataConfig, *, pass_over: bool = False) -> Listing:
    """Read a list whose relative paths start at the list's own folder. Bad rows are collected in `bad_rows`.

    `pass_over`: rows of splits that no setting names are in the table too, under their own name, and are no bad ones: what
    another training calls dev does not keep test from being evaluated. Raises DataError for a file that is no such list."""
    header, rows = _read(path)
    columns = _columns(header)
    labels = find_labels(path, header, columns, [row.fields for row in rows], config.labels)
    _check_columns(path, header, columns, labels)
    assert labels is not None
    there = _names(columns, rows)
    root, splits = path.parent, splits_of_names(config, there)
    others = sorted(there - set(splits)) if pass_over else []
    splits |= {name: name for name in others}
    entries: list[Entry] = []
    bad: list[str] = []
    first: dict[str, int] = {}
    for row in rows:
        entry = _entry(root, row, columns, len(header), splits, labels)
        if isinstance(entry, Entry) and entry.id in first:
            entry = f"{entry.id!r} stands already in row {first[entry.id]}"
        if isinstance(entry, str):
            bad.append(f"row {row.number} (line {row.line}): {entry}")
            continue
        first[entry.id] = row.number
        if entry.split:
            entries.append(entry)
    folders = {split: "" for split in sorted({entry.split for entry in entries} - set(others))}
    return Listing(
        root,
        path,
        Folder(str(root)),
        table_of(entries),
        folders,
        passed_over=tuple(others),
        bad_rows=tuple(bad),
        multilabel=labels.multilabel,
    )


def name_of(word: str) -> str:
    """The name of a split that a word in a list or in a setting stands for: train, val, test, or one that only settings know."""
    return _NAMES.get(word.lower(), word.lower())


def splits_of_names(config: DataConfig, there: Iterable[str]) -> dict[str, str]:
    """Split of the rows of each name (`name_of`); empty: they are passed over, as a folder is that no setting names.

    `there`: the names that rows have. Raises DataError for a setting that names none of them (but for the default, which
    finds what there is), and for one name for two splits, as `listing.split_folders` does for folders."""
    words = {"train": config.train, "val": "val" if config.val == "auto" else config.val, "test": config.test}
    if config.val == "carve":
        del words["val"]
    named = {split: name_of(word) for split, word in words.items() if word}
    if config.val == "auto" and "val" in (named.get("train"), named.get("test")):
        del named["val"]
    if len(set(named.values())) < len(named):
        cure = "name different rows in data.train, data.val and data.test"
        raise DataError("one name for two splits", got=words, cure=cure)
    known = set(there)
    if not config.val:
        raise _no_rows("data.val", "''", known)
    for split, name in named.items():
        if name not in known and getattr(config, split) != _DEFAULT[split]:
            raise _no_rows(f"data.{split}", words[split], known)
    return {"train": "", "val": "", "test": "", **{name: split for split, name in named.items()}}


def _names(columns: dict[str, int], rows: list[_Row]) -> set[str]:
    """Of the splits that there are rows of."""
    place = columns.get("split")
    if place is None:
        return {"train"}
    return {name_of(row.fields[place]) for row in rows if place < len(row.fields)}


def _no_rows(key: str, word: str, names: set[str]) -> DataError:
    there = ", ".join(sorted(names)[:8]) or "no row"
    return DataError(
        f"{key}: no such rows", got=f"{word} (there is {there})", cure=f"name others with --set {key}=NAME"
    )


def _read(path: Path) -> tuple[list[str], list[_Row]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: not readable as a CSV list", got=error, want="text in UTF-8", cure="save it as UTF-8"
        ) from None
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t|", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = [name.strip() for name in next(reader, [])]
        rows: list[_Row] = []
        for fields in reader:
            if fields:
                rows.append(_Row(len(rows) + 1, reader.line_num, [value.strip() for value in fields]))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not readable as CSV", got=error, want=_WANT) from None
    return header, rows


def _columns(header: list[str]) -> dict[str, int]:
    found, called = {}, [name.lower() for name in header]
    for column, names in _COLUMNS.items():
        places = [called.index(name) for name in names if name in called]
        if places:
            found[column] = places[0]
    return found


def _check_columns(path: Path, header: list[str], columns: dict[str, int], labels: Labels | None) -> None:
    missing = [column for column in ("path",) if column not in columns] + ["label"] * (labels is None)
    if missing:
        raise DataError(
            f"{path}: no column {' and no '.join(missing)}", got=", ".join(header) or "an empty file", want=_WANT
        )


def _entry(
    root: Path, row: _Row, columns: dict[str, int], width: int, splits: dict[str, str], labels: Labels
) -> Entry | str:
    """The row's entry, or what is wrong with the row."""
    if len(row.fields) != width:
        return f"{len(row.fields)} fields where the header has {width}"
    value = {column: row.fields[place] for column, place in columns.items()}
    if not value["path"]:
        return "no path"
    split = splits.get(name_of(value.get("split", "")))
    if split is None:
        return f"unknown split {value['split']!r}, wanted train, val or test"
    try:
        name = labels.name(row.fields)
    except BadLabels as error:
        return f"{error}: {value['path']!r}"
    if not name and split in ("train", "val"):
        return f"no label, which only test images may lack: {value['path']!r}"
    absolute = os.path.normpath(os.path.join(root, value["path"]))
    try:
        stat = os.stat(absolute)
    except (OSError, ValueError):
        return f"no such file {value['path']!r}"
    if not S_ISREG(stat.st_mode):
        return f"no file but a folder or device: {value['path']!r}"
    inside = absolute.startswith(f"{root}{os.sep}")
    place = os.path.relpath(absolute, root) if inside else absolute
    return Entry(place.replace(os.sep, "/"), split, name, stat.st_size, stat.st_mtime_ns, stat.st_ino)
