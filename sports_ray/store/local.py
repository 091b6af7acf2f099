"""A folder on this machine, or on a network file system mounted here, as durable as the operating system allows."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sports_ray.errors import StorageError
from sports_ray.store.storage import Buffer, Data, Entry, checked_path, chunks_of, failures

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES}


class LocalStorage:
    """See `Storage`.

    Write: temporary file in the same folder, fsync, rename, fsync of the folder (and of each that had to be made).
    """

    def __init__(self, root: str, parent: LocalStorage | None = None) -> None:
        self._root = root
        self._parent = parent
        self._seen = os.path.isdir(root)

    @property
    def uri(self) -> str:
        return self._root

    @property
    def is_exclusive(self) -> bool:
        return True

    def child(self, name: str) -> LocalStorage:
        return LocalStorage(os.path.join(self._root, checked_path(name)), self)

    def write(self, path: str, data: Data) -> None:
        target = self._locate(path)
        with failures("write", target), self._temporary(target, data) as temporary:
            try:
                os.replace(temporary, target)
            except IsADirectoryError:
                # Whatever put it there, a folder in the place of a file would end the run for ever. `sweep` takes it away.
                os.replace(target, _temporary_name(target))
                os.replace(temporary, target)
            _sync_folder(os.path.dirname(target))

    def write_exclusive(self, path: str, data: Data) -> bool:
        """A hard link puts the whole file in place or fails. Where there are none: O_EXCL, which a crash can tear."""
        target = self._locate(path)
        with failures("create", target), self._temporary(target, data) as temporary:
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                return self._copy_exclusive(temporary, target)
            _sync_folder(os.path.dirname(target))
            return True

    def append(self, path: str, line: bytes) -> None:
        target = self._locate(path)
        with failures("append to", target):
            self._make(os.path.dirname(target))
            handle = os.open(target, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                size = os.fstat(handle).st_size
                torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
                _write_all(handle, (b"\n" if torn else b"") + line.rstrip(b"\n") + b"\n")
            finally:
                os.close(handle)

    def appended(self, path: str) -> bytes:
        return bytes(self.find(path) or b"")

    def read(self, path: str) -> bytearray:
        target = self._locate(path)
        with failures("read", target), open(target, "rb", buffering=0) as file:
            content = bytearray(os.fstat(file.fileno()).st_size)
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
            if isinstance(error.__cause__, FileNotFoundError) and self._present():
                return None
            raise

    def list(self, folder: str = "") -> list[Entry]:
        target = self._locate(folder) if folder else self._root
        with failures("list", target):
            try:
                with os.scandir(target) as found:
                    return sorted(entry for item in found if (entry := _entry(item)))
            except FileNotFoundError:
                if self._present():
                    return []
                raise

    def exists(self, path: str) -> bool:
        target = self._locate(path)
        with failures("look for", target):
            try:
                os.lstat(target)  # a link that leads nowhere is there too
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def delete(self, path: str) -> None:
        target = self._locate(path)
        with failures("delete", target):
            try:
                if stat.S_ISDIR(os.lstat(target).st_mode):
                    shutil.rmtree(target, onerror=_raise_unless_gone)
                else:
                    os.unlink(target)
                _sync_folder(os.path.dirname(target))
            except FileNotFoundError:
                return

    def _locate(self, path: str) -> str:
        return os.path.join(self._root, checked_path(path))

    def _present(self) -> bool:
        """Whether a missing file is only missing, and not the whole storage unmounted or moved after it was there."""
        return os.path.isdir(self._root) or (not self._seen and (self._parent is None or self._parent._present()))

    @contextmanager
    def _temporary(self, target: str, data: Data) -> Iterator[str]:
        self._make(os.path.dirname(target))
        temporary = _temporary_name(target)
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                for chunk in chunks_of(data):
                    _write_all(handle, chunk)
                # An fsync that failed is never tried again on the same file: the kernel may have dropped the pages.
                os.fsync(handle)
            finally:
                os.close(handle)
            yield temporary
        finally:
            with suppress(OSError):
                os.unlink(temporary)

    def _copy_exclusive(self, temporary: str, target: str) -> bool:
        try:
            handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            return False
        try:
            with open(temporary, "rb") as source:
                _write_all(handle, source.read())
            os.fsync(handle)
        finally:
            os.close(handle)
        _sync_folder(os.path.dirname(target))
        return True

    def _make(self, folder: str) -> None:
        missing = []
        while not os.path.isdir(folder):
            # A root that was there and is gone is a lost storage; a new one in its place would fill another disk.
            if len(folder) <= len(self._root) and not self._present():
                raise FileNotFoundError(errno.ENOENT, "the storage has vanished", self._root)
            missing.append(folder)
            folder = os.path.dirname(folder)
        for folder in reversed(missing):
            with suppress(FileExistsError):
                os.mkdir(folder)
            _sync_folder(os.path.dirname(folder))
        self._seen = True


def _temporary_name(target: str) -> str:
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name}.{secrets.token_hex(8)}.tmp")


def _write_all(handle: int, chunk: Buffer) -> None:
    view = memoryview(chunk).cast("B")
    while len(view):
        view = view[os.write(handle, view) :]


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:  # some network file systems sync folders by themselves and say EINVAL
            raise
    finally:
        os.close(handle)


def _entry(item: os.DirEntry[str]) -> Entry | None:
    try:
        is_dir = item.is_dir(follow_symlinks=False)
        return Entry(item.name, is_dir, 0 if is_dir else item.stat(follow_symlinks=False).st_size)
    except FileNotFoundError:  # deleted while the folder was read
        return None


def _raise_unless_gone(_function: object, _path: str, info: tuple[type, BaseException, object]) -> None:
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]
