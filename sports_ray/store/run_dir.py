"""The folder of one run: what lies where, and how it is written so that a crash at any moment leaves it readable.

run.json, run.copy.json      the run's record, sealed, twice: a damaged one is mended from the other
manifest.arrow               the photographs
settled.json                 what was chosen once: precision, threads
metrics.jsonl                one line an evaluation, without clocks; always written whole
timings.jsonl                what holds clocks; appended
checkpoints/ fences/ lease*  see commit.py, fence.py, lease.py
weights/NAME.safetensors     with NAME.json beside it, which holds its sha256
stop.json                    a request to pause
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sports_ray.errors import RunError, StorageError, WeightsError
from sports_ray.store.codec import Encoded, canonical, decode, seal, unseal
from sports_ray.store.commit import FOLDER as COMMITS
from sports_ray.store.commit import delete_commit, delete_orphans, is_finished, list_commits
from sports_ray.store.fence import is_orphan, read_fences
from sports_ray.store.local import LocalStorage
from sports_ray.store.storage import Storage, is_temporary

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

MANIFEST = "manifest.arrow"
_RECORD, _COPY = "run.json", "run.copy.json"
_SETTLED = "settled.json"
_METRICS, _TIMINGS, _STOP = "metrics.jsonl", "timings.jsonl", "stop.json"
_RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}")
_WEIGHTS_NAME = re.compile(r"[A-Za-z0-9_-]+")


def checked_run_name(name: str) -> str:
    """The name itself, if it can be a folder anywhere; else RunError."""
    if not _RUN_NAME.fullmatch(name):
        raise RunError(
            "name of the run",
            got=repr(name),
            want="1 to 120 letters, digits, '.', '_' or '-', the first a letter, digit or '_'",
            cure="choose another with --run",
        )
    return name


def list_runs(store: Storage) -> list[str]:
    """Names of the runs in a store, sorted; folders that are none are left out."""
    names = [entry.name for entry in store.list() if entry.is_dir and _RUN_NAME.fullmatch(entry.name)]
    return [name for name in names if {_RECORD, _COPY, COMMITS} & {entry.name for entry in store.list(name)}]


def retained(steps: Iterable[int], keep: int, best: int | None, also: Collection[int] = ()) -> set[int]:
    """The steps whose checkpoints stay: the newest `keep` (at least 1), the best, and those asked for by number."""
    steps = set(steps)
    return set(sorted(steps)[-max(1, keep) :]) | (steps & {*also, best if best is not None else -1})


class RunDir:
    """One run in a store; `storage` is rooted at the run's own folder."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    @classmethod
    def open(cls, store: Storage, name: str) -> RunDir:
        return cls(store.child(checked_run_name(name)))

    def create(self, record: Mapping[str, object]) -> None:
        """Write the record of a new run. RunError if there is one already."""
        if self.read_record() is not None:
            raise RunError(f"run {self.storage.uri}", got="a run that exists", cure="choose another name with --run")
        self.write_record(record)

    def write_record(self, record: Mapping[str, object]) -> None:
        """Replace the record, e.g. when the run is extended. The key "sha256" is the seal's own."""
        content = seal(record)
        self.storage.write(_COPY, content)
        self.storage.write(_RECORD, content)

    def read_record(self) -> dict[str, Any] | None:
        """The run's record, mended from its copy if need be; None if there is no run. RunError if both are damaged."""
        errors: list[RunError | StorageError] = []
        missing = 0
        for path in (_RECORD, _COPY):
            try:
                content = self.storage.find(path)
                if content is None:
                    missing += 1
                    continue
                record = unseal(content, f"{self.storage.uri}/{path}")
            except (RunError, StorageError) as error:
                errors.append(error)
                continue
            if path == _COPY:
                log.warning("run.mended file=%s from=%s", _RECORD, _COPY)
                with suppress(StorageError):
                    self.storage.write(_RECORD, content)
            return record
        if errors:
            raise errors[0]
        if list_commits(self.storage):
            raise RunError(
                f"run {self.storage.uri}",
                got=f"checkpoints but no {_RECORD}",
                cure="restore a copy of it; or start over: delete the folder, or choose another name with --run",
            )
        return None

    def write_manifest(self, content: bytes) -> None:
        self.storage.write(MANIFEST, content)

    def read_manifest(self) -> bytearray:
        return self.storage.read(MANIFEST)

    def write_settled(self, choices: Mapping[str, object]) -> None:
        """Keep what was measured or chosen once for the whole run, such as the precision."""
        self.storage.write(_SETTLED, seal(choices))

    def read_settled(self) -> dict[str, Any] | None:
        """What `write_settled` wrote last; None if nothing. RunError if it is damaged."""
        content = self.storage.find(_SETTLED)
        return None if content is None else unseal(content, f"{self.storage.uri}/{_SETTLED}")

    def local_path(self, name: str) -> Path | None:
        """Path of a file or folder of the run on this machine; None where the store is not a local folder."""
        return Path(self.storage.uri) / name if isinstance(self.storage, LocalStorage) else None

    def write_metrics(self, history: Sequence[Mapping[str, object]]) -> None:
        """Replace metrics.jsonl by these lines: canonical JSON, so that equal histories have equal bytes."""
        self.storage.write(_METRICS, "".join(canonical(line) + "\n" for line in history).encode())

    def read_metrics(self) -> list[dict[str, Any]]:
        return _lines(self.storage.find(_METRICS) or b"")

    def append_timing(self, event: Mapping[str, object]) -> None:
        """Add an event to timings.jsonl. Never fails a run: an event that cannot be written is logged and lost."""
        try:
            self.storage.append(_TIMINGS, canonical(event).encode())
        except StorageError as error:
            log.warning("timing.lost reason=%s", error)

    def read_timings(self) -> list[dict[str, Any]]:
        """The events so far; lines that a crash tore are left out."""
        return _lines(self.storage.appended(_TIMINGS))

    def request_stop(self, reason: str) -> None:
        """Ask whoever trains this run to commit and pause."""
        self.storage.write(_STOP, seal({"reason": reason}))

    def stop_requested(self) -> str | None:
        """Why the run is to pause; None if nobody asked."""
        content = self.storage.find(_STOP)
        if content is None:
            return None
        try:
            return str(unseal(content, _STOP)["reason"])
        except (RunError, KeyError):
            return "unreadable request"

    def clear_stop(self) -> None:
        self.storage.delete(_STOP)

    def prune(self, keep: int, best_step: int | None, also: Collection[int] = ()) -> list[int]:
        """Delete the checkpoints that `retained` does not name, and return their steps.

        Fenced-off and unfinished ones do not count; unfinished ones go when a newer one is finished."""
        fences = read_fences(self.storage)
        commits = [found for found in list_commits(self.storage) if not is_orphan(*found, fences)]
        finished = {found.step: found for found in commits if is_finished(self.storage, found)}
        stay = {finished[step] for step in retained(finished, keep, best_step, also)}
        gone = [found for found in commits if found not in stay and found.step <= max(finished, default=-1)]
        for found in gone:
            delete_commit(self.storage, found)
        return [found.step for found in gone]

    def sweep(self) -> list[str]:
        """Delete what died half-written: temporary files, unfinished and fenced-off checkpoints. What was deleted.

        For the start of an attempt, after `begin_attempt` and before any writing of its own."""
        gone = delete_orphans(self.storage, read_fences(self.storage))
        for folder in ("", COMMITS, "weights", "fences"):
            for entry in self.storage.list(folder):
                # The driver may be writing these two just now, in another process.
                if is_temporary(entry.name) and not entry.name.startswith((f".{_STOP}.", ".lease.json.")):
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    self.storage.delete(path)
                    gone.append(path)
        log.info("run.swept files=%d", len(gone))
        return gone

    def publish_weights(self, name: str, tensors: Mapping[str, Tensor], sidecar: Mapping[str, object]) -> str:
        """Write weights/NAME.safetensors and NAME.json; the sha256 of the weights.

        The sidecar goes first and names the old pair as `previous`; so at each moment it holds the hash of the file
        that is there, and `read_weights` knows which description fits."""
        path, beside = _weights_paths(name)
        encoded = Encoded(tensors)
        described = {**sidecar, "weights_sha256": encoded.sha256(), "weights_size": encoded.size}
        previous = self._read_sidecar(beside)
        if previous is not None:
            self.storage.write(beside, seal({**described, "previous": previous}))
        self.storage.write(path, encoded)
        self.storage.write(beside, seal(described))
        return str(described["weights_sha256"])

    def read_weights(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and the sidecar that describes them. WeightsError if they are missing, damaged or not a pair."""
        path, beside = _weights_paths(name)
        content, sidecar = self.storage.find(path), self._read_sidecar(beside)
        if content is None or sidecar is None:
            lacking = path if content is None else beside
            raise WeightsError(f"{self.storage.uri}/{lacking}", got="a missing or damaged file")
        digest = hashlib.sha256(content).hexdigest()
        previous = sidecar.pop("previous", None)
        for described in (sidecar, previous):
            if described and described.get("weights_sha256") == digest:
                return decode(content), described
        raise WeightsError(
            f"{self.storage.uri}/{path}",
            got="other bytes than its .json describes",
            want=f"sha256 {str(sidecar.get('weights_sha256'))[:12]}…",
            cure="run the training command again: it writes the weights from the checkpoint",
        )

    def describe_weights(self, name: str) -> dict[str, Any] | None:
        """The sidecar of published weights, without reading the weights; None if there are none."""
        return self._read_sidecar(_weights_paths(name)[1])

    def _read_sidecar(self, beside: str) -> dict[str, Any] | None:
        content = self.storage.find(beside)
        if content is None:
            return None
        try:
            return unseal(content, beside)
        except RunError as error:
            log.warning("weights.sidecar_damaged reason=%s", error)
            return None


def _weights_paths(name: str) -> tuple[str, str]:
    if not _WEIGHTS_NAME.fullmatch(name):
        raise WeightsError("name of the weights", got=repr(name), want="letters, digits, _ and -")
    return f"weights/{name}.safetensors", f"weights/{name}.json"


def _lines(content: bytes | bytearray) -> list[dict[str, Any]]:
    found = []
    for line in content.split(b"\n"):
        with suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict):
                found.append(value)
    return found
