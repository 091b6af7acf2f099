"""The lease: one driver at a time on a run, the next one as soon as it is dead.

    lease.json               who owns the run: written once when it is taken, never by the beat
    lease/<id>.beat.json     the owner's beat, in a file of its own: who wakes up cannot beat over a successor
    lease/<id>.taken.json    who takes over from the owner <id>: created exclusively, so of two heirs one wins

Clocks of two hosts are never compared: on the owner's own host its process is looked for, from elsewhere the beat is
watched.
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from sports_ray.errors import FencedError, RunError, StorageError
from sports_ray.processes import process_start
from sports_ray.store.codec import seal, unseal
from sports_ray.store.storage import Storage, is_of_one_file, without_keys

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
WATCH_SECONDS = 20.0
"""How long a beat from another host must stand still before its owner counts as dead: four beats."""
_FILE = "lease.json"
_FOLDER = "lease"


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, told from any other: `place` is host, boot and pid namespace; `start` sees through a reused pid."""

    id: str
    host: str
    place: str
    pid: int
    start: str
    command: str
    since: float

    @classmethod
    def current(cls, command: str = "") -> Owner:
        pid = os.getpid()
        return cls(
            id=secrets.token_hex(8),
            host=socket.gethostname(),
            place=_place(),
            pid=pid,
            start=process_start(pid) or "",
            command=without_keys(command or shlex.join(sys.argv)),
            since=time.time(),
        )

    def has_ended(self) -> bool:
        """Whether it was a process of this host that runs no more; of another host's that cannot be said: False."""
        return self.place == _place() and process_start(self.pid) != self.start

    def record(self) -> bytes:
        return seal({"format": 1, "owner": {name: getattr(self, name) for name in self.__slots__}})


class Lease:
    """Held from `acquire` to `release` (or the end of its `with`), beating in a thread. Made by `acquire` only."""

    def __init__(self, storage: Storage, owner: Owner, beat_seconds: float) -> None:
        self._storage, self.owner, self._beat_seconds = storage, owner, beat_seconds
        self._beats = 0
        self._lost = False
        self._confirmed = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="lease", daemon=True)

    @classmethod
    def acquire(
        cls,
        storage: Storage,
        owner: Owner | None = None,
        beat_seconds: float = BEAT_SECONDS,
        watch_seconds: float = WATCH_SECONDS,
    ) -> Lease:
        """Take the run: at once if it is free or its owner is dead on this host, else after its beat stood still.

        Raises RunError naming host, pid and age if another driver lives, StorageError if the storage fails."""
        owner = owner or Owner.current()
        while True:
            holder = _holder(storage)
            if holder is None:
                taken = storage.write_exclusive(_FILE, owner.record())
            else:
                if _lives(storage, holder, watch_seconds):
                    raise _refusal(storage, holder)
                taken = _take_over(storage, holder, owner)
            if taken:
                break
        lease = cls(storage, owner, beat_seconds)
        lease._beat()
        lease._thread.start()
        return lease

    @property
    def id(self) -> str:
        return self.owner.id

    @property
    def lost(self) -> bool:
        """Whether another driver has taken the run, as far as the last beat saw."""
        return self._lost

    def check(self) -> None:
        """FencedError if the lease is lost. Looks again by itself when the last look is old.

        A storage that is away for the moment does not lose the lease."""
        if time.monotonic() - self._confirmed > 2 * self._beat_seconds:
            with suppress(StorageError):
                self._look()
        if self._lost:
            raise _taken(self._storage)

    def release(self) -> None:
        """Stop beating, and give the run free if it is still this driver's."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(StorageError):
            self._look()
            if not self._lost:
                self._storage.delete(_FILE)
            self._storage.delete(_beat_path(self.id))

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.release()

    def _keep_beating(self) -> None:
        while not self._lost and not self._stop.wait(self._beat_seconds):
            try:
                self._beat()
                self._look()
            except StorageError as error:
                log.warning("lease.beat_failed reason=%s", error)
        if self._lost:
            log.error("lease.lost id=%s", self.id)

    def _beat(self) -> None:
        self._beats += 1
        self._storage.write(_beat_path(self.id), seal({"beat": self._beats}))

    def _look(self) -> None:
        """See whose lease it is. One that is gone (a former owner woke up while it let go) is put back."""
        found = _read(self._storage, _FILE)
        if found is None:
            self._storage.write_exclusive(_FILE, self.owner.record())
            found = _read(self._storage, _FILE)
        self._lost = self._lost or (found is not None and found.id not in ("", self.id))
        self._confirmed = time.monotonic()


def check_holder(storage: Storage, lease_id: str) -> None:
    """FencedError if the run's lease is in another driver's hands than that of `lease_id`."""
    found = _read(storage, _FILE)
    if found is not None and found.id not in ("", lease_id):
        raise _taken(storage)


def holder(storage: Storage) -> Owner | None:
    """Who holds the run, alive or not; None if it is free."""
    return _holder(storage)


def is_held(storage: Storage) -> bool:
    """Whether a driver holds the run and, where it is one of this host, lives. Does not wait for another host's beat."""
    found = _holder(storage)
    return found is not None and not found.has_ended()


