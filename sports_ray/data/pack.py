"""A pack: photographs in a few large files, which stand for the folder or the CSV list that they came from.

PACK.json              committed last: what is in the pack, and size and sha256 of each file below
index.arrow            a row a photograph, sorted by id: what is known of it (INDEX) and where its bytes lie
shards/00000.arrow     Arrow IPC, one batch: the columns of a manifest, and `image`, the bytes of the file

Index and shards are mapped, not read: a pack of any size costs no memory but the pages that are in use. Every setting
that lists a folder lists the pack of it in the same way, so the manifest, its fingerprint and the run are the same.
"""

from __future__ import annotations

import bisect
import errno
import hashlib
import mmap
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sports_ray.data.files import GONE, REMOTE, State, called_image
from sports_ray.data.inspect import VERSION, Facts
from sports_ray.data.label_sets import names_in
from sports_ray.errors import DataError, RunError
from sports_ray.store.codec import seal, unseal

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from sports_ray.config import DataConfig

NAME, INDEX_NAME = "PACK.json", "index.arrow"
FORMAT = 1
BATCH_ROWS = 1 << 20
"""Rows of each batch of the index but the last: strings of more would need longer offsets."""
MAPS = 4096
"""Shards that are mapped at the same time, at most; Linux allows a process 65,530 maps."""
_CURE = "pack the photographs again, or copy the pack again"


class FileEntry(NamedTuple):
    name: str
    """Below the pack's folder."""
    size: int
    sha256: str


@dataclass(frozen=True)
class PackRecord:
    """What PACK.json says."""

    images: int
    classes: list[str]
    """Sorted names of all classes that the default settings find; multi-label: words of the sets (label_sets)."""
    splits: dict[str, int]
    """Photographs of each split, by the default settings."""
    folders: dict[str, list[str]]
    """Folders of the packed one, and those in each; empty for a CSV list."""
    csv: str
    """Name of the CSV list that was packed; empty for a folder."""
    short_side: int
    """Larger photographs were encoded anew at this short side, px; 0: all bytes are those of the files."""
    version: int
    """`inspect.VERSION` of what the index tells of the photographs."""
    max_pixels: int
    """Photographs with more were not decoded."""
    fingerprint: str
    """Of the manifest by the default settings; empty if these refuse the photographs."""
    refused: str
    """Why they do."""
    inputs: str
    """Hex sha256 over the settings of the packing and (id, sha256) of all files packed."""
    index: FileEntry
    shards: list[FileEntry]
    multilabel: bool = False

    @property
    def names(self) -> list[str]:
        """Sorted names of the classes."""
        if not self.multilabel:
            return self.classes
        return sorted({name for word in self.classes for name in names_in(word)})

    @property
    def size(self) -> int:
        return self.index.size + sum(shard.size for shard in self.shards)

    def to_bytes(self) -> bytes:
        content = {"format": FORMAT, **asdict(self), "index": list(self.index), "shards": [[*s] for s in self.shards]}
        if not self.multilabel:  # as packs were written before there was another kind
            del content["multilabel"]
        return seal(content)

    @classmethod
    def from_bytes(cls, content: bytes | bytearray, where: str) -> PackRecord:
        """Read what `to_bytes` made. Raises DataError for anything else."""
        try:
            record = unseal(content, where)
        except RunError as error:
            raise DataError(f"{where}: no pack", got=error.got, want=error.want, cure=_CURE) from None
        if record.pop("format", None) != FORMAT:
            raise DataError(f"{where}: a pack of another version", want=f"format {FORMAT}", cure="pack it anew")
        record["index"], record["shards"] = FileEntry(*record["index"]), [FileEntry(*one) for one in record["shards"]]
        return cls(**record)


class Place(Protocol):
    """Where the files of a pack are."""

    def file(self, entry: FileEntry) -> Path:
        """Its path on this machine, as large as it must be; fetched first, if need be, and verified."""

    def fetch(self) -> None:
        """Brings all files to this machine."""


