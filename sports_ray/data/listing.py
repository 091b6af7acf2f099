"""Which files there are, and what their folders or their CSV list say of them: no file is opened here but the list."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sports_ray.data.files import (
    Files,
    Folder,
    called_image,
    entries_of,
    is_cifar,
    is_folder,
    is_pack,
    is_text,
    walk,
)
from sports_ray.errors import DataError
from sports_ray.store.storage import without_keys

if TYPE_CHECKING:
    import pyarrow as pa

    from sports_ray.config import DataConfig

VAL_NAMES = ("val", "valid", "validation")
LAYOUT = "a folder with train/ (and val/, test/), a folder of class folders, a CSV list, or a pack of one of these"


class Entry(NamedTuple):
    id: str
    """Path relative to the root, with '/'; absolute where a CSV row lies outside."""
    split: str
    """train, val or test."""
    name: str
    """Of the class; empty: unlabelled."""
    size: int
    """Bytes; size, mtime_ns and inode tell whether the file is the one that was inspected before."""
    mtime_ns: int
    inode: int


@dataclass(frozen=True)
class Listing:
    root: Path | str
    """Resolved, or the address of a pack; what ids are relative to."""
    source: Path | str
    """The folder, the CSV file or the pack."""
    files: Files
    """Their bytes."""
    table: pa.Table
    """Columns of Entry, sorted by id."""
    folders: dict[str, str]
    """Folder of each split there is; for a CSV and a plain folder of classes an empty name."""
    empty: tuple[tuple[str, str], ...] = ()
    """(split, class) of class folders without a file."""
    unreadable_names: tuple[str, ...] = ()
    """Files whose names are no valid text, as repr."""
    passed_over: tuple[str, ...] = ()
    """Folders of the root that are no split, where others are."""
    bad_rows: tuple[str, ...] = ()
    """What is wrong with which row of a CSV list."""
    multilabel: bool = False
    """Whether a name is the word of a set of classes (label_sets), and not that of one class."""


def list_files(source: str | Path, config: DataConfig) -> Listing:
    """List a folder tree, a CSV list, a pack or CIFAR-10's own files. Raises DataError where there is nothing to be listed."""
    from sports_ray.data.csv_list import read_csv_list

    if not str(source):
        raise DataError("no data given", want=LAYOUT, cure="name it with --data DIR or --set data.root=DIR")
    if (kept := without_keys(str(source))) != str(source):
        # A run keeps where its photographs lie, for all who may read it.
        cure = "the variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile or role"
        raise DataError("address of photographs", got="a key in it", want=kept, cure=cure)
    if is_pack(source):
        from sports_ray.data.pack import open_pack
        from sports_ray.data.pack_list import list_pack

        return list_pack(open_pack(str(source), config), config)
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError("data not found", got=path, want=LAYOUT, cure=_nearest(path))
    path = path.resolve()
    if is_cifar(path):
        from sports_ray.data.cifar import list_cifar

        return list_cifar(path)
    return _list_tree(path, config) if path.is_dir() else read_csv_list(path, config)


def split_folders(names: set[str], config: DataConfig) -> dict[str, str]:
    """Folder of each split (train, val, test) that is there; empty: a plain folder of classes.

    Raises DataError for a folder that `config` names and that is not there."""
    found = {}
    if config.test and config.test in names:
        found["test"] = config.test
    elif config.test and config.test != "test":
        raise _no_folder("data.test", config.test, names)
    if config.val == "auto":
        there = [name for name in VAL_NAMES if name in names and name not in found.values()]
        if there:
            found["val"] = there[0]
    elif config.val != "carve":
        if config.val not in names:
            raise _no_folder("data.val", config.val, names)
        found["val"] = config.val
    if config.train in names:
        found["train"] = config.train
    elif config.train != "train":
        raise _no_folder("data.train", config.train, names)
    if len(set(found.values())) < len(found):
        raise DataError(
            "one folder for two splits", got=found, cure="name different folders in data.train, data.val and data.test"
        )
    return found


