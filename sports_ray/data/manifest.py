"""The manifest: every photograph that a run may use, its class, its split and its digest, as an Arrow table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sports_ray.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from sports_ray.config import DataConfig
    from sports_ray.data.listing import Listing

_ROWS_AT_ONCE = 1 << 16
COLUMNS = ("id", "path", "label", "split", "sha256", "width", "height")


@dataclass(frozen=True)
class Manifest:
    root: str
    """Absolute, or the address of a pack; the files' paths start here (files.open_files)."""
    classes: tuple[str, ...]
    """Sorted names; a label is a place in them."""
    table: pa.Table
    """COLUMNS, sorted by id: id and path (relative to root, with '/'; absolute for CSV rows outside), label (int32, -1:
    unlabelled), split (train, val, test), sha256 of the file (hex), width and height in pixels as displayed (int32)."""
    notes: tuple[str, ...] = ()
    """What a user should be warned of, a line each."""

    def rows(self, split: str) -> pa.Table:
        """Rows of one split, in the order of the table."""
        import pyarrow.compute as pc

        return self.table.filter(pc.equal(self.table.column("split"), split)).combine_chunks()

    def fingerprint(self) -> str:
        """Hex sha256 over classes and (id, label, split, sha256): the same wherever the folder lies."""
        digest = hashlib.sha256(f"[{json.dumps(self.classes)}, [".encode())
        for number, rows in enumerate(self._content()):
            digest.update((", " * (number > 0) + json.dumps(rows)[1:-1]).encode())
        digest.update(b"]]")
        return digest.hexdigest()

    def _content(self) -> Iterator[list[tuple[object, ...]]]:
        """(id, label, split, sha256) of all rows, sorted, a part at a time: at once they would take 0.5 KB a photograph."""
        import pyarrow.compute as pc

        table = self.table.select(["id", "label", "split", "sha256"])
        ids = table.column("id")
        if not pc.all(pc.less(ids.slice(0, max(0, len(ids) - 1)), ids.slice(1))).as_py():
            yield sorted(zip(*table.to_pydict().values(), strict=True))
            return
        for start in range(0, table.num_rows, _ROWS_AT_ONCE):
            yield list(zip(*table.slice(start, _ROWS_AT_ONCE).to_pydict().values(), strict=True))

    def to_bytes(self) -> bytes:
        """As an Arrow IPC file; root, classes and notes travel in its metadata."""
        import pyarrow as pa

        meta = {"root": self.root, "classes": self.classes, "notes": self.notes}
        table = self.table.replace_schema_metadata({"sports_ray": json.dumps(meta)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, content: bytes | bytearray) -> Manifest:
        """Read what `to_bytes` made. Raises DataError for anything else."""
        import pyarrow as pa

        try:
            table = pa.ipc.open_file(pa.py_buffer(content)).read_all()
            meta = json.loads((table.schema.metadata or {})[b"sports_ray"])
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise DataError("not a manifest", got=error, want="what Manifest.to_bytes made") from None
        return cls(meta["root"], tuple(meta["classes"]), table.replace_schema_metadata(None), tuple(meta["notes"]))

    def save(self, path: Path | str) -> None:
        Path(path).write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: Path | str) -> Manifest:
        """Read what `save` wrote. Raises DataError for any other file."""
        try:
            return cls.from_bytes(Path(path).read_bytes())
        except OSError as error:
            raise DataError(f"{path}", got=error.strerror, want="a manifest") from None
        except DataError as error:
            raise DataError(f"{path}: {error.what}", error.got, error.want, error.cure) from None


def build_manifest(
    config: DataConfig, *, progress: Callable[[int, int], None] | None = None, cache_dir: Path | None = None
) -> Manifest:
    """List, inspect, check and split the photographs that `config` names.

    `progress(done, total)` is told of files being read; files that have not changed since they were last read are not.
    What is remembered of them lies in `cache_dir`, by default $XDG_CACHE_HOME/sports-ray or ~/.cache/sports-ray.

    Raises DataError for all that `config` does not allow to train on: bad rows of a list, classes missing on one side,
    too many broken files, leaks."""
    from sports_ray.data.listing import list_files

    return manifest_of(list_files(config.root, config), config, progress=progress, cache_dir=cache_dir)


def manifest_of(
    listing: Listing,
    config: DataConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    cache_dir: Path | None = None,
) -> Manifest:
    """As `build_manifest`, of photographs that are listed already."""
    import numpy as np
    import pyarrow as pa

    from sports_ray.data import rules
    from sports_ray.data.facts import all_facts
    from sports_ray.data.split import carve, uncarved

    rules.check_listing(listing, config)
    listing, classes = rules.select_classes(listing, config)
    facts = all_facts(listing, config.max_pixels, progress, cache_dir)
    table, notes = rules.leave_out_bad(rules.joined(listing, facts, classes), config)
    table, leaks = rules.settle_leaks(table, config)
    notes += leaks
    split = np.array(table.column("split").to_pylist())
    if "val" not in listing.folders:
        rows = np.flatnonzero(split == "train")
        train = table.take(rows)
        labels = train.column("label").to_numpy()
        chosen = carve(
            train.column("sha256").to_pylist(), train.column("phash").to_numpy(), labels, config.val_fraction
        )
        split[rows[chosen]] = "val"
        notes += rules.note_uncarved([classes[label] for label in uncarved(labels, chosen).tolist()])
    table = table.set_column(table.column_names.index("split"), "split", pa.array(split.tolist(), pa.string()))
    rules.check_trainable(table, classes)
    notes += rules.note_near_duplicates(table)
    return Manifest(str(listing.root), classes, table.select(list(COLUMNS)).combine_chunks(), tuple(notes))
