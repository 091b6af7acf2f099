"""Where the bytes of photographs come from: a folder, or a pack of them. All others know a root and paths below it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sports_ray.data.inspect import FORMAT_OF
from sports_ray.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from sports_ray.config import DataConfig

REMOTE = ("s3://", "gs://")
"""Addresses at which a pack may lie."""
_JUNK = {"thumbs.db", "desktop.ini", "__macosx"}
_SHOWN = 5


class State(NamedTuple):
    """What tells whether a file is the one that was read before."""

    size: int
    """Bytes; -1: there is no such file."""
    mtime_ns: int
    inode: int


GONE = State(-1, 0, 0)


class Files(Protocol):
    """Photographs below a root; paths are relative to it, with '/', or absolute where a CSV row lies outside."""

    @property
    def root(self) -> str:
        """A folder, or the address of a pack."""

    def read(self, path: str) -> bytes:
        """All bytes of a file. Raises OSError if it cannot be read, DataError for a damaged pack."""

    def state(self, path: str) -> State: ...

    def paths(self) -> list[str]:
        """All that is called an image, in an order of its own that does not change; hidden files are left out.

        Raises DataError where some of it cannot be listed."""

    def facts(self, paths: pa.ChunkedArray, max_pixels: int | None = None) -> pa.Table | None:
        """Columns of `inspect.Facts` where they are known without reading the files; None: inspect them.

        max_pixels: the limit that they have to hold for; None: any."""

    def fetch(self) -> None:
        """Brings all bytes to this machine before they are needed at random."""


def open_files(root: str, config: DataConfig | None = None) -> Files:
    """The photographs of a root, as a manifest names it. `config` tells where packs from afar are kept, by default in the
    user's cache. Raises DataError for a pack that is damaged or not finished, StorageError if it cannot be reached."""
    if is_pack(root):
        from sports_ray.data.pack import open_pack

        return open_pack(root, config)
    if is_cifar(root):
        from sports_ray.data.cifar import open_cifar

        return open_cifar(root)
    return Folder(root)


def is_pack(source: str | Path) -> bool:
    """Whether a source is a pack, finished or not. At an address there can be nothing else."""
    if str(source).startswith(REMOTE):
        return True
    path = Path(source).expanduser()
    return (path / "PACK.json").is_file() or (path / "parts" / "00000.arrow").is_file()


def is_cifar(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is CIFAR-10 as its authors give it, in Python's files or in binary ones."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("batches.meta", "batches.meta.txt"))


def called_image(name: str) -> bool:
    """Whether a file's name ends as those of images do."""
    return os.path.splitext(name)[1].lower() in FORMAT_OF


def walk(folder: str, above: tuple[str, ...] = ()) -> Iterator[os.DirEntry[str]]:
    """Files below a folder, but no hidden ones; links are followed, but never round in a circle.

    Raises DataError for a folder that cannot be read."""
    here = (*above, os.path.realpath(folder))
    for entry in entries_of(folder):
        if not is_folder(entry):
            yield entry
        elif os.path.realpath(entry.path) not in here:
            yield from walk(entry.path, here)


def entries_of(folder: str) -> list[os.DirEntry[str]]:
    """What lies right in a folder, but nothing hidden. Raises DataError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not _hidden(entry.name)]
    except OSError as error:
        cure = "give this user access to it, or take it away"
        raise DataError("a folder that cannot be read", got=f"{folder} ({error.strerror})", cure=cure) from None


def is_folder(entry: os.DirEntry[str]) -> bool | None:
    """Whether it is a folder, or a link to one; None: the system cannot tell, as of a link to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return None


def read_unknown(files: Files, path: str) -> bytes:
    """As `files.read`, of a file that nothing is known of yet. Raises OSError also for what is no regular file nor a link
    to one: a pipe makes its reader wait for ever, and a device may have no end.

    Training reads what a manifest lists, all of it looked at in this way before, and asks no second time."""
    if isinstance(files, Folder):
        mode = os.stat(os.path.join(files.root, path)).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a folder refuses to be read, in words of its own
            raise OSError("a pipe or device")
    return files.read(path)


def is_text(name: str) -> bool:
    """Whether a name's bytes are UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


class Folder:
    """Files of a disk. See `Files`."""

    def __init__(self, root: str) -> None:
        self._root = root

    @property
    def root(self) -> str:
        return self._root

    def read(self, path: str) -> bytes:
        with open(os.path.join(self._root, path), "rb", buffering=0) as file:
            return file.read()

    def state(self, path: str) -> State:
        try:
            found = os.stat(os.path.join(self._root, path))
        except (OSError, ValueError):
            return GONE
        return State(found.st_size, found.st_mtime_ns, found.st_ino)

    def paths(self) -> list[str]:
        """See `Files`. Raises DataError for a folder that cannot be read, and for names that are not UTF-8."""
        images = (entry.path for entry in walk(self._root) if called_image(entry.name))
        found = sorted(os.path.relpath(path, self._root).replace(os.sep, "/") for path in images)
        if odd := [repr(path) for path in found if not is_text(path)]:
            more = f" and {len(odd) - _SHOWN:,} more" if len(odd) > _SHOWN else ""
            raise DataError("file names that are not UTF-8", got=", ".join(odd[:_SHOWN]) + more, cure="rename them")
        return found

    def facts(self, paths: pa.ChunkedArray, max_pixels: int | None = None) -> pa.Table | None:
        return None

    def fetch(self) -> None:
        return
