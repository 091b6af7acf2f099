"""What a pack holds, listed as the folder or the CSV list that it was made of, for any setting that lists these."""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sports_ray.data.csv_list import splits_of_names
from sports_ray.data.inspect import FORMAT_OF
from sports_ray.data.listing import Listing, split_folders
from sports_ray.data.pack import Pack, state_words

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from sports_ray.config import DataConfig


def list_pack(pack: Pack, config: DataConfig) -> Listing:
    """What `list_files` would say of the folder or the CSV list that was packed."""
    import numpy as np
    import pyarrow as pa

    record, table = pack.record, pack.table()
    if record.csv:
        source = f"{pack.root}/{record.csv}"
        # A list with other names is not packed: of the words in it, these are what the default settings make.
        packed = table.column("split").to_pylist()
        split_of = splits_of_names(config, set(packed))
        found = np.array([split_of[name] for name in packed], object)
        rows = np.flatnonzero(found != "")
        chosen, splits = table.take(rows), found[rows]
        names = pa.array([*record.classes, ""]).take(
            pa.array(chosen.column("label").to_numpy() % (len(record.classes) + 1))
        )
        columns = {"id": chosen.column("id"), "split": pa.array(splits, pa.string()), "name": names}
        folders = {split: "" for split in sorted(set(splits.tolist()))}
        entries = _entries(columns, chosen)
        return Listing(pack.root, source, pack, entries, folders, multilabel=record.multilabel)
    tree = list_tree(pack.ids, record.folders, config)
    chosen = table if len(tree.rows) == table.num_rows else table.take(tree.rows)
    columns = {"id": chosen.column("id"), "split": pa.array(tree.splits), "name": pa.array(tree.names)}
    return Listing(
        pack.root, pack.root, pack, _entries(columns, chosen), tree.folders, tree.empty, passed_over=tree.passed_over
    )


class TreeRows(NamedTuple):
    """Which rows of sorted paths a folder's listing would hold, and what their folders say of them."""

    rows: NDArray[np.int64]
    splits: NDArray[Any]
    names: NDArray[Any]
    folders: dict[str, str]
    empty: tuple[tuple[str, str], ...]
    passed_over: tuple[str, ...]


def list_tree(ids: Sequence[str], tree: dict[str, list[str]], config: DataConfig) -> TreeRows:
    """As `listing.list_files` of a folder, from its sorted paths and its folders {top: [below it]} alone."""
    import numpy as np

    folders = split_folders(set(tree), config)
    passed_over = tuple(sorted(set(tree) - set(folders.values()))) if folders else ()
    places = folders or {"train": ""}
    spans: list[tuple[int, int, str, str]] = []
    empty = []
    for split, folder in places.items():
        inside = []
        for name in tree[folder] if folder else tree:
            start, stop = _below(ids, f"{folder}/{name}" if folder else name)
            inside.append((start, stop))
            if start == stop:
                empty.append((split, name))
            spans.append((start, stop, split, name))
        spans += [(row, row + 1, split, "") for row in _loose(ids, folder, inside)]
    spans.sort()
    counts = [stop - start for start, stop, _, _ in spans]
    rows = np.concatenate([np.arange(start, stop) for start, stop, _, _ in spans] or [np.empty(0, np.int64)])
    splits = np.repeat(np.array([split for _, _, split, _ in spans], object), counts)
    names = np.repeat(np.array([name for _, _, _, name in spans], object), counts)
    return TreeRows(rows, splits, names, dict(places), tuple(sorted(empty)), passed_over)


def _below(ids: Sequence[str], folder: str) -> tuple[int, int]:
    """Rows of the paths in a folder, at any depth; '0' is what follows '/'."""
    return bisect.bisect_left(ids, f"{folder}/"), bisect.bisect_left(ids, f"{folder}0")


def _loose(ids: Sequence[str], folder: str, inside: list[tuple[int, int]]) -> list[int]:
    """Rows of the images that lie right in a folder, and in none of its folders."""
    start, end = _below(ids, folder) if folder else (0, len(ids))
    found: list[int] = []
    for first, stop in [*sorted(inside), (end, end)]:
        found += range(start, first)
        start = max(start, stop)
    return [row for row in found if os.path.splitext(ids[row])[1].lower() in FORMAT_OF]


def _entries(columns: dict[str, Any], chosen: pa.Table) -> pa.Table:
    """The columns of `listing.Entry`; what stands for time and inode are words of the digest."""
    import pyarrow as pa

    digests = bytes.fromhex("".join(chosen.column("sha256").to_pylist()))
    mtime, inode = state_words(digests)
    return pa.table({**columns, "size": chosen.column("size"), "mtime_ns": pa.array(mtime), "inode": pa.array(inode)})
