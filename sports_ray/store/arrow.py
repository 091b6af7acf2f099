"""Object stores (s3://, gs://) through pyarrow: a put makes the whole object appear, so there is nothing to rename."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from sports_ray.errors import ConfigError, StorageError
from sports_ray.store.storage import Buffer, Data, Entry, checked_path, chunks_of, failures, storage_error

_OBJECT_STORES = ("s3", "gcs")
_TIMEOUTS = {"connect_timeout": 5.0, "request_timeout": 10.0}
"""Seconds to reach an S3 endpoint, and without a byte from it; pyarrow makes three tries of each request."""
_GCS_SECONDS = "60"
"""How long a request to gs:// is tried; the library's own limit is 15 minutes."""
_ONE_PUT = 4 << 20
"""Bytes up to which an object is put in one request."""
_SETTLE_SECONDS = 0.5
"""How long an exclusive write waits before it looks who has won: longer than a put takes, as a rule."""

MERGED_FROM = 100
"""Objects of a log from which on a merge is worth its requests."""
_MERGED_AT_ONCE = 2000
"""Objects that one merge takes, the oldest first: a session's start waits for it, some 20 s at 30 ms a request."""
_AT_A_TIME = 16
"""Requests side by side when many small objects are read or deleted."""
_LISTINGS = 5
"""How often a log is listed anew because objects have been merged between listing and reading."""


def open_objects(uri: str) -> ArrowStorage:
    """Storage at an s3:// or gs:// address, as `pyarrow.fs.FileSystem.from_uri` understands it.

    In the query of s3:// besides: connect_timeout and request_timeout, in seconds (5 and 10 if not given). An endpoint
    that is dead fails a call with a StorageError after three tries: 2 s if it refuses, some 20 s if it cannot be reached,
    35 s (55 s for a write) if it does not answer. One that answers a byte a second is waited for."""
    import pyarrow
    from pyarrow.fs import FileSystem, S3FileSystem

    parts = urlsplit(uri)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
    query = dict(parse_qsl(parts.query))
    timeouts = {name: _seconds(name, query.pop(name, default)) for name, default in _TIMEOUTS.items()}
    if parts.scheme == "gs":
        query = {"retry_limit_seconds": _GCS_SECONDS} | query
    try:
        filesystem, base = FileSystem.from_uri(urlunsplit(parts._replace(query=urlencode(query))))
        small = filesystem
        if isinstance(filesystem, S3FileSystem):
            # Its address knows no timeouts; what it is pickled by are the arguments that it was made with.
            _, (settings,) = filesystem.__reduce__()
            # A delayed open puts a small object at once, but a large one whose upload cannot begin it leaves empty.
            filesystem = S3FileSystem(**settings | timeouts | {"allow_delayed_open": False})
            small = S3FileSystem(**settings | timeouts | {"allow_delayed_open": True})
    except (pyarrow.ArrowException, ValueError) as error:
        raise ConfigError("store.root", got=shown, want=f"an address pyarrow accepts ({error})") from error
    except OSError as error:
        raise storage_error("open", shown, error) from error
    return ArrowStorage(filesystem, base, shown, small)


def _gather(chunks: Iterator[Buffer], limit: int) -> bytes:
    """Chunks from the front, up to the first that passes `limit` bytes, or all."""
    found = bytearray()
    while len(found) <= limit and (chunk := next(chunks, None)) is not None:
        found += chunk
    return bytes(found)


def _merged(lines: Mapping[str, bytes]) -> bytes:
    """Lines by the name of the object of each -> the bytes of one object, each line behind its name."""
    return b"".join(name.encode() + b" " + lines[name].rstrip(b"\n") + b"\n" for name in sorted(lines))


def _lines_of(objects: Mapping[str, bytes | bytearray]) -> dict[str, bytes]:
    """Objects of a log -> lines by the name that each was appended under; a merged object has a point in its own name."""
    lines = {}
    for name, content in objects.items():
        if "." not in name:
            lines[name] = bytes(content)
            continue
        for entry in bytes(content).split(b"\n")[:-1]:
            part, _, line = entry.partition(b" ")
            lines.setdefault(part.decode(errors="replace"), line + b"\n")
    return lines


def _seconds(name: str, value: object) -> float:
    with suppress(ValueError):
        seconds = float(str(value))
        if 0 < seconds < float("inf"):
            return seconds
    raise ConfigError("store.root", got=f"{name}={value}", want="seconds, more than 0")


