"""Object stores (s3://, gs://) through pyarrow: a put makes the whole object appear, so there is nothing to rename."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
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
        return b"".join(self.read(f"{path}.d/{entry.name}") for entry in self.list(f"{path}.d"))

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
