"""Packs from s3:// and gs://, kept on each machine: fetched once for all of its processes, verified, and bounded.

CACHE/lock               held while room is made: who holds it may delete packs
CACHE/KEY/               a pack; KEY is the start of the sha256 of its PACK.json, so a pack that was replaced is another one
CACHE/KEY/in-use         held, shared, by each process that reads the pack; its time is that of the newest such
CACHE/KEY/fetching       held while files of the pack are fetched
CACHE/KEY/reserved       how many bytes the pack may come to take
CACHE/KEY/shards/...     only whole files get these names; one that is verified bears VERIFIED as its time

Locks are the kernel's (flock): they end with the process that holds them, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from sports_ray.data.pack import NAME, FileEntry, PackRecord
from sports_ray.errors import DataError, StorageError
from sports_ray.remembered import home
from sports_ray.store.local import LocalStorage
from sports_ray.store.storage import Storage, is_temporary, open_storage

log = logging.getLogger(__name__)

GIB = 1 << 30
VERIFIED = 946_684_800_000_000_000
"""Time (ns) of a file whose bytes were verified; whoever changes the file changes its time too."""
STREAMS = 4
"""Shards that are fetched at the same time; each is held in memory until it is verified."""
TRIES = 3
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cached_pack(uri: str, folder: str, limit_gb: float) -> tuple[PackRecord, CachedPlace]:
    """The pack at an address and its place in the cache `folder` (empty: the user's), which holds `limit_gb` at most
    (-1: nine tenths of what its disk has room for). Fetches the index, and no shard.

    Raises DataError if there is no pack or no room, StorageError if the address or the cache cannot be used."""
    storage = open_storage(uri)
    content = storage.find(NAME)
    if content is None:
        cure = "`sports-ray data pack DIR OUT` makes one; copy all of it there, PACK.json last"
        raise DataError(f"{storage.uri}: no pack", got=f"no {NAME}", want="a finished pack", cure=cure)
    record = PackRecord.from_bytes(content, f"{storage.uri}/{NAME}")
    key = hashlib.sha256(content).hexdigest()[:24]
    return record, CachedPlace(storage, record, Cache(folder, limit_gb), key)


class Cache:
    """The folder of all packs of a machine."""

    def __init__(self, folder: str, limit_gb: float) -> None:
        self.folder = Path(folder).expanduser().absolute() if folder else home() / "packs"
        self._limit_gb = limit_gb

    def enter(self, key: str) -> Path:
        """The folder of a pack, which nobody deletes while this process lives."""
        place = self.folder / key
        with usable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with usable(self.folder), locked(self.folder / "lock"):
            place.mkdir(exist_ok=True)
            handle = os.open(place / "in-use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(handle, fcntl.LOCK_SH)  # kept until the process ends
            os.utime(place / "in-use")
        return place

    def reserve(self, key: str, size: int) -> None:
        """Makes room for a pack of `size` bytes: the least recently used go, if nobody uses them. DataError if that is
        not enough."""
        place = self.folder / key
        with usable(self.folder), locked(self.folder / "lock"):
            (place / "reserved").write_text(str(size))
            others = sorted((path for path in self.folder.iterdir() if path.is_dir() and path != place), key=_last_use)
            while lacking := self._lacking(place, size, others):
                gone = next((other for other in others if _delete_unused(other)), None)
                if gone is None:
                    raise DataError(
                        f"the cache of packs, {self.folder}, has no room",
                        got=f"a pack of {_words(size)}, {_words(lacking)} too large",
                        want=f"room beside {len(others)} packs in use" if others else "a larger cache",
                        cure="another disk with --set data.pack_cache=DIR, or more with --set data.pack_cache_gb=N",
                    )
                log.info("pack cache: evicted=%s", gone.name)
                others.remove(gone)

    def _lacking(self, place: Path, size: int, others: list[Path]) -> int:
        """Bytes by which a pack is too large for the limit or the disk; 0: it fits."""
        free, there = shutil.disk_usage(self.folder).free, _bytes_in(place)
        held = sum(_reserved(other) for other in others)
        limit = int(self._limit_gb * GIB)
        if self._limit_gb < 0:
            limit = int(0.9 * (free + there + sum(_bytes_in(other) for other in others)))
        return max(0, held + size - limit, size - there - free)


class CachedPlace:
    """One pack on this machine. See `pack.Place`."""

    def __init__(self, storage: Storage, record: PackRecord, cache: Cache, key: str) -> None:
        self._storage, self._record, self._cache, self._key = storage, record, cache, key
        self._folder = cache.enter(key)
        self._local = LocalStorage(str(self._folder))

    def file(self, entry: FileEntry) -> Path:
        path = self._folder / entry.name
        if not _is_verified(path, entry):
            if entry == self._record.index:
                self._bring([entry], entry.size)
            else:
                self._bring([entry], self._record.size)
        return path

    def fetch(self) -> None:
        entries = [self._record.index, *self._record.shards]
        if not all(_is_verified(self._folder / entry.name, entry) for entry in entries):
            self._bring(entries, self._record.size)

    def _bring(self, entries: list[FileEntry], reserve: int) -> None:
        """Fetches what of these is not there; one process at a time, the others wait and find it."""
        with usable(self._folder), locked(self._folder / "fetching"):
            missing = [entry for entry in entries if not self._verify(entry)]
            if not missing:
                return
            self._sweep()
            self._cache.reserve(self._key, max(reserve, _reserved(self._folder)))
            size = sum(entry.size for entry in missing)
            log.info("pack: fetching %d of %d files, %s, from %s", len(missing), len(entries), size, self._storage.uri)
            with ThreadPoolExecutor(min(STREAMS, len(missing))) as pool:
                jobs = [pool.submit(self._fetch, entry) for entry in missing]
                try:
                    for job in jobs:
                        job.result()
                finally:
                    for job in jobs:
                        job.cancel()
            log.info("pack: fetched")

    def _verify(self, entry: FileEntry) -> bool:
        """Whether a file is there and whole; one whose time is not VERIFIED is read again."""
        path = self._folder / entry.name
        if _is_verified(path, entry):
            return True
        try:
            with path.open("rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
        except FileNotFoundError:
            return False
        if whole:
            os.utime(path, ns=(VERIFIED, VERIFIED))
        else:
            log.warning("pack: %s is damaged, fetching it again", path)
        return whole

    def _fetch(self, entry: FileEntry) -> None:
        found = ""
        for _ in range(TRIES):
            try:
                content = self._storage.read(entry.name)
            except StorageError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                where = f"{self._storage.uri}/{entry.name}"
                raise DataError(where, got="no such object", want="a whole pack", cure="upload it again") from None
            found = hashlib.sha256(content).hexdigest()
            if found == entry.sha256:
                self._keep(entry, content)
                return
            log.warning("pack: %s/%s arrived damaged: sha256=%s", self._storage.uri, entry.name, found)
        raise StorageError(
            f"{self._storage.uri}/{entry.name} arrived damaged {TRIES} times",
            got=f"sha256 {found[:12]}",
            want=entry.sha256[:12],
            cure="upload the pack again",
        )

    def _keep(self, entry: FileEntry, content: bytearray) -> None:
        try:
            self._local.write(entry.name, content)
            os.utime(self._folder / entry.name, ns=(VERIFIED, VERIFIED))
        except StorageError as error:
            if isinstance(error.__cause__, OSError):
                raise _unusable(self._folder, error.__cause__) from error
            raise

    def _sweep(self) -> None:
        """Deletes what a process that was killed was writing."""
        for folder in (self._folder, self._folder / "shards"):
            for path in folder.glob(".*.tmp"):
                if is_temporary(path.name):
                    path.unlink(missing_ok=True)


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Turns what the operating system refuses into a DataError that says what to do."""
    try:
        yield
    except OSError as error:
        raise _unusable(folder, error) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file, alone, for the block; waits for it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _delete_unused(place: Path) -> bool:
    """Deletes a pack, unless a process uses it."""
    try:
        handle = os.open(place / "in-use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(place)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _is_verified(path: Path, entry: FileEntry) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    return stat.st_size == entry.size and stat.st_mtime_ns == VERIFIED


def _last_use(place: Path) -> int:
    with suppress(OSError):
        return (place / "in-use").stat().st_mtime_ns
    return 0


def _reserved(place: Path) -> int:
    with suppress(OSError, ValueError):
        return int((place / "reserved").read_text())
    return 0


def _bytes_in(place: Path) -> int:
    sizes = 0
    for path in place.rglob("*"):
        with suppress(OSError):
            sizes += path.stat().st_size
    return sizes


def _unusable(where: Path, error: OSError) -> DataError:
    full = error.errno in _FULL
    return DataError(
        f"the cache of packs, {where}, {'is full' if full else 'cannot be used'}",
        got=f"{errno.errorcode.get(error.errno or 0, '')} ({error.strerror})",
        want="a folder of this machine that can be written",
        cure=("free some space, or " if full else "") + "another disk with --set data.pack_cache=DIR",
    )


def _words(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e7 else f"{size:,} bytes"
