"""Commits: checkpoints that are trusted only if every byte of them verifies.

    checkpoints/step-00001200-a0003/*.safetensors    written first
    checkpoints/step-00001200-a0003/COMMIT.json      written last: size and sha256 of each file, state, own sha256
    checkpoints/begun-a0003-00001200                 left by each attempt's first commit: proof that there was one

The folder's name holds the attempt (fencing token) too: a writer that was believed dead writes beside the new one's
files, never over them, wherever it was stopped and whenever it wakes.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sports_ray.errors import ConfigError, RunError, StorageError
from sports_ray.store.codec import Encoded, decode, parse, seal, unseal
from sports_ray.store.fence import Fence, check, is_orphan, read_fences
from sports_ray.store.storage import Buffer, Storage, is_of_one_file, may_pass

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
RECORD = "COMMIT.json"
_FORMAT = 1
_KEEP_BYTES = 1 << 30
"""Verified bytes that a commit keeps in memory for `load`, so that small checkpoints are read once."""
_PAUSES = (0.3, 1.0, 3.0)
"""Seconds before a commit is read again that could not be read: another would be taken, and its last steps lost."""
_NAME = re.compile(r"step-(\d{8,})-a(\d{4,})")
_BEGUN = re.compile(r"begun-a(\d{4,})-(\d{8,})")
_PART = re.compile(r"[A-Za-z0-9_-]+")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class CommitId(NamedTuple):
    """Optimiser step and attempt; they order commits, newest last."""

    step: int
    token: int

    @property
    def folder(self) -> str:
        return f"{FOLDER}/step-{self.step:08d}-a{self.token:04d}"


@dataclass(frozen=True, slots=True)
class CommitInfo:
    """What was written; `size` in bytes of tensors."""

    step: int
    token: int
    folder: str
    size: int


@dataclass(slots=True)
class Commit:
    """A commit that has verified. `state` is the JSON given to `write_commit` (NaN came back as None)."""

    step: int
    token: int
    state: dict[str, Any]
    files: dict[str, dict[str, Any]]
    _storage: Storage = field(repr=False)
    _kept: dict[str, bytearray] = field(default_factory=dict, repr=False)

    def load(self, name: str) -> dict[str, Tensor]:
        """Tensors of one file, on the CPU, from the very bytes whose sha256 was checked. RunError if damaged since."""
        if name not in self.files:
            raise RunError(f"checkpoint of step {self.step}", got=f"no file {name}", want=", ".join(sorted(self.files)))
        content = self._kept.pop(name, None)
        if content is None:
            content = _verified(self._storage, CommitId(self.step, self.token).folder, self.files[name])
        return decode(content)


def write_commit(
    storage: Storage, step: int, token: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, object]
) -> CommitInfo:
    """Commit tensors (file name without suffix -> name -> tensor) and JSON state at a step, durably.

    A commit of the same step and attempt is replaced in one move; files that are there already and verify are kept.
    Raises FencedError when a newer attempt exists, StorageError when the storage fails; then the old state stands, or
    in rare cases the new one. A commit that this returned from is what any later attempt goes on from: the check after
    the record tells that no attempt had begun that may have looked for commits before it was there.

    A try that finds no room leaves none of its files: a newer commit, which takes its place, would not fit beside them.
    """
    check(storage, token)
    try:
        return _write(storage, CommitId(step, token), tensors, state)
    except StorageError as error:
        # Only then: a store that is away would let each deletion wait for its time limit, and a pause waits for them.
        if getattr(error.__cause__, "errno", None) in _NO_ROOM:
            _delete_unfinished(storage, token)
        raise


def _write(
    storage: Storage, commit: CommitId, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, object]
) -> CommitInfo:
    step, token, folder = *commit, commit.folder
    standing = _standing(storage, folder)
    files = {name: _put(storage, folder, name, Encoded(part), standing) for name, part in tensors.items()}
    record = {"format": _FORMAT, "step": step, "token": token, "files": files, "state": state}
    check(storage, token)
    storage.write(f"{folder}/{RECORD}", seal(record))
    if not any(found[0] == token for found in _begun(storage)):
        storage.write(f"{FOLDER}/begun-a{token:04d}-{step:08d}", b"\n")
    if standing is not None:
        delete_unnamed(storage, folder, files)
    check(storage, token)
    return CommitInfo(step, token, folder, sum(entry["size"] for entry in files.values()))


def read_commit(storage: Storage, step: int, token: int | None = None) -> Commit:
    """The commit of a step, after every size and hash of it was checked; without `token` the newest that verifies.

    RunError says what is damaged or, of a storage that is there, cannot be read; StorageError: it fails as a whole;
    ConfigError: a newer version wrote it."""
    if token is None:
        fences = read_fences(storage)
        found = [other for other in list_commits(storage) if other.step == step and not is_orphan(*other, fences)]
        for other in reversed(found[1:]):
            with suppress(RunError):
                return read_commit(storage, *other)
        token = found[0].token if found else 0
    for pause in (*_PAUSES, None):
        try:
            return _read(storage, step, token)
        except StorageError as error:
            if not is_of_one_file(error):
                raise
            if pause is None or not may_pass(error):
                raise RunError(f"checkpoint of step {step}", got=str(error), want="files that can be read") from error
            log.warning("commit.read_again step=%d token=%d reason=%s", step, token, error)
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _read(storage: Storage, step: int, token: int) -> Commit:
    where, folder = f"checkpoint of step {step}", CommitId(step, token).folder
    content = storage.find(f"{folder}/{RECORD}")
    if content is None:
        raise RunError(where, got=f"no {RECORD}", want="a commit that was finished")
    record = unseal(content, f"{where}: {RECORD}")
    if record.get("format") != _FORMAT:
        written = record.get("format")
        raise ConfigError(where, got=f"format {written}", want=f"format {_FORMAT}", cure="upgrade sports-ray")
    if (record["step"], record["token"]) != (step, token):
        raise RunError(where, got=f"the record of step {record['step']}, attempt {record['token']}", want="its own")
    commit = Commit(step, token, record["state"], record["files"], storage)
    kept = 0
    for name, entry in commit.files.items():
        part = _verified(storage, folder, entry)
        kept += len(part)
        if kept <= _KEEP_BYTES:
            commit._kept[name] = part
    return commit


def newest(storage: Storage, fences: Iterable[Fence] | None = None) -> tuple[Commit | None, list[str]]:
    """The newest commit that verifies, or None if the run has never committed; and what was passed over, with reasons.

    Raises RunError if there are commits and none verifies: a run never starts afresh in silence. StorageError if the
    storage fails as a whole (then nothing is said about the commits)."""
    fences = read_fences(storage) if fences is None else list(fences)
    passed: list[str] = []
    seen: set[CommitId] = set()
    damaged = 0
    # Looks again: while this reads, the run's own writer may have committed, and pruned what was listed.
    while unseen := sorted(set(list_commits(storage)) - seen):
        found = unseen[-1]
        seen.add(found)
        if is_orphan(*found, fences):
            reason = "written by an attempt that had been replaced"
        else:
            try:
                return read_commit(storage, *found), passed
            except RunError as error:
                reason = str(error)
                damaged += bool(isinstance(error.__cause__, StorageError) or is_finished(storage, found))
        passed.append(f"step {found.step} (attempt {found.token}): {reason}")
        log.warning("commit.passed_over step=%d token=%d reason=%s", *found, reason)
    promised = any(not is_orphan(step, token, fences) for token, step in _begun(storage))
    if damaged or promised or any(fence.from_step for fence in fences):
        raise RunError(
            f"no checkpoint of {storage.uri} can be trusted",
            got="; ".join(passed) or "no checkpoint at all, though there were some",
            want="one that verifies",
            cure=f"restore a copy; or start over: delete {storage.uri}, or choose another name with --run",
        )
    return None, passed


def list_commits(storage: Storage) -> list[CommitId]:
    """Every checkpoint folder, finished or not, verified or not, oldest first."""
    matches = (_NAME.fullmatch(entry.name) for entry in storage.list(FOLDER) if entry.is_dir)
    return sorted(CommitId(int(match[1]), int(match[2])) for match in matches if match)


def is_finished(storage: Storage, commit: CommitId) -> bool:
    """Whether a commit has its record; that it verifies is for `read_commit` to say."""
    return any(entry.name == RECORD for entry in storage.list(commit.folder))


def delete_commit(storage: Storage, commit: CommitId) -> None:
    """Take a commit away, its record first, so that a half-deleted folder is never trusted."""
    storage.delete(f"{commit.folder}/{RECORD}")
    storage.delete(commit.folder)


def _delete_unfinished(storage: Storage, token: int) -> None:
    """Delete what an attempt's own tries have left, as far as that can be: nobody reads a folder without a record."""
    with suppress(StorageError):
        for found in list_commits(storage):
            if found.token == token and not is_finished(storage, found):
                storage.delete(found.folder)
                log.info("commit.cleared step=%d token=%d", *found)