class LocalPlace:
    """A pack in a folder of this machine, or of a network file system."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def file(self, entry: FileEntry) -> Path:
        path = Path(self._folder, entry.name)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}", got=error.strerror, want="a file of the pack", cure=_CURE) from None
        if size != entry.size:
            raise DataError(f"{path}", got=f"{size:,} bytes", want=f"{entry.size:,}, as packed", cure=_CURE)
        return path

    def fetch(self) -> None:
        return


class Ids(Sequence[str]):
    """The sorted ids of an index, where they lie: bisecting reads a few of them, and keeps none."""

    def __init__(self, batches: list[pa.RecordBatch]) -> None:
        self._count = sum(batch.num_rows for batch in batches)
        self._parts = []
        for batch in batches:
            column = batch.column("id")
            _, offsets, characters = column.buffers()
            spans = memoryview(offsets).cast("i")[column.offset :]
            self._parts.append((spans, memoryview(characters) if characters else memoryview(b"")))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> Any:
        if not 0 <= row < self._count:
            raise IndexError(row)
        part, place = divmod(row, BATCH_ROWS)
        spans, characters = self._parts[part]
        return str(characters[spans[place] : spans[place + 1]], "utf-8")


class Pack:
    """See `Files`."""

    def __init__(self, root: str, record: PackRecord, place: Place, batches: list[pa.RecordBatch]) -> None:
        """`batches`: the index, as `read_index` or a packing gives it."""
        self._root, self.record, self._place = root, record, place
        self.ids = Ids(batches)
        self._batches = batches
        self._where = [[batch.column(name).to_numpy() for name in ("shard", "offset", "size")] for batch in batches]
        self._maps: dict[int, mmap.mmap] = {}

    @property
    def root(self) -> str:
        return self._root

    def read(self, path: str) -> bytes:
        row = self._row(path)
        if row is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        part, place = divmod(row, BATCH_ROWS)
        shard, offset, size = (int(column[place]) for column in self._where[part])
        return self._map(shard)[offset : offset + size]

    def state(self, path: str) -> State:
        row = self._row(path)
        if row is None:
            return GONE
        part, place = divmod(row, BATCH_ROWS)
        digest = bytes.fromhex(self._batches[part].column("sha256")[place].as_py())
        mtime, inode = state_words(digest)
        return State(int(self._where[part][2][place]), int(mtime[0]), int(inode[0]))

    def facts(self, paths: pa.ChunkedArray, max_pixels: int | None = None) -> pa.Table | None:
        import pyarrow.compute as pc

        if self.record.version != VERSION or max_pixels not in (None, self.record.max_pixels):
            return None
        table = self.table()
        rows = pc.index_in(paths, value_set=table.column("id"))
        if rows.null_count:
            lacking = paths.filter(pc.is_null(rows))[0].as_py()
            raise DataError(f"{lacking} is not in the pack", got=self._root, want="a photograph of it")
        return table.select(list(Facts._fields)).take(rows).combine_chunks()

    def paths(self) -> list[str]:
        return [path for path in self.ids if called_image(path)]

    def fetch(self) -> None:
        self._place.fetch()

    def table(self) -> pa.Table:
        """The index."""
        import pyarrow as pa

        return pa.Table.from_batches(self._batches, schema=index_schema())

    def check(self) -> None:
        """Reads every byte of the shards. Raises DataError for what is not as it was packed."""
        self.fetch()
        for entry in self.record.shards:
            with self._place.file(entry).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != entry.sha256:
                what = f"{self._root}/{entry.name} is damaged"
                raise DataError(what, got=f"sha256 {found[:12]}", want=entry.sha256[:12], cure=_CURE)

    def _row(self, path: str) -> int | None:
        row = bisect.bisect_left(self.ids, path)
        return row if row < len(self.ids) and self.ids[row] == path else None

    def _map(self, shard: int) -> mmap.mmap:
        found = self._maps.get(shard)
        if found is None:
            if len(self._maps) >= MAPS:
                self._maps.clear()
            with self._place.file(self.record.shards[shard]).open("rb") as file:
                found = self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return found


def index_schema() -> pa.Schema:
    """Columns of the index: id, split and label by the default settings ("" and -1: none), facts, and where the bytes lie."""
    import pyarrow as pa

    types = {"id": pa.string(), "split": pa.string(), "label": pa.int32(), "sha256": pa.string(), "width": pa.int32()}
    types |= {"height": pa.int32(), "phash": pa.uint64(), "format": pa.string(), "fault": pa.string()}
    types |= {"error": pa.string(), "shard": pa.int32(), "offset": pa.int64(), "size": pa.int64()}
    return pa.schema(list(types.items()))


_opened: dict[tuple[object, ...], Pack] = {}


def open_pack(root: str, config: DataConfig | None = None) -> Pack:
    """The pack in a folder or at an s3:// or gs:// address; a process opens each once.

    Raises DataError for what is no finished pack, StorageError if an address cannot be reached."""
    if root.startswith(REMOTE):
        from sports_ray.data.pack_cache import cached_pack

        settings = (config.pack_cache, config.pack_cache_gb) if config else ("", -1.0)
        key: tuple[object, ...] = (root, *settings)
        if key not in _opened:
            record, kept = cached_pack(root, *settings)
            _opened[key] = Pack(root, record, kept, read_index(kept.file(record.index), record))
        return _opened[key]
    folder = os.path.abspath(os.path.expanduser(root))
    path = Path(folder, NAME)
    try:
        stat = path.stat()
        key = (folder, stat.st_mtime_ns, stat.st_ino)
        if key not in _opened:
            record, place = PackRecord.from_bytes(path.read_bytes(), str(path)), LocalPlace(folder)
            _opened[key] = Pack(folder, record, place, read_index(place.file(record.index), record))
        return _opened[key]
    except FileNotFoundError:
        cure = f"the same `sports-ray data pack ... {root}` again goes on with it"
        raise DataError(f"{folder}: a pack that is not finished", want=NAME, cure=cure) from None
    except OSError as error:
        raise DataError(f"{path}", got=error.strerror, want="a readable pack") from None


def read_index(path: Path, record: PackRecord) -> list[pa.RecordBatch]:
    """The batches of an index, mapped. Raises DataError if it is not the one that the record names."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            content = source.read_buffer()
        if hashlib.sha256(content).hexdigest() != record.index.sha256:
            raise DataError(f"{path} is damaged", got="another sha256", want="that of the pack", cure=_CURE)
        file = pa.ipc.open_file(content)
        batches = [file.get_batch(number) for number in range(file.num_record_batches)]
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}", got=str(error).splitlines()[0], want="the index of a pack", cure=_CURE) from None
    if [batch.num_rows for batch in batches[:-1]] != [BATCH_ROWS] * (len(batches) - 1) or sum(
        batch.num_rows for batch in batches
    ) != record.images:
        raise DataError(f"{path}", got="other rows than the pack has", cure=_CURE)
    return batches


def state_words(digests: bytes) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Of sha256 digests, 32 bytes each: int64 [n] from 0, and uint64 [n]."""
    import numpy as np

    words = np.frombuffer(digests, "<u8").reshape(-1, 4)
    return (words[:, 0] >> np.uint64(1)).astype(np.int64), words[:, 1].astype(np.uint64)
