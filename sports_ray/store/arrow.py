"""Object stores (s3://, gs://) through pyarrow: a put makes the whole object appear, so there is nothing to rename."""

from __future__ import annotations

import secrets
import time
from contextlib import AbstractContextManager, suppress
from typing import Any
from urllib.parse import urlsplit

from sports_ray.errors import ConfigError, StorageError
from sports_ray.store.storage import Data, Entry, checked_path, chunks_of, failures, storage_error

_OBJECT_STORES = ("s3", "gcs")


def open_objects(uri: str) -> ArrowStorage:
    """Storage at an s3:// or gs:// address, as `pyarrow.fs.FileSystem.from_uri` understands it."""
    import pyarrow
    from pyarrow.fs import FileSystem

    shown = f"{urlsplit(uri).scheme}://{urlsplit(uri).netloc.rpartition('@')[2]}{urlsplit(uri).path}".rstrip("/")
    try:
        filesystem, base = FileSystem.from_uri(uri)
    except (pyarrow.ArrowException, ValueError) as error:
        raise ConfigError("store.root", got=shown, want=f"an address pyarrow accepts ({error})") from error
    except OSError as error:
        raise storage_error("open", shown, error) from error
    return ArrowStorage(filesystem, base, shown)


class ArrowStorage:
    """Any pyarrow filesystem whose output streams put an object at once when they are closed.

    `write_exclusive` is best effort: pyarrow offers no conditional put, so it looks, writes, and reads back. Of two
    writers in the same moment the last one wins, and the first may believe that it has won too: do not start two
    drivers on one run of an object store in the same second.
    """

    def __init__(self, filesystem: Any, base: str, uri: str) -> None:
        self._fs, self._base, self._uri = filesystem, base.rstrip("/"), uri
        inner = getattr(filesystem, "base_fs", filesystem)
        self._makes_folders = inner.type_name not in _OBJECT_STORES

    @property
    def uri(self) -> str:
        return self._uri

    def child(self, name: str) -> ArrowStorage:
        return ArrowStorage(self._fs, self._locate(name), f"{self._uri}/{name}")

    def write(self, path: str, data: Data) -> None:
        target = self._locate(path)
        with self._failures("write", path):
            if self._makes_folders:
                self._fs.create_dir(target.rpartition("/")[0], recursive=True)
            stream = self._fs.open_output_stream(target)
            try:
                for chunk in chunks_of(data):
                    stream.write(chunk)
            except BaseException:
                # pyarrow cannot abandon an upload: closing it would leave a short object, which is taken away again.
                with suppress(Exception):
                    stream.close()
                with suppress(Exception):
                    self._fs.delete_file(target)
                raise
            stream.close()

    def write_exclusive(self, path: str, data: Data) -> bool:
        content = b"".join(chunks_of(data))
        if self.exists(path):
            return False
        self.write(path, content)
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

        target = self._locate(folder) if folder else self._base
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
        return f"{self._base}/{checked_path(path)}" if self._base else checked_path(path)
