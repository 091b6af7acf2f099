"""The sha256 of each file, remembered until its size, time or inode changes: what was computed is found again by content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from sports_ray.data.files import Files, open_files, read_unknown
from sports_ray.data.inspect import sniff
from sports_ray.remembered import place_of, recall, remember

Progress = Callable[[int, int], None]
_CHUNK = 64


class Digest(NamedTuple):
    """A file's state, and, once it was read, what its bytes are."""

    size: int
    """Bytes; -1: there is no such file."""
    mtime_ns: int
    inode: int
    sha256: str = ""
    """Hex; empty if it could not be read."""
    is_image: bool = False
    """Whether its first bytes are those of an image."""
    error: str = ""


def digests(
    root: str, paths: Sequence[str], stats: Sequence[Digest], progress: Progress | None = None, home: Path | None = None
) -> list[Digest]:
    """A digest for each path below `root`, read on all cores where it is not remembered; never raises for a file.

    `progress(done, total)` is told of the files being read. Remembered in `home`, by default $XDG_CACHE_HOME/sports-ray
    or ~/.cache/sports-ray; a damaged or unwritable memory costs time and nothing else. A pack knows them without reading."""
    files = open_files(root)
    if (packed := _packed(files, paths, stats)) is not None:
        return packed
    place = place_of("digests", root, home)
    known = _recall(place)
    found = {
        path: kept for path, stat in zip(paths, stats, strict=True) if (kept := known.get(path, stat))[:3] == stat[:3]
    }
    found = {path: one for path, one in found.items() if one.sha256}
    unknown = [(path, stat) for path, stat in zip(paths, stats, strict=True) if path not in found]
    if unknown:
        _read_all(files, unknown, found, progress)
        # Of another selection of the same folder: kept as well.
        _remember(place, {**known, **found})
    return [found[path] for path in paths]


def _packed(files: Files, paths: Sequence[str], stats: Sequence[Digest]) -> list[Digest] | None:
    import pyarrow as pa

    facts = files.facts(pa.chunked_array([pa.array(paths, pa.string())]))
    if facts is None:
        return None
    known = zip(facts.column("sha256").to_pylist(), facts.column("format").to_pylist(), strict=True)
    return [
        stat._replace(sha256=digest, is_image=bool(kind)) for stat, (digest, kind) in zip(stats, known, strict=True)
    ]


def _read_all(
    files: Files, unknown: list[tuple[str, Digest]], found: dict[str, Digest], progress: Progress | None
) -> None:
    def work(start: int) -> list[tuple[str, Digest]]:
        part = unknown[start : start + _CHUNK]
        return [(path, _read(files, path, stat)) for path, stat in part]

    done = 0
    with ThreadPoolExecutor(2 * len(os.sched_getaffinity(0))) as pool:
        for part in pool.map(work, range(0, len(unknown), _CHUNK)):
            found.update(part)
            done += len(part)
            if progress:
                progress(done, len(unknown))


def _read(files: Files, path: str, stat: Digest) -> Digest:
    try:
        data = read_unknown(files, path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return stat._replace(error=f"cannot be read: {reason}")
    return stat._replace(sha256=hashlib.sha256(data).hexdigest(), is_image=bool(sniff(data)))


def _recall(place: Path) -> dict[str, Digest]:
    try:
        rows = [line.split("\t", 5) for line in bytes(recall(place) or b"").decode().splitlines()]
    except ValueError:
        return {}
    return {row[5]: Digest(int(row[0]), int(row[1]), int(row[2]), row[3], row[4] == "1") for row in rows}


def _remember(place: Path, found: dict[str, Digest]) -> None:
    """A line a file."""
    rows = [
        f"{one.size}\t{one.mtime_ns}\t{one.inode}\t{one.sha256}\t{int(one.is_image)}\t{path}\n"
        for path, one in found.items()
        if one.sha256 and "\n" not in path and "\r" not in path and path.splitlines() == [path]
    ]
    remember(place, "".join(rows).encode(errors="surrogateescape"))
