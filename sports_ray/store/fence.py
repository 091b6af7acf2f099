"""Fencing: a numbered file for each attempt at a run, so that whoever comes later can tell the past to be quiet.

An attempt reads the newest commit that verifies (at `from_step`) and then creates the next number, exclusively. From
then on a commit of a lower number above `from_step` is an orphan: its writer was believed dead and was not. Nobody
reads it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sports_ray.errors import FencedError, RunError, StorageError
from sports_ray.store.codec import seal, unseal
from sports_ray.store.storage import Storage

log = logging.getLogger(__name__)

_FOLDER = "fences"
_KEPT = 8
"""Newest fence files to keep. Each repeats all earlier numbers, so that one damaged file loses nothing."""


@dataclass(frozen=True, slots=True)
class Fence:
    """Attempt `token` went on from step `from_step` (0: from the start)."""

    token: int
    from_step: int


def read_fences(storage: Storage) -> list[Fence]:
    """All fences, by token. A damaged file is passed over with a warning: later ones repeat it."""
    known: dict[int, int] = {}
    for token in sorted(_tokens(storage), reverse=True):
        if token in known:
            continue
        try:
            record = unseal(storage.read(_path(token)), f"fence {token}")
            known |= {int(earlier): step for earlier, step in record["earlier"].items()}
            known[token] = record["from_step"]
        except (RunError, StorageError) as error:
            log.warning("fence.passed_over token=%d reason=%s", token, error)
    return [Fence(token, step) for token, step in sorted(known.items())]


def is_orphan(step: int, token: int, fences: Iterable[Fence]) -> bool:
    """Whether a commit was written by an attempt that a later one had already replaced."""
    return any(fence.token > token and step > fence.from_step for fence in fences)


def raise_fence(storage: Storage, token: int, from_step: int, owner: Mapping[str, object]) -> bool:
    """Create the fence of an attempt; False if another one took the number first."""
    earlier = {f"{fence.token:08d}": fence.from_step for fence in read_fences(storage)}
    record = {"format": 1, "token": token, "from_step": from_step, "owner": owner, "earlier": earlier}
    if not storage.write_exclusive(_path(token), seal(record)):
        return False
    for old in _tokens(storage):
        if old <= token - _KEPT:
            storage.delete(_path(old))
    return True


def last_token(storage: Storage) -> int:
    """The highest number given out so far, damaged files included; 0 if none."""
    return max(_tokens(storage), default=0)


def check(storage: Storage, token: int) -> None:
    """Pass if `token` is the newest attempt. FencedError if not; StorageError if its own fence is gone."""
    tokens = _tokens(storage)
    newest = max(tokens, default=0)
    if newest > token:
        raise FencedError(
            f"attempt {token} at {storage.uri} has been replaced",
            got=f"attempt {newest}",
            cure="nothing to do: the newer process goes on with the run; end this one",
        )
    if token not in tokens:
        raise StorageError(f"cannot find fence {token} in {storage.uri}", cure="bring the storage back")


def _tokens(storage: Storage) -> set[int]:
    stems = (entry.name.removesuffix(".json") for entry in storage.list(_FOLDER) if entry.name.endswith(".json"))
    return {int(stem) for stem in stems if stem.isascii() and stem.isdigit()}


def _path(token: int) -> str:
    return f"{_FOLDER}/{token:08d}.json"