class ArrowStorage:
    """Any pyarrow filesystem whose output streams put an object at once when they are closed.

    pyarrow offers no conditional put, so `write_exclusive` looks, writes, waits half a second and reads back. Of two
    writers in the same moment the later one wins, and the earlier one sees it, unless the later one's put took longer
    than the wait: then both believe that they have won. No history hangs on it: attempts take random numbers
    (fence.py), and of two drivers that both hold a lease the one whose name is not in it stops at its next beat.
    """

    def __init__(self, filesystem: Any, base: str, uri: str, small: Any = None) -> None:
        """`small`: the same filesystem, for objects that are put in one request."""
        self.filesystem, self.base = filesystem, base.rstrip("/")
        self._fs, self._small = filesystem, small or filesystem
        self._uri = uri
        inner = getattr(filesystem, "base_fs", filesystem)
        self._makes_folders = inner.type_name not in _OBJECT_STORES

    @property
    def uri(self) -> str:
        return self._uri

    @property
    def is_exclusive(self) -> bool:
        return False

    def child(self, name: str) -> ArrowStorage:
        return ArrowStorage(self._fs, self._locate(name), f"{self._uri}/{name}", self._small)

    def write(self, path: str, data: Data) -> None:
        """See `Storage`. If a source of more than 4 MB raises on the way the object is gone, old and new: no upload
        can be given up. Parts of uploads that failed are the bucket's to expire (AbortIncompleteMultipartUpload)."""
        target = self._locate(path)
        chunks = iter(chunks_of(data))
        first = _gather(chunks, _ONE_PUT)
        with self._failures("write", path):
            if self._makes_folders:
                self._fs.create_dir(target.rpartition("/")[0], recursive=True)
            if len(first) <= _ONE_PUT:
                with self._small.open_output_stream(target) as stream:
                    stream.write(first)
                return
            stream = self._fs.open_output_stream(target)
            stream.write(first)
            while (chunk := self._next(chunks, stream, target)) is not None:
                stream.write(chunk)
            stream.close()

    def _next(self, chunks: Iterator[Buffer], stream: Any, target: str) -> Buffer | None:
        """The next chunk, None at the end. If the source raises, the short object that closing leaves is taken away."""
        try:
            return next(chunks, None)
        except BaseException:
            with suppress(Exception):
                stream.close()
            with suppress(Exception):
                self._fs.delete_file(target)
            raise

    def write_exclusive(self, path: str, data: Data) -> bool:
        content = b"".join(chunks_of(data))
        if self.exists(path):
            return False
        self.write(path, content)
        time.sleep(_SETTLE_SECONDS)
        return self.find(path) == content

    def append(self, path: str, line: bytes) -> None:
        """One object for each line: objects cannot grow."""
        self.write(f"{path}.d/{time.time_ns():020d}-{secrets.token_hex(4)}", line.rstrip(b"\n") + b"\n")

    def appended(self, path: str) -> bytes:
        lines = _lines_of(self._log(f"{path}.d"))
        return b"".join(lines[name] for name in sorted(lines))

    def merge(self, path: str) -> int:
        """Put the lines that `append` added into one object, as far as it is worth it; how many objects it took.

        Each line keeps the name that it was appended under, and `appended` takes the same name once: so none is lost and
        none comes twice wherever a merge breaks off, and whoever else merges or appends meanwhile. What is deleted is
        what was read whole, after the new object has been read back; its name is new, so nobody writes over it."""
        folder = f"{path}.d"
        if len(self._names(folder)) < MERGED_FROM:
            return 0
        objects = self._log(folder, _MERGED_AT_ONCE)
        # Behind all that it holds: a listing that no longer meets a line on its way still meets it here.
        merged = f"{folder}/{max(objects)}.{secrets.token_hex(4)}"
        content = _merged(_lines_of(objects))
        self.write(merged, content)
        if self.read(merged) != content:
            raise StorageError(f"cannot merge {self._uri}/{folder}", got="other bytes than were written")
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            list(pool.map(self.delete, (f"{folder}/{name}" for name in objects)))
        return len(objects)

    def _names(self, folder: str) -> list[str]:
        return [entry.name for entry in self.list(folder) if not entry.is_dir]

    def _log(self, folder: str, limit: int | None = None) -> dict[str, bytearray]:
        """The oldest objects of a log by name. Where some are gone when they are read, what they were merged into is read."""
        found: dict[str, bytearray] = {}
        for _ in range(_LISTINGS):
            new = [name for name in self._names(folder)[:limit] if name not in found]
            with ThreadPoolExecutor(_AT_A_TIME) as pool:
                contents = list(pool.map(self.find, (f"{folder}/{name}" for name in new)))
            found |= {name: content for name, content in zip(new, contents, strict=True) if content is not None}
            if None not in contents:
                break
        return found

    def read(self, path: str) -> bytearray:
        with self._failures("read", path), self._fs.open_input_file(self._locate(path)) as file:
            content = bytearray(file.size())
            view, done = memoryview(content), 0
            while done < len(content) and (count := file.readinto(view[done:])):
                done += count
            view.release()
            del content[done:]
            return content

    def find(self, path: str) -> bytearray | None:
        try:
            return self.read(path)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def list(self, folder: str = "") -> list[Entry]:
        from pyarrow.fs import FileSelector, FileType

        target = self._locate(folder) if folder else self.base
        with self._failures("list", folder):
            found = self._fs.get_file_info(FileSelector(target, allow_not_found=True))
            return sorted(Entry(i.base_name, i.type == FileType.Directory, i.size or 0) for i in found if i.base_name)

    def exists(self, path: str) -> bool:
        from pyarrow.fs import FileType

        with self._failures("look for", path):
            return bool(self._fs.get_file_info(self._locate(path)).type != FileType.NotFound)

    def delete(self, path: str) -> None:
        from pyarrow.fs import FileType

        target = self._locate(path)
        with self._failures("delete", path), suppress(FileNotFoundError):
            kind = self._fs.get_file_info(target).type
            if kind == FileType.Directory:
                self._fs.delete_dir(target)
            elif kind != FileType.NotFound:
                self._fs.delete_file(target)

    def _failures(self, action: str, path: str) -> AbstractContextManager[None]:
        import pyarrow

        return failures(action, f"{self._uri}/{path}", pyarrow.ArrowException)

    def _locate(self, path: str) -> str:
        return f"{self.base}/{checked_path(path)}" if self.base else checked_path(path)
