"""Where a run lives: a folder of files, reached through one small protocol.

Local paths go through `os` calls (local.py), so that each write can be made durable and each failure keeps its errno;
s3:// and gs:// go through pyarrow (arrow.py). A write is all or nothing: a reader sees the old bytes or the new ones.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from sports_ray.errors import ConfigError, RunError, StorageError

Buffer = bytes | bytearray | memoryview
Data = Buffer | Iterable[Buffer]

_CURES = {
    errno.ENOSPC: "free some space, or lower store.keep",
    errno.EDQUOT: "free some of the quota, or lower store.keep",
    errno.EFBIG: "raise the limit on file size (ulimit -f)",
    errno.EROFS: "mount the storage writable, or choose another with --store",
    errno.EACCES: "give this user access, or choose another storage with --store",
    errno.EPERM: "give this user access, or choose another storage with --store",
    errno.ENOENT: "bring the storage back; the run goes on from its last commit",
    errno.ESTALE: "bring the storage back; the run goes on from its last commit",
}
_ONE_FILE = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EIO, errno.EBADMSG,
    getattr(errno, "EUCLEAN", errno.EIO), errno.EINVAL,
}  # fmt: skip


class Entry(NamedTuple):
    """One name in a folder; `size` in bytes, 0 for a folder."""

    name: str
    is_dir: bool
    size: int


class Storage(Protocol):
    """Files below one root. Paths are relative, with "/".

    A path that leaves the root raises RunError; what the storage cannot do raises StorageError."""

    @property
    def uri(self) -> str:
        """The root as a person would write it, without credentials."""

    @property
    def is_exclusive(self) -> bool:
        """Whether `write_exclusive` can be relied on when two call it in the same moment."""

    def write(self, path: str, data: Data) -> None:
        """Put a file in place, whole and durable, over any older one; folders are made as needed."""

    def write_exclusive(self, path: str, data: Data) -> bool:
        """Like `write`, but False, and nothing written, if the file is there already."""

    def append(self, path: str, line: bytes) -> None:
        """Add a line to a log. Not durable: a crash may lose or tear the last lines."""

    def appended(self, path: str) -> bytes:
        """All lines that `append` added, b"" if none."""

    def read(self, path: str) -> bytearray:
        """A file's bytes, in memory that the caller owns."""

    def find(self, path: str) -> bytearray | None:
        """A file's bytes, or None if there is no such file."""

    def list(self, folder: str = "") -> list[Entry]:
        """What a folder holds, by name; empty if there is no such folder."""

    def exists(self, path: str) -> bool: ...

    def delete(self, path: str) -> None:
        """Remove a file, or a folder with all in it; nothing happens if it is not there."""

    def child(self, name: str) -> Storage:
        """The storage whose root is a folder of this one."""


def open_storage(uri: str) -> Storage:
    """Storage for a path, file://, s3:// or gs:// address; its query may hold pyarrow's options (endpoint_override)."""
    from sports_ray.store.local import LocalStorage

    scheme, colon, _ = uri.partition("://")
    if not colon:
        return LocalStorage(os.path.abspath(os.path.expanduser(uri)))
    if scheme == "file":
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise ConfigError("store.root", got=uri, want="file:///an/absolute/path", cure="add the third slash")
        return LocalStorage(unquote(parts.path))
    if scheme in ("s3", "gs"):
        from sports_ray.store.arrow import open_objects

        return open_objects(uri)
    raise ConfigError("store.root", got=uri, want="a folder, file://, s3:// or gs://")


def below(store: str, name: str) -> str:
    """Path or address of a folder of a store; options of an address stay behind it."""
    root, question, options = store.partition("?") if "://" in store else (store, "", "")
    return f"{root.rstrip('/')}/{name}{question}{options}"


def parted(folder: str) -> tuple[str, str]:
    """The inverse of `below`: (store, name); the store is "" where there is only a name."""
    path, question, options = folder.partition("?") if "://" in folder else (folder, "", "")
    root, _, name = path.rstrip("/").rpartition("/")
    return f"{root}{question}{options}" if root else "", name


def absolute(place: str) -> str:
    """An address as it is; a path from the root of this machine's files: other processes have other current folders."""
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))


def without_keys(text: str) -> str:
    """Words to be shown or kept: the addresses in them lose a key and secret (s3://KEY:SECRET@bucket)."""
    return re.sub(r"://[^/?\s]*@", "://", text)


def checked_path(path: str) -> str:
    """The path itself, if it is relative, normal and stays below its root; else RunError."""
    if not path or "\0" in path or "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise RunError("path in a run", got=repr(path), want="a relative path without '.', '..' or empty parts")
    return path


def storage_error(action: str, where: str, error: Exception) -> StorageError:
    """StorageError that names the action, the file and the operating system's reason; raise it `from` the cause."""
    number = getattr(error, "errno", None)
    name = errno.errorcode.get(number, "") if number else ""
    reason = f"{name} ({os.strerror(number)})" if number else str(error)
    return StorageError(f"cannot {action} {where}", got=reason, cure=_CURES.get(number or 0, "check the storage"))


def is_of_one_file(error: StorageError) -> bool:
    """Whether a failed read tells of one damaged or forbidden file, and not of a storage that is away as a whole."""
    return getattr(error.__cause__, "errno", None) in _ONE_FILE


def may_pass(error: StorageError) -> bool:
    """Whether a file that cannot be read now may be sound: EIO is also what a network's disk says at a time limit."""
    return getattr(error.__cause__, "errno", None) == errno.EIO


def is_temporary(name: str) -> bool:
    """Whether a file name is that of a write that was under way."""
    return name.startswith(".") and name.endswith(".tmp")


def chunks_of(data: Data) -> Iterable[Buffer]:
    return (data,) if isinstance(data, (bytes, bytearray, memoryview)) else data


@contextmanager
def failures(action: str, where: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn an OSError (or one of `kinds`) into a StorageError."""
    caught: tuple[type[Exception], ...] = (OSError, *kinds)
    try:
        yield
    except caught as error:
        raise storage_error(action, where, error) from error
