"""The store: what may be done in it, how fast it is made durable, and how much room there is."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from sports_ray.doctor.check import Check
from sports_ray.errors import SportsRayError, StorageError
from sports_ray.store.storage import Storage, open_storage

PROBE_BYTES = 16 * 2**20
SMALL_WRITES = 8
LEAST_SPEED = 20e6
"""Bytes a second made durable, below which a commit takes minutes rather than seconds."""
LEAST_ROOM = 2 * 2**30

_Environment = partial(Check, "environment")


def check_store(uri: str) -> Iterator[Check]:
    """Writes, reads, replaces and deletes a probe in a folder of its own, and times it. Leaves nothing behind.

    Raises ConfigError for an address that is none."""
    storage, made = open_storage(uri), _missing(uri)
    name = f".doctor-{secrets.token_hex(4)}"
    try:
        yield from _probe(storage.child(name))
    finally:
        try:
            storage.delete(name)
            if made is not None and not any(path.is_file() for path in made.rglob("*")):
                shutil.rmtree(made, ignore_errors=True)
        except StorageError:
            pass  # said by the probe already
    if (folder := _standing(uri)) is not None:
        yield _room(folder)


def _probe(storage: Storage) -> Iterator[Check]:
    what = f"rights in {storage.uri.rpartition('/')[0] or storage.uri}"
    try:
        problem = _use(storage)
        speed = _speed(storage)
    except SportsRayError as error:
        want = error.want or "to write, read, replace and delete"
        yield _Environment(what, f"{error.what} ({error.got})", "bad", want, error.cure or "another --store DIR")
        return
    if problem:
        yield _Environment(what, problem, "bad", "what was written last", "another --store DIR: this one loses writes")
        return
    told = "" if storage.is_exclusive else "; two drivers at once are told apart by time alone"
    yield _Environment(what, f"write, read, replace, list and delete work{told}")
    yield speed


def _use(storage: Storage) -> str:
    """Does what a run does with files; what of it had no effect, or ""."""
    storage.write("probe", b"first")
    if bytes(storage.read("probe")) != b"first":
        return "other bytes read than written"
    storage.write("probe", b"second")
    if bytes(storage.read("probe")) != b"second":
        return "the old bytes after they were replaced"
    if [entry.name for entry in storage.list()] != ["probe"]:
        return "a file that is there and not listed"
    if not storage.write_exclusive("once", b"1") or storage.write_exclusive("once", b"2"):
        return "a file made twice that may be made once"
    storage.delete("once")
    return "a file that was deleted and is still there" if storage.exists("once") else ""


def _speed(storage: Storage) -> Check:
    """Seconds of one large write and of small ones, until they are durable."""
    content = os.urandom(PROBE_BYTES)
    start = time.perf_counter()
    storage.write("large", content)
    rate = PROBE_BYTES / (time.perf_counter() - start)
    start = time.perf_counter()
    for number in range(SMALL_WRITES):
        storage.write(f"small-{number}", b"x")
    small = (time.perf_counter() - start) / SMALL_WRITES
    text = f"{rate / 1e6:,.0f} MB/s until durable, {1000 * small:.1f} ms a small file"
    if rate >= LEAST_SPEED:
        return _Environment("speed of the store", text)
    cure = (
        "a store on a faster disk (--store DIR); training goes on while it writes, but the last commit takes its time"
    )
    return _Environment("speed of the store", text, "look", f"{LEAST_SPEED / 1e6:.0f} MB/s", cure)


def _room(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:,.1f} GiB free"
    if free >= LEAST_ROOM:
        return _Environment("room in the store", text)
    cure = "free some space, or lower store.keep; convnext_large takes 3 GB a checkpoint"
    return _Environment("room in the store", text, "look", f"{LEAST_ROOM / 2**30:.0f} GiB", cure)


def _local(uri: str) -> Path | None:
    if uri.startswith("file://"):
        return Path(uri.removeprefix("file://").removeprefix("localhost"))
    return None if "://" in uri else Path(os.path.abspath(os.path.expanduser(uri)))


def _missing(uri: str) -> Path | None:
    """The topmost folder of a local store that is not there yet: the probe will make it."""
    path = _local(uri)
    if path is None or path.exists():
        return None
    return next((each for each in (*reversed(path.parents), path) if not each.exists()), None)


def _standing(uri: str) -> Path | None:
    """The store's folder or the nearest one above it that is there; None where the store is no local folder."""
    path = _local(uri)
    return next((each for each in (path, *path.parents) if each.is_dir()), None) if path else None
