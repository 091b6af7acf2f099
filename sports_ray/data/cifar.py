"""CIFAR-10 as photographs: `--data cifar-10-batches-py` (or -bin) works like a folder of train/ and test/, and can be packed.

Each photograph is given as a BMP file of its own, train/CLASS/data_batch_1-00042.bmp: the pixels of CIFAR-10 behind a header.
"""

from __future__ import annotations

import os
import re
import struct
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sports_ray.data.cifar_file import SIDE, Batch, read_binary_batch, read_class_names, read_python_batch
from sports_ray.data.files import GONE, State
from sports_ray.data.listing import Entry, Listing, table_of
from sports_ray.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

BATCHES = {**{f"data_batch_{number}": "train" for number in range(1, 6)}, "test_batch": "test"}
"""Split of each file; those of the binary version end in .bin."""
_ROW = 3 * SIDE
_HEADER = struct.pack("<2sIHHI", b"BM", 54 + SIDE * _ROW, 0, 0, 54) + struct.pack(
    "<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, 0, SIDE * _ROW, 2835, 2835, 0, 0
)
_PATH = re.compile(r"(train|test)/([^/]+)/(\w+)-(\d{5})\.bmp")


class Cifar:
    """The photographs of a folder of CIFAR-10. See `files.Files`."""

    def __init__(self, root: str) -> None:
        self._root = root

    @property
    def root(self) -> str:
        return self._root

    def read(self, path: str) -> bytes:
        place = self._place(path)
        if place is None:
            raise FileNotFoundError(2, "no such photograph", path)
        batch, row = place
        # From the lowest line to the highest, blue first.
        return (
            _HEADER + np.ascontiguousarray(self._batches[batch].pixels[row].transpose(1, 2, 0)[::-1, :, ::-1]).tobytes()
        )

    def state(self, path: str) -> State:
        place = self._place(path)
        if place is None:
            return GONE
        return State(len(_HEADER) + SIDE * _ROW, *self._states[place[0]])

    def facts(self, paths: pa.ChunkedArray, max_pixels: int | None = None) -> pa.Table | None:
        return None

    def fetch(self) -> None:
        """Reads all files: processes that are forked later share them."""
        self._batches  # noqa: B018

    def paths(self) -> list[str]:
        """All photographs, in the order of the files."""
        return [
            f"{BATCHES[name]}/{self._classes[label]}/{name}-{row:05d}.bmp"
            for name, batch in self._batches.items()
            for row, label in enumerate(batch.labels)
        ]

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        return read_class_names(Path(self._root))

    @cached_property
    def _batches(self) -> dict[str, Batch]:
        read = read_python_batch if _is_python(self._root) else read_binary_batch
        return {name: read(_file(self._root, name)) for name in BATCHES if _file(self._root, name).exists()}

    @cached_property
    def _states(self) -> dict[str, tuple[int, int]]:
        found = {name: _file(self._root, name).stat() for name in self._batches}
        return {name: (stat.st_mtime_ns, stat.st_ino) for name, stat in found.items()}

    def _place(self, path: str) -> tuple[str, int] | None:
        """File and row of a photograph; None if there is no such one."""
        match = _PATH.fullmatch(path)
        if match is None:
            return None
        split, label, name, row = match[1], match[2], match[3], int(match[4])
        batch = self._batches.get(name)
        if batch is None or BATCHES[name] != split or row >= len(batch.labels):
            return None
        return (name, row) if self._classes[batch.labels[row]] == label else None


def open_cifar(root: str) -> Cifar:
    """The photographs of a folder of CIFAR-10; all who ask share the pixels, until a file changes."""
    found = ((path, path.stat()) for path in (_file(root, name) for name in BATCHES) if path.exists())
    return _opened(root, tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in found))


@lru_cache(maxsize=1)
def _opened(root: str, _state: tuple[tuple[Path, int, int], ...]) -> Cifar:
    return Cifar(root)


def list_cifar(root: Path) -> Listing:
    """All photographs of a folder of CIFAR-10: data_batch_1 to 5 are train, test_batch is test.

    Raises DataError for files that are missing, damaged or no CIFAR-10, and for a pickle that wants code to be run."""
    files = open_cifar(str(root))
    paths = files.paths()
    splits = sorted({path.partition("/")[0] for path in paths}, reverse=True)
    if "train" not in splits:
        raise DataError(f"{root}: CIFAR-10", got="no data_batch_1 to 5", want="the files of one of its archives")
    entries = [Entry(path, path.split("/")[0], path.split("/")[1], *files.state(path)) for path in paths]
    return Listing(root, root, files, table_of(entries), {split: split for split in splits})


def _is_python(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, "batches.meta"))


def _file(folder: str, name: str) -> Path:
    return Path(folder) / (name if _is_python(folder) else f"{name}.bin")