def table_of(entries: list[Entry]) -> pa.Table:
    """Entries as a table sorted by id; every id once."""
    import pyarrow as pa

    types = [pa.string(), pa.string(), pa.string(), pa.int64(), pa.int64(), pa.uint64()]
    entries.sort()
    columns = zip(*entries, strict=True) if entries else [[] for _ in types]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    return pa.table(arrays, names=list(Entry._fields))


def _list_tree(root: Path, config: DataConfig) -> Listing:
    inside = set(_subfolders(root))
    folders = split_folders(inside, config)
    passed_over = tuple(sorted(inside - set(folders.values()))) if folders else ()
    places = [(split, name) for split, name in folders.items()] or [("train", "")]
    jobs: list[tuple[str, str, str]] = []  # split, class, folder relative to the root
    for split, folder in places:
        below = root / folder
        jobs.append((split, "", folder))
        jobs += [(split, name, f"{folder}/{name}" if folder else name) for name in _subfolders(below)]
    # On a network file system each stat waits for an answer: many may wait at once.
    with ThreadPoolExecutor(min(32, len(jobs))) as pool:
        answers = list(pool.map(lambda job: _files(root, *job), jobs))
    entries = [entry for found, _ in answers for entry in found]
    empty = [(split, name) for (split, name, _), (found, _) in zip(jobs, answers, strict=True) if name and not found]
    odd = [name for _, names in answers for name in names]
    return Listing(
        root,
        root,
        Folder(str(root)),
        table_of(entries),
        dict(places),
        tuple(sorted(empty)),
        tuple(sorted(odd)),
        passed_over,
    )


def list_whole_tree(root: Path) -> tuple[Listing, dict[str, list[str]]]:
    """All files that some setting of DataConfig would list, without split or class; and the folders: {top: [below it]}."""
    tops = _subfolders(root)
    with ThreadPoolExecutor(min(32, len(tops) + 1)) as pool:
        answers = list(pool.map(lambda top: _files(root, "", top, top), ["", *tops]))
    entries = [entry._replace(name="") for found, _ in answers for entry in found]
    odd = tuple(sorted(name for _, names in answers for name in names))
    listing = Listing(root, root, Folder(str(root)), table_of(entries), {}, unreadable_names=odd)
    return listing, {top: _subfolders(root / top) for top in tops}


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in entries_of(str(folder)) if is_folder(entry))


def _files(root: Path, split: str, name: str, folder: str) -> tuple[list[Entry], list[str]]:
    """Files of a class folder at any depth; of a split's own folder (no class) only the images that lie right in it, and
    what may have been meant as a class but cannot be told, so that inspecting it says why."""
    found, odd = [], []
    for entry in walk(str(root / folder)) if name else entries_of(str(root / folder)):
        if not name and not _stands_alone(entry):
            continue
        relative = entry.path[len(str(root)) :].strip(os.sep).replace(os.sep, "/")
        if not is_text(relative):
            odd.append(repr(relative))
            continue
        try:
            stat = entry.stat()
            found.append(Entry(relative, split, name, stat.st_size, stat.st_mtime_ns, stat.st_ino))
        except OSError:  # a link to nowhere: inspecting it will say so
            found.append(Entry(relative, split, name, -1, 0, 0))
    return found, odd


def _stands_alone(entry: os.DirEntry[str]) -> bool:
    folder = is_folder(entry)
    return folder is None or (not folder and called_image(entry.name))


def _no_folder(key: str, name: str, names: set[str]) -> DataError:
    there = ", ".join(f"{name}/" for name in sorted(names)[:8]) or "no folder"
    return DataError(
        f"{key}: no such folder", got=f"{name}/ (there is {there})", cure=f"name another with --set {key}=FOLDER"
    )


def _nearest(path: Path) -> str:
    """What may have been meant by a path that does not exist."""
    import difflib

    parent = path.parent
    names = sorted(os.listdir(parent)) if parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {parent / close[0]}?" if close else "`sports-ray data demo DIR` draws a set to try"
