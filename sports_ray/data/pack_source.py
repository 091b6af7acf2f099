"""What a packing finds: every photograph of a folder, a CSV list or another pack, with what is known of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sports_ray.config import DataConfig
from sports_ray.data.files import is_cifar, is_pack
from sports_ray.data.inspect import Facts
from sports_ray.data.listing import list_files, list_whole_tree
from sports_ray.data.pack import Pack
from sports_ray.data.pack_list import list_tree
from sports_ray.errors import DataError

if TYPE_CHECKING:
    from sports_ray.data.facts import Progress
    from sports_ray.data.files import Files
    from sports_ray.data.listing import Listing


class Source(NamedTuple):
    """One photograph to be packed."""

    id: str
    split: str
    """By the default settings; empty: none."""
    label: int
    """The same; -1: none."""
    facts: Facts


class Sources(NamedTuple):
    files: Files
    rows: list[Source]
    """Sorted by id."""
    classes: list[str]
    """Sorted names of all classes that the default settings find."""
    folders: dict[str, list[str]]
    """Folders of the source, and those in each; empty for a CSV list."""
    csv: str
    """Name of the CSV list, if it is one."""
    multilabel: bool
    """Whether `classes` are words of sets of classes (label_sets)."""


def find_sources(source: str, progress: Progress | None = None, cache_dir: Path | None = None) -> Sources:
    """Lists and inspects all that any setting could list. Raises DataError for what cannot be packed as it is."""
    from sports_ray.data.facts import all_facts
    from sports_ray.data.rules import SHOWN, some

    listing, folders, csv = _whole(source)
    if listing.unreadable_names:
        raise DataError("file names that are not UTF-8", got=some(listing.unreadable_names), cure="rename them")
    if listing.bad_rows:
        what = f"{listing.source}: {len(listing.bad_rows):,} bad rows"
        raise DataError(what, got="; ".join(listing.bad_rows[:SHOWN]), cure="mend or remove them")
    ids = listing.table.column("id").to_pylist()
    if not ids:
        raise DataError("photographs to pack", got=f"none in {source}", want="at least one")
    found = all_facts(listing, DataConfig().max_pixels, progress, cache_dir).to_pylist()
    facts = [Facts(**row) for row in found]
    lost = [f"{name} ({one.error})" for name, one in zip(ids, facts, strict=True) if not one.sha256]
    if lost:
        raise DataError("files that cannot be read", got=some(lost), cure="mend or remove them")
    splits, names = _splits_and_names(listing, ids, folders, csv)
    classes = sorted(set(names) - {""})
    label = {name: place for place, name in enumerate(classes)}
    rows = zip(ids, splits, names, facts, strict=True)
    sources = [Source(one, split, label.get(name, -1), about) for one, split, name, about in rows]
    return Sources(listing.files, sources, classes, folders, csv, listing.multilabel)


def _whole(source: str) -> tuple[Listing, dict[str, list[str]], str]:
    """The listing of all that can be packed, its folders, and the name of the CSV list, if it is one."""
    path = Path(source).expanduser()
    if is_cifar(path):
        listing = list_files(source, DataConfig())
        ids = listing.table.column("id").to_pylist()
        return listing, _folders(ids), ""
    if path.is_dir() and not is_pack(source):
        listing, folders = list_whole_tree(path.resolve())
        return listing, folders, ""
    listing = list_files(source, DataConfig())
    if not isinstance(listing.files, Pack):
        return listing, {}, Path(listing.source).name
    record = listing.files.record
    if record.csv:
        return listing, {}, record.csv
    return dataclasses.replace(listing, table=listing.files.table().select(["id"])), record.folders, ""


def _folders(ids: Sequence[str]) -> dict[str, list[str]]:
    """Folders of paths TOP/BELOW/FILE: {top: [below it]}."""
    found: dict[str, set[str]] = {}
    for one in ids:
        top, below, _ = one.split("/")
        found.setdefault(top, set()).add(below)
    return {top: sorted(inside) for top, inside in found.items()}


def _splits_and_names(
    listing: Listing, ids: Sequence[str], folders: dict[str, list[str]], csv: str
) -> tuple[list[str], list[str]]:
    """Split and class of each photograph by the default settings; empty where there is none."""
    if csv:
        return listing.table.column("split").to_pylist(), listing.table.column("name").to_pylist()
    found = list_tree(ids, folders, DataConfig())
    splits, names = [""] * len(ids), [""] * len(ids)
    for row, split, name in zip(found.rows.tolist(), found.splits.tolist(), found.names.tolist(), strict=True):
        splits[row], names[row] = split, name
    return splits, names
