"""Fencing: a numbered file for each attempt at a run, so that whoever comes later can tell the past to be quiet.

An attempt reads the newest commit that verifies and then creates a number above all others, with that commit in it. So
the files form a line from the newest attempt back to the start: (attempt 9 from step 40 of attempt 7) -> (attempt 7
from step 10 of attempt 2) -> ... A commit that is not on this line is an orphan: its writer was believed dead and was
not, or lost a race for the run. Nobody reads it.

Where a file can be created exclusively the next number is taken. Where it cannot (object stores) a random one above is:
two who race take different numbers, the lower one is fenced off at its next `check`, and what it wrote is off the line.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sports_ray.errors import FencedError, RunError, StorageError
from sports_ray.store.codec import seal, unseal
from sports_ray.store.storage import Storage

log = logging.getLogger(__name__)

_FOLDER = "fences"
_KEPT = 8
"""Newest fence files to keep. Each repeats all earlier ones, so that one damaged file loses nothing."""
_STRIDE = 1_000_000
"""Range of the random step to a new number where creation is not exclusive: of so many races one is a tie."""


@dataclass(frozen=True, slots=True)
class Fence:
    """Attempt `token` went on from the commit of `from_step` by the attempt `from_token`; 0 and 0: from the start."""

    token: int
    from_step: int
    from_token: int = 0


def read_fences(storage: Storage) -> list[Fence]:
    """All fences, by token. A damaged file is passed over with a warning: later ones repeat it."""
    known: dict[int, Fence] = {}
    for token in sorted(_tokens(storage), reverse=True):
        if token in known:
            continue
        try:
            record = unseal(storage.read(_path(token)), f"fence {token}")
            known |= {int(earlier): Fence(int(earlier), *start) for earlier, start in record["earlier"].items()}
            known[token] = Fence(token, *record["from"])
        except (RunError, StorageError, KeyError, TypeError) as error:
            log.warning("fence.passed_over token=%d reason=%s", token, error)
    return [fence for _, fence in sorted(known.items())]


def is_orphan(step: int, token: int, fences: Iterable[Fence]) -> bool:
    """Whether a commit is off the line that leads from the newest attempt back to the start.

    An attempt newer than all known ones is on it: its fence is damaged, and nothing speaks against it."""
    known = {fence.token: fence for fence in fences}
    current = max(known, default=0)
    last = step  # of the attempt looked at, the last step that somebody went on from
    while token < current and current in known:
        last = min(last, known[current].from_step)
        current = known[current].from_token
        if token > current:
            return True
    return step > last


def new_token(storage: Storage, above: int) -> int:
    """A number for a new attempt, above `above` and above all given out so far."""
    stride = 1 if storage.is_exclusive else 1 + secrets.randbelow(_STRIDE)
    return max(above, last_token(storage)) + stride


def raise_fence(storage: Storage, fence: Fence, owner: Mapping[str, object]) -> bool:
    """Create the fence of an attempt; False if another one took the number first."""
    content = _record(storage, fence, owner)
    if not storage.is_exclusive:
        storage.write(_path(fence.token), content)
    elif not storage.write_exclusive(_path(fence.token), content):
        return False
    for old in sorted(_tokens(storage))[:-_KEPT]:
        storage.delete(_path(old))
    return True


def move_fence(storage: Storage, fence: Fence, owner: Mapping[str, object]) -> None:
    """Let an attempt that has not committed yet go on from another commit than it raised its fence with."""
    storage.write(_path(fence.token), _record(storage, fence, owner))


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


def withdraw(storage: Storage, token: int) -> None:
    """Take the fence of an attempt away that will not begin."""
    storage.delete(_path(token))


def _record(storage: Storage, fence: Fence, owner: Mapping[str, object]) -> bytes:
    """The fence's file."""
    others = (other for other in read_fences(storage) if other.token < fence.token)
    earlier = {f"{other.token:08d}": [other.from_step, other.from_token] for other in others}
    start = [fence.from_step, fence.from_token]
    return seal({"format": 1, "token": fence.token, "from": start, "owner": owner, "earlier": earlier})


def _tokens(storage: Storage) -> set[int]:
    stems = (entry.name.removesuffix(".json") for entry in storage.list(_FOLDER) if entry.name.endswith(".json"))
    return {int(stem) for stem in stems if stem.isascii() and stem.isdigit()}


def _path(token: int) -> str:
    return f"{_FOLDER}/{token:08d}.json"
