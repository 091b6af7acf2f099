"""Packs photographs: shards first, PACK.json last, so that a pack is whole or none. Killed, the same call goes on.

The bytes are a function of the photographs and the settings. Shards are cut in the order of the ids: each takes
photographs until the next would be too many. With each shard goes its part of the index (parts/00000.arrow, gone when the
pack is committed), which names what it was made of: what is there already and made of the same is not made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sports_ray.config import DataConfig
from sports_ray.data.inspect import VERSION, inspect_bytes
from sports_ray.data.pack import (
    INDEX_NAME,
    NAME,
    FileEntry,
    LocalPlace,
    Pack,
    PackRecord,
)
from sports_ray.data.pack_list import list_pack
from sports_ray.data.pack_shard import QUALITY, Packed, index_batches, index_part, ipc_file, shard_file, shrunk
from sports_ray.data.pack_source import Source, Sources, find_sources
from sports_ray.errors import ConfigError, DataError, UserError
from sports_ray.store.storage import Storage, is_temporary, open_storage

if TYPE_CHECKING:
    import pyarrow as pa

Progress = Callable[[int, int], None]

SHORT_SIDES = (16, 8192)
SHARD_MB = (1, 512)
_BYTES_PER_MB = 1_000_000
_AHEAD = 8
"""Photographs, for each core, that are read and encoded before they are written."""
_OURS = {NAME, INDEX_NAME, "shards", "parts"}


@dataclass(frozen=True)
class PackReport:
    """What was packed."""

    out: str
    record: PackRecord
    made: int
    """Shards that were made now; the others were there."""


def write_pack(
    source: str,
    out: str,
    *,
    short_side: int = 0,
    shard_mb: int = 64,
    inspecting: Progress | None = None,
    packing: Progress | None = None,
    cache_dir: Path | None = None,
) -> PackReport:
    """Packs a folder, a CSV list or a pack into `out`, a folder or an s3:// or gs:// address, which must be new, empty, or
    hold what a packing of the same photographs has left.

    short_side: px; larger photographs are turned upright and encoded anew as JPEG at this short side. 0: none are.
    `inspecting` and `packing` are told of photographs done and in all. Raises UserError for what the user has to mend,
    StorageError if `out` cannot be written."""
    if short_side and not SHORT_SIDES[0] <= short_side <= SHORT_SIDES[1]:
        raise ConfigError("--short-side", got=short_side, want=f"from {SHORT_SIDES[0]} to {SHORT_SIDES[1]} px")
    if not SHARD_MB[0] <= shard_mb <= SHARD_MB[1]:
        raise ConfigError("--shard-mb", got=shard_mb, want=f"from {SHARD_MB[0]} to {SHARD_MB[1]}")
    sources = find_sources(source, inspecting, cache_dir)
    settings = {"short_side": short_side, "shard_bytes": shard_mb * _BYTES_PER_MB, "quality": QUALITY}
    about: dict[str, object] = {"classes": sources.classes, "folders": sources.folders, "csv": sources.csv}
    about |= {"multilabel": True} if sources.multilabel else {}
    inputs = _digest(sources.rows, {**settings, **about})
    storage = open_storage(out)
    standing = _standing(storage, inputs)
    if standing is not None:
        _tidy(storage, standing)
        return PackReport(storage.uri, standing, 0)
    parts, shards, made = _Shards(storage, sources, settings, packing).make()
    batches = index_batches(parts)
    content = ipc_file(batches, {})
    storage.write(INDEX_NAME, memoryview(content))
    record = PackRecord(
        images=len(sources.rows),
        classes=sources.classes,
        splits=dict(sorted(Counter(one.split for one in sources.rows if one.split).items())),
        folders=sources.folders,
        csv=sources.csv,
        short_side=short_side,
        version=VERSION,
        max_pixels=DataConfig().max_pixels,
        fingerprint="",
        refused="",
        inputs=inputs,
        index=FileEntry(INDEX_NAME, content.size, hashlib.sha256(content).hexdigest()),
        shards=shards,
        multilabel=sources.multilabel,
    )
    record = _with_fingerprint(storage.uri, record, batches)
    storage.write(NAME, record.to_bytes())
    _tidy(storage, record)
    return PackReport(storage.uri, record, made)


def _digest(rows: Iterable[Source], settings: dict[str, object]) -> str:
    """Hex sha256 of all that the bytes of a pack, or of a shard, depend on."""
    digest = hashlib.sha256(json.dumps({"facts": VERSION, **settings}, sort_keys=True).encode())
    for one in rows:
        digest.update(json.dumps([one.id, one.split, one.label, one.facts.sha256]).encode())
    return digest.hexdigest()


def _standing(storage: Storage, inputs: str) -> PackRecord | None:
    """The pack that is there, if it is this very one. Raises DataError where something else is."""
    content = storage.find(NAME)
    if content is not None:
        record = PackRecord.from_bytes(content, f"{storage.uri}/{NAME}")
        if record.inputs == inputs:
            return record
        got, cure = "a pack of other photographs or settings", "another folder, or delete the pack that is there"
        raise DataError(storage.uri, got=got, want="a new or empty folder", cure=cure)
    others = [entry.name for entry in storage.list() if entry.name not in _OURS and not is_temporary(entry.name)]
    if others:
        raise DataError(storage.uri, got=f"a folder that holds {others[0]}", want="a new or empty folder")
    return None


class _Shards:
    """Makes shards, or finds them made, one after the other."""

    def __init__(self, storage: Storage, sources: Sources, settings: dict[str, int], progress: Progress | None) -> None:
        self._storage, self._sources, self._progress = storage, sources, progress
        self._settings: dict[str, object] = {**settings}
        self._short_side, self._limit = settings["short_side"], settings["shard_bytes"]
        self._done = 0

    def make(self) -> tuple[list[pa.Table], list[FileEntry], int]:
        """Parts of the index, the shards, and how many of these were made now."""
        parts, shards = self._found()
        there = len(shards)
        coming = self._packed(self._done)
        pending = next(coming, None)
        while pending is not None:
            group, size = [pending], len(pending.data)
            while (pending := next(coming, None)) is not None and size + len(pending.data) <= self._limit:
                group.append(pending)
                size += len(pending.data)
            part, shard = self._write(len(shards), group)
            parts.append(part)
            shards.append(shard)
            self._count(len(group))
        return parts, shards, len(shards) - there

    def _found(self) -> tuple[list[pa.Table], list[FileEntry]]:
        """Shards that are there already, from the first on."""
        import pyarrow as pa

        parts: list[pa.Table] = []
        shards: list[FileEntry] = []
        sizes = {f"shards/{entry.name}": entry.size for entry in self._storage.list("shards")}
        while (content := self._storage.find(_part_name(len(parts)))) is not None:
            try:
                part = pa.ipc.open_file(pa.py_buffer(content)).read_all()
                meta = json.loads((part.schema.metadata or {})[b"sports_ray"])
            except (pa.ArrowException, OSError, KeyError, ValueError):
                break
            shard = FileEntry(*meta["shard"])
            group = self._sources.rows[self._done : self._done + part.num_rows]
            if meta["inputs"] != _digest(group, self._settings) or sizes.get(shard.name) != shard.size:
                break
            parts.append(part.replace_schema_metadata(None))
            shards.append(shard)
            self._count(part.num_rows)
        return parts, shards

    def _packed(self, start: int) -> Iterator[Packed]:
        """Photographs from a row on; read and encoded ahead, on all cores."""
        cores = len(os.sched_getaffinity(0))
        coming: deque[Future[Packed]] = deque()
        with ThreadPoolExecutor(cores) as pool:
            for one in islice(self._sources.rows, start, None):
                coming.append(pool.submit(self._read, one))
                if len(coming) >= _AHEAD * cores:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()

    def _read(self, source: Source) -> Packed:
        try:
            data = self._sources.files.read(source.id)
        except OSError as error:
            raise DataError(source.id, got=error.strerror, want="a readable file") from None
        if hashlib.sha256(data).hexdigest() != source.facts.sha256:
            cure = "pack while nobody writes to the folder"
            raise DataError(source.id, got="other bytes than a moment ago", cure=cure)
        small = shrunk(data, self._short_side, source.facts)
        return Packed(source, small, source.facts if small is data else inspect_bytes(small, DataConfig().max_pixels))

    def _write(self, number: int, group: list[Packed]) -> tuple[pa.Table, FileEntry]:
        """The shard first, then its part of the index: where this stands, so does the shard."""
        content, start = shard_file(group)
        shard = FileEntry(f"shards/{number:05d}.arrow", content.size, hashlib.sha256(content).hexdigest())
        part = index_part(group, number, start)
        meta = {"inputs": _digest([one.source for one in group], self._settings), "shard": list(shard)}
        self._storage.write(shard.name, memoryview(content))
        self._storage.write(_part_name(number), memoryview(ipc_file(part.to_batches(), meta)))
        return part, shard

    def _count(self, images: int) -> None:
        self._done += images
        if self._progress:
            self._progress(self._done, len(self._sources.rows))


def _part_name(number: int) -> str:
    return f"parts/{number:05d}.arrow"


def _with_fingerprint(uri: str, record: PackRecord, batches: list[pa.RecordBatch]) -> PackRecord:
    """The record with the fingerprint of its manifest, or why there is none, both by the default settings."""
    from sports_ray.data.manifest import manifest_of

    config = DataConfig(root=uri)
    try:
        manifest = manifest_of(list_pack(Pack(uri, record, LocalPlace(uri), batches), config), config)
    except UserError as error:
        return replace(record, refused=str(error).replace(uri, "the pack"))
    return replace(record, fingerprint=manifest.fingerprint())


def _tidy(storage: Storage, record: PackRecord) -> None:
    """Deletes what a packing needs on its way, and what earlier ones that were killed have left. Nothing else is ours."""
    named = {shard.name for shard in record.shards}
    for folder in ("", "shards", "parts"):
        entries = storage.list(folder)
        paths = [f"{folder}/{entry.name}" if folder else entry.name for entry in entries if not entry.is_dir]
        remains = [path for path in paths if path not in named and _is_ours(path)]
        if folder == "parts" and len(remains) == len(entries):
            storage.delete(folder)  # at once: each deletion on its own waits for the disk, or for an answer
            continue
        for path in remains:
            storage.delete(path)


def _is_ours(path: str) -> bool:
    """Whether a shard, a part of the index or a write that was under way is called so."""
    return is_temporary(path.rpartition("/")[2]) or re.fullmatch(r"(shards|parts)/\d{5,}\.arrow", path) is not None