def _place() -> str:
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _read(storage: Storage, path: str) -> Owner | None:
    """Owner in a file; None if there is none; an owner without id if it is damaged."""
    try:
        content = storage.find(path)
        if content is None:
            return None
        fields: dict[str, Any] = unseal(content, path)["owner"]
        return Owner(**fields)
    except (RunError, StorageError, KeyError, TypeError) as error:
        if isinstance(error, StorageError) and not is_of_one_file(error):
            raise
        return Owner("", "an unknown host", "", 0, "", "", 0.0)


def _holder(storage: Storage) -> Owner | None:
    """The owner, or the last of those who were taking over from one another."""
    found = _read(storage, _FILE)
    while found is not None and found.id and (heir := _read(storage, _taken_path(found.id))):
        found = heir
    return found


def _lives(storage: Storage, holder: Owner, watch_seconds: float) -> bool:
    if holder.place and holder.place == _place():
        start = process_start(holder.pid)
        return start is not None and start == holder.start
    return _changes(storage, holder, watch_seconds)


def _changes(storage: Storage, holder: Owner, watch_seconds: float) -> bool:
    """Whether the lease or its beat changes within the time, by this host's clock alone."""
    log.info("lease.watch holder=%s host=%s seconds=%g", holder.id, holder.host, watch_seconds)
    paths = (_FILE, _beat_path(holder.id or "unknown"), _taken_path(holder.id or "unknown"))
    before = [_content(storage, path) for path in paths]
    end = time.monotonic() + watch_seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, max(watch_seconds / 40, 0.01)))
        if [_content(storage, path) for path in paths] != before:
            return True
    return False


def _content(storage: Storage, path: str) -> bytearray | None:
    """A file's bytes; empty if this one file cannot be read, None if there is none."""
    try:
        return storage.find(path)
    except StorageError as error:
        if not is_of_one_file(error):
            raise
        return bytearray()


def _take_over(storage: Storage, holder: Owner, owner: Owner) -> bool:
    marker = _taken_path(holder.id or "unknown")
    if not storage.write_exclusive(marker, owner.record()):
        if holder.id:
            return False
        storage.delete(marker)  # whoever was mending the damaged lease has died too: its marker has stood still as well
        return False
    # The holder may have been replaced between the look and the marker.
    current = _holder(storage)
    mine = current is not None and current.id == (owner.id if holder.id else "")
    if mine:
        storage.write(_FILE, owner.record())
        log.warning("lease.taken_over from=%s host=%s pid=%d", holder.id, holder.host, holder.pid)
    for entry in storage.list(_FOLDER) if mine else []:
        # Another heir may be writing the same marker just now. What is left of one that dies there goes the next time.
        if not entry.name.startswith(f".{marker.removeprefix(f'{_FOLDER}/')}."):
            storage.delete(f"{_FOLDER}/{entry.name}")
    if not mine:
        storage.delete(marker)
    return mine


def _refusal(storage: Storage, holder: Owner) -> RunError:
    age = f", since {max(0.0, time.time() - holder.since):.0f} s" if holder.place == _place() else ""
    return RunError(
        f"run {storage.uri} is in use",
        got=f"a driver that lives: host {holder.host}, pid {holder.pid}{age} ({holder.command})",
        want="one driver at a time",
        cure=f"wait for it, or stop it on {holder.host}: kill {holder.pid}" if holder.pid else "wait for it",
    )


def _taken(storage: Storage) -> FencedError:
    owner = _holder(storage)
    who = f"host {owner.host}, pid {owner.pid}" if owner else "another driver"
    return FencedError(
        f"run {storage.uri} has been taken over",
        got=f"{who} as its owner",
        cure="nothing to do: the other driver goes on; this one was silent for too long",
    )


def _beat_path(lease_id: str) -> str:
    return f"{_FOLDER}/{lease_id}.beat.json"


def _taken_path(lease_id: str) -> str:
    return f"{_FOLDER}/{lease_id}.taken.json"
