"""Facts of every listed file: decoded once, on all cores, and remembered until its size, time or inode changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from sports_ray.data.inspect import VERSION, Facts, inspect
from sports_ray.remembered import place_of, recall, remember

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from sports_ray.data.listing import Listing

Progress = Callable[[int, int], None]

_CHUNK = 32


def all_facts(
    listing: Listing, max_pixels: int, progress: Progress | None = None, cache_dir: Path | None = None
) -> pa.Table:
    """Columns of Facts, row by row as `listing.table`. `progress(done, total)` is told of the files that had to be
    read.

    What was found is remembered under `cache_dir`, also when the work is interrupted; a damaged or unwritable memory
    costs time and nothing else."""
    import numpy as np
    import pyarrow as pa

    if (known := listing.files.facts(listing.table.column("id"), max_pixels)) is not None:
        return known
    place = _place(listing, max_pixels, cache_dir)
    remembered = _recall(place)
    match = _match(listing.table, remembered)
    unknown = np.flatnonzero(match < 0)
    if not len(unknown):
        return remembered.take(match).select(list(Facts._fields))
    found: dict[int, Facts] = {}
    try:
        _inspect_all(listing, unknown, max_pixels, found, progress)
    finally:
        rows = np.array(sorted(found), dtype=np.int64)
        fresh = _facts_table([found[row] for row in rows])
        known = np.flatnonzero(match >= 0)
        facts = pa.concat_tables([remembered.take(match[known]).select(list(Facts._fields)), fresh])
        rows = np.concatenate([known, rows])
        order = np.argsort(rows)
        facts = facts.take(order).combine_chunks()
        _remember(place, listing.table.take(rows[order]).select(_KEYS), facts)
    return facts


_KEYS = ["id", "size", "mtime_ns", "inode"]


def _inspect_all(
    listing: Listing, rows: np.ndarray, max_pixels: int, found: dict[int, Facts], progress: Progress | None
) -> None:
    """Inspect `rows` into `found`. Threads, not processes: reading, hashing and decoding leave the interpreter free,
    and a process would first pay seconds for its imports."""
    import sports_ray.data.decode  # noqa: F401  (once, here: threads that import at the same time wait for each other)

    ids = listing.table.column("id").take(rows).to_pylist()

    def work(start: int) -> list[tuple[int, Facts]]:
        part = zip(rows[start : start + _CHUNK].tolist(), ids[start : start + _CHUNK], strict=True)
        return [(row, inspect(listing.files, name, max_pixels)) for row, name in part]

    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        for future in as_completed([pool.submit(work, start) for start in range(0, len(ids), _CHUNK)]):
            found.update(future.result())
            if progress:
                progress(len(found), len(ids))
    finally:
        pool.shutdown(cancel_futures=True)


def _facts_table(facts: list[Facts]) -> pa.Table:
    import pyarrow as pa

    types = [pa.string(), pa.int32(), pa.int32(), pa.uint64(), pa.string(), pa.string(), pa.string()]
    columns = zip(*facts, strict=True) if facts else [[] for _ in types]
    return pa.table(
        [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)], names=list(Facts._fields)
    )


def _place(listing: Listing, max_pixels: int, cache_dir: Path | None) -> Path:
    """One file for a source and all that the facts depend on besides the files."""
    return place_of("facts", f"{VERSION}\0{max_pixels}\0{listing.source}", cache_dir)


def _recall(place: Path) -> pa.Table:
    """What is remembered; an empty table where there is nothing, or nothing to be trusted."""
    import pyarrow as pa

    keys = [pa.array([], kind) for kind in (pa.string(), pa.int64(), pa.int64(), pa.uint64())]
    nothing = pa.table([*keys, *_facts_table([]).columns], names=[*_KEYS, *Facts._fields])
    content = recall(place)
    try:
        return nothing if content is None else pa.ipc.open_file(pa.py_buffer(content)).read_all().combine_chunks()
    except pa.ArrowException:
        return nothing


def _remember(place: Path, keys: pa.Table, facts: pa.Table) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    table = pa.table(keys.columns + facts.columns, names=[*_KEYS, *Facts._fields])
    table = table.filter(pc.not_equal(table.column("sha256"), ""))  # could not be opened: may be mended from outside
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    remember(place, sink.getvalue())


def _match(listed: pa.Table, remembered: pa.Table) -> np.ndarray:
    """Row of `remembered` for each listed file that is unchanged since, else -1."""
    import numpy as np
    import pyarrow.compute as pc

    found = pc.index_in(listed.column("id"), value_set=remembered.column("id"))
    match = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    known = match >= 0
    for key in _KEYS[1:]:
        now, then = listed.column(key).to_numpy(), remembered.column(key).to_numpy()
        known[known] = now[known] == then[match[known]]
    return np.where(known & (listed.column("size").to_numpy() >= 0), match, -1)