def delete_unnamed(storage: Storage, folder: str, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Delete what lies in a commit's folder and is not named by its record."""
    named = {entry["path"] for entry in files.values()} | {RECORD}
    for entry in storage.list(folder):
        if entry.name not in named:
            storage.delete(f"{folder}/{entry.name}")


def delete_orphans(storage: Storage, fences: Iterable[Fence]) -> list[str]:
    """Delete what no reader will use: unfinished and fenced-off commits, and what interrupted writes left in others.

    What a newer attempt than the newest of `fences` writes is left alone, even if it is unfinished."""
    fences, gone = list(fences), []
    newest_token = max((fence.token for fence in fences), default=0)
    for found in list_commits(storage):
        if found.token > newest_token:
            continue
        if is_orphan(*found, fences) or not is_finished(storage, found):
            delete_commit(storage, found)
            gone.append(found.folder)
            continue
        if record := _standing(storage, found.folder):
            delete_unnamed(storage, found.folder, record)
    begun = _begun(storage)
    proof = max((mark for mark in begun if not is_orphan(mark[1], mark[0], fences)), default=None)
    for token, step in begun:
        if (token, step) != proof:
            storage.delete(f"{FOLDER}/begun-a{token:04d}-{step:08d}")
    return gone


def _begun(storage: Storage) -> list[tuple[int, int]]:
    matches = (_BEGUN.fullmatch(entry.name) for entry in storage.list(FOLDER))
    return [(int(match[1]), int(match[2])) for match in matches if match]


def _standing(storage: Storage, folder: str) -> dict[str, dict[str, Any]] | None:
    """Files named by the record that is there already; {} if it is damaged, None if there is none."""
    try:
        content = storage.find(f"{folder}/{RECORD}")
        return None if content is None else dict(unseal(content, RECORD)["files"])
    except (RunError, StorageError) as error:
        if isinstance(error, StorageError) and not is_of_one_file(error):
            raise
        return {}


def _put(
    storage: Storage, folder: str, name: str, encoded: Encoded, standing: dict[str, dict[str, Any]] | None
) -> dict[str, Any]:
    if not _PART.fullmatch(name):
        raise RunError("file of a checkpoint", got=repr(name), want="letters, digits, _ and -, without suffix")
    path = f"{name}.safetensors"
    if standing is not None:
        # The record that stands must stay true until the new one replaces it: other bytes go under another name.
        digest = encoded.sha256()
        if (old := standing.get(name)) and old["sha256"] == digest:
            with suppress(RunError, StorageError):
                _verified(storage, folder, old)
                return old
        path = f"{name}-{digest[:16]}.safetensors"
    hashing = _Hashing(encoded)
    storage.write(f"{folder}/{path}", hashing)
    return {"path": path, "size": encoded.size, "sha256": hashing.digest.hexdigest()}


class _Hashing:
    """Chunks on their way to the storage, hashed as they pass."""

    def __init__(self, chunks: Iterable[Buffer]) -> None:
        self._chunks = chunks
        self.digest = hashlib.sha256()

    def __iter__(self) -> Iterator[Buffer]:
        for chunk in self._chunks:
            self.digest.update(chunk)
            yield chunk


def _verified(storage: Storage, folder: str, entry: Mapping[str, Any]) -> bytearray:
    path = f"{folder}/{entry['path']}"
    content = storage.find(path)
    if content is None:
        raise RunError(path, got="no such file", want=f"{entry['size']} bytes")
    if len(content) != entry["size"]:
        raise RunError(path, got=f"{len(content)} bytes", want=f"{entry['size']} bytes")
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise RunError(path, got="other bytes than were written", want=f"sha256 {entry['sha256'][:12]}…")
    parse(content)
    return content
