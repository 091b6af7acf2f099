"""The manifest: every photograph that a run may use, its class, its split and its digest, as an Arrow table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sports_ray.data.label_sets import LabelSets
from sports_ray.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

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
    label_sets: LabelSets = ()
    """Multi-label: the classes of each set that occurs, and a label is a place in these; empty: each photograph shows one."""

    @property
    def multilabel(self) -> bool:
        return bool(self.label_sets)

    def class_images(self, split: str) -> NDArray[np.int64]:
        """Labelled photographs of a split that show each class, [classes]."""
        from sports_ray.data.label_sets import images_of_classes

        return images_of_classes(self.rows(split).column("label").to_numpy(), self.label_sets, len(self.classes))

    def rows(self, split: str) -> pa.Table:
        """Rows of one split, in the order of the table."""
        import pyarrow.compute as pc

        return self.table.filter(pc.equal(self.table.column("split"), split)).combine_chunks()

    def fingerprint(self) -> str:
        """Hex sha256 over classes, label sets and (id, label, split, sha256): the same wherever the folder lies."""
        sets = f", {json.dumps(self.label_sets)}" if self.multilabel else ""
        digest = hashlib.sha256(f"[{json.dumps(self.classes)}{sets}, [".encode())
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
        """As an Arrow IPC file; root, classes, notes and label sets travel in its metadata."""
        import pyarrow as pa

        meta: dict[str, object] = {"root": self.root, "classes": self.classes, "notes": self.notes}
        meta |= {"label_sets": self.label_sets} if self.multilabel else {}
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
        sets = tuple(tuple(places) for places in meta.get("label_sets", ()))
        table = table.replace_schema_metadata(None)
        return cls(meta["root"], tuple(meta["classes"]), table, tuple(meta["notes"]), sets)

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
    from sports_ray.data import rules
    from sports_ray.data.split import carve, uncarved

    sound = _sound(listing, config, progress, cache_dir)
    if config.folds:
        return _held_out(sound, _fold_of(sound, config), config.fold)
    split, notes = _splits(sound.table), list[str]()
    if "val" not in listing.folders:
        rows, train, labels = _train(sound)
        chosen = carve(
            train.column("sha256").to_pylist(),
            train.column("phash").to_numpy(),
            labels,
            config.val_fraction,
            sound.sets,
        )
        split[rows[chosen]] = "val"
        notes = rules.note_uncarved([sound.classes[label] for label in uncarved(labels, chosen, sound.sets).tolist()])
    return _split(sound, split, notes)


def fold_manifests(
    config: DataConfig, *, progress: Callable[[int, int], None] | None = None, cache_dir: Path | None = None
) -> list[Manifest]:
    """As `build_manifest`, one for each of `data.folds` folds: what validates in one of them trains in all others."""
    from sports_ray.data.listing import list_files

    sound = _sound(list_files(config.root, config), config, progress, cache_dir)
    fold_of = _fold_of(sound, config)
    return [_held_out(sound, fold_of, fold) for fold in range(config.folds)]


class _Sound(NamedTuple):
    """Photographs that a run may use."""

    root: str
    classes: tuple[str, ...]
    table: pa.Table
    """COLUMNS, and what is known of the files."""
    notes: list[str]
    sets: LabelSets
    """As `Manifest.label_sets`."""


def _sound(
    listing: Listing, config: DataConfig, progress: Callable[[int, int], None] | None, cache_dir: Path | None
) -> _Sound:
    """Photographs that can be read and are in no two splits; where folds are made, those of val/ are of train too."""
    import numpy as np

    from sports_ray.data import rules
    from sports_ray.data.facts import all_facts
    from sports_ray.data.label_sets import select_label_sets, sets_of

    rules.check_listing(listing, config)
    sets: LabelSets = ()
    lacking: list[str] = []
    if listing.multilabel:
        listing, classes, words, lacking = select_label_sets(listing, config)
        sets = sets_of(words, classes)
    else:
        listing, classes = rules.select_classes(listing, config)
        words = classes
    facts = all_facts(listing, config.max_pixels, progress, cache_dir)
    table, notes = rules.leave_out_bad(rules.joined(listing, facts, words), config)
    if config.folds:
        split = _splits(table)
        table = _with_splits(table, np.where(split == "val", "train", split))
    table, leaks = rules.settle_leaks(table, config, sets)
    return _Sound(str(listing.root), classes, table, [*lacking, *notes, *leaks], sets)


def _fold_of(sound: _Sound, config: DataConfig) -> np.ndarray:
    """The fold of each row, int64 [n]; -1 for those of test."""
    import numpy as np

    from sports_ray.data.folds import assign_folds

    if sound.sets:
        raise DataError("data.folds", got="a multi-label list", want="one class a photograph", cure="data.folds=0")
    rows, train, labels = _train(sound)
    found = np.full(sound.table.num_rows, -1)
    found[rows] = assign_folds(
        train.column("sha256").to_pylist(), train.column("phash").to_numpy(), labels, sound.classes, config.folds
    )
    return found


def _held_out(sound: _Sound, fold_of: np.ndarray, fold: int) -> Manifest:
    import numpy as np

    return _split(sound, np.where(fold_of == fold, "val", _splits(sound.table)), [])


def _split(sound: _Sound, split: np.ndarray, notes: list[str]) -> Manifest:
    from sports_ray.data import rules

    table = _with_splits(sound.table, split)
    rules.check_trainable(table, sound.classes, sound.sets)
    notes = [*sound.notes, *notes, *rules.note_near_duplicates(table)]
    table = table.select(list(COLUMNS)).combine_chunks()
    return Manifest(sound.root, sound.classes, table, tuple(notes), sound.sets)


def _train(sound: _Sound) -> tuple[np.ndarray, pa.Table, np.ndarray]:
    """Rows of train, and their part of the table and its labels."""
    import numpy as np

    rows = np.flatnonzero(_splits(sound.table) == "train")
    train = sound.table.take(rows)
    return rows, train, train.column("label").to_numpy()


def _splits(table: pa.Table) -> np.ndarray:
    import numpy as np

    return np.array(table.column("split").to_pylist())


def _with_splits(table: pa.Table, split: np.ndarray) -> pa.Table:
    import pyarrow as pa

    return table.set_column(table.column_names.index("split"), "split", pa.array(split.tolist(), pa.string()))
