"""Logits on disk: 256 rows of one member and one view a file, exactly once.

<store>/predictions/<model>-<digest>/key.json          what the digest stands for
                                     <view>/00000.parquet   ids, errors, logits of rows [0, 256)

The folder is named by all that its bytes depend on: weights, photographs, preprocessing, precision, batch, device. So a
block that is there need not be computed again, whoever wrote it, and two who write the same one write the same bytes. A
file appears whole or not at all, and proves itself when it is read: a damaged one counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sports_ray.errors import StorageError, TrainingError
from sports_ray.store.codec import canonical, seal
from sports_ray.store.storage import Storage, is_temporary, open_storage

log = logging.getLogger(__name__)

ROWS = 256
FOLDER = "predictions"
FORMAT = 1
UNREAD = "cannot be read: "
"""How the error of a file begins that was there when it was listed: another time it may be there again."""
_META = b"sports_ray"


class Block(NamedTuple):
    """Rows [start, start + n) of one view."""

    start: int
    logits: NDArray[np.float32]
    """[n, K]; zeros where there is an error."""
    errors: list[str | None]
    """[n]."""


@dataclass(frozen=True)
class Shelf:
    """Where the blocks of one member on one set of photographs lie. Can be sent to another process."""

    store: str
    """Folder or URI that holds predictions/."""
    name: str
    rows: int
    classes: int

    @classmethod
    def of(cls, store: str, model: str, key: dict[str, Any], rows: int, classes: int) -> Shelf:
        """The shelf whose name says all of `key`."""
        digest = hashlib.sha256(canonical({"format": FORMAT, **key}).encode()).hexdigest()
        return cls(store, f"{re.sub(r'[^A-Za-z0-9._-]', '_', model)}-{digest[:20]}", rows, classes)

    def storage(self) -> Storage:
        return open_storage(self.store).child(FOLDER).child(self.name)

    @property
    def blocks(self) -> int:
        return -(-self.rows // ROWS)

    def span(self, block: int) -> tuple[int, int]:
        """Rows [start, stop) of a block."""
        return block * ROWS, min(self.rows, (block + 1) * ROWS)

    def describe(self, key: dict[str, Any]) -> None:
        """Writes down what the name stands for, for people."""
        storage, content = self.storage(), seal({"format": FORMAT, **key})
        if storage.find("key.json") != content:
            storage.write("key.json", content)

    def sweep(self, views: Sequence[str]) -> None:
        """Takes away what deaths have left half-written. Whoever writes a block just now writes it once more."""
        storage = self.storage()
        for folder in ("", *views):
            sweep(storage, folder)

    def missing(self, views: Sequence[str]) -> dict[int, list[str]]:
        """Views of each block that are not there; blocks that lack nothing are left out."""
        storage = self.storage()
        there: dict[str, set[str]] = {}
        for view in views:
            there[view] = {entry.name for entry in storage.list(view)}
        lacking = {block: [view for view in views if _file(block) not in there[view]] for block in range(self.blocks)}
        return {block: names for block, names in lacking.items() if names}

    def write(self, view: str, block: int, logits: NDArray[np.float32], errors: Sequence[str | None]) -> None:
        """Puts a block in place, whole and durable; equal rows give equal bytes."""
        start, stop = self.span(block)
        if logits.shape != (stop - start, self.classes) or len(errors) != stop - start:
            raise TrainingError(
                f"block {block} of {view}", got=f"{logits.shape} logits", want=f"{(stop - start, self.classes)}"
            )
        content, path, storage = encode(start, logits, errors), f"{view}/{_file(block)}", self.storage()
        try:
            storage.write(path, content)
        except StorageError:
            # Another who computes the same may have swept the temporary file, or been faster.
            if not storage.exists(path):
                storage.write(path, content)

    def read(self, view: str, block: int) -> Block | None:
        """A block that proves itself; None if it is missing or damaged, and then it is gone."""
        storage, path = self.storage(), f"{view}/{_file(block)}"
        content = storage.find(path)
        if content is None:
            return None
        start, stop = self.span(block)
        found = decode(content, start, stop - start, self.classes)
        if found is None:
            log.warning("block.damaged path=%s/%s", storage.uri, path)
            storage.delete(path)
        return found

    def forget(self, view: str, block: int) -> None:
        self.storage().delete(f"{view}/{_file(block)}")


def sweep(storage: Storage, folder: str = "") -> None:
    """Takes away what a death has left half-written in a folder."""
    for entry in storage.list(folder):
        if is_temporary(entry.name):
            storage.delete(f"{folder}/{entry.name}" if folder else entry.name)


def prove(ids: Iterator[NDArray[np.int64]], rows: int, what: str) -> None:
    """TrainingError unless the ids, in the order in which they come, are 0, 1, ... rows - 1: ids in = ids out."""
    expected = 0
    for part in ids:
        if not np.array_equal(part, np.arange(expected, expected + len(part))):
            raise TrainingError(
                f"ids of {what}", got=f"another row than {expected}", want=f"0 to {rows - 1}, each once"
            )
        expected += len(part)
    if expected != rows:
        raise TrainingError(f"ids of {what}", got=f"{expected} rows", want=f"{rows}")


def encode(start: int, logits: NDArray[np.float32], errors: Sequence[str | None]) -> bytes:
    """Parquet bytes of a block: columns id (int64), error (string), logits (float32 list)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, classes = logits.shape
    values = np.ascontiguousarray(logits, dtype=np.float32)
    ids = np.arange(start, start + rows, dtype=np.int64)
    meta = json.dumps({"format": FORMAT, "sha256": _digest(ids, values, errors)}, sort_keys=True)
    schema = pa.schema(
        [("id", pa.int64()), ("error", pa.string()), ("logits", pa.list_(pa.float32(), classes))],
        metadata={_META: meta.encode()},
    )
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), classes)
    table = pa.Table.from_arrays([pa.array(ids), pa.array(list(errors), pa.string()), lists], schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=False)
    return sink.getvalue().to_pybytes()


def decode(content: bytes | bytearray, start: int, rows: int, classes: int) -> Block | None:
    """What `encode` made of these very rows; None for anything else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(pa.py_buffer(content)), use_threads=False)
        meta = json.loads((table.schema.metadata or {})[_META])
        ids = table.column("id").combine_chunks().to_numpy()
        errors = table.column("error").to_pylist()
        values = table.column("logits").combine_chunks().flatten().to_numpy().reshape(-1, classes)
    except (pa.ArrowException, OSError, KeyError, ValueError, AttributeError):
        return None
    if len(values) != rows or not np.array_equal(ids, np.arange(start, start + rows)):
        return None
    if meta.get("format") != FORMAT or meta.get("sha256") != _digest(ids, values, errors):
        return None
    return Block(start, values, errors)


def _digest(ids: NDArray[np.int64], values: NDArray[np.float32], errors: Sequence[str | None]) -> str:
    digest = hashlib.sha256(ids.tobytes())
    digest.update(np.ascontiguousarray(values).tobytes())
    digest.update(json.dumps(list(errors)).encode())
    return digest.hexdigest()


def _file(block: int) -> str:
    return f"{block:05d}.parquet"
