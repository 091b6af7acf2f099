"""The folder of one run: what lies where, and how it is written so that a crash at any moment leaves it readable.

run.json, run.copy.json      the run's record, sealed, twice: damaged, it is mended from the copy
manifest.arrow               the photographs
settled.json, its copy       what was chosen once: precision, threads; likewise
metrics.jsonl                one line an evaluation, without clocks; always written whole
timings.jsonl                what holds clocks; appended, each line with a crc32 of itself
checkpoints/ fences/ lease*  see attempt.py, commit.py, fence.py, lease.py
weights/NAME.safetensors     with NAME.json beside it; see weights.py
stop.json                    a request to pause
"""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sports_ray.errors import RunError, StorageError
from sports_ray.store import weights
from sports_ray.store.arrow import ArrowStorage
from sports_ray.store.codec import canonical, seal, unseal
from sports_ray.store.commit import FOLDER as COMMITS
from sports_ray.store.commit import delete_commit, delete_orphans, is_finished, list_commits
from sports_ray.store.fence import is_orphan, read_fences
from sports_ray.store.local import LocalStorage
from sports_ray.store.storage import Storage, is_of_one_file, is_temporary, without_keys

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

MANIFEST = "manifest.arrow"
_RECORD, _SETTLED = "run.json", "settled.json"
_METRICS, _TIMINGS, _STOP = "metrics.jsonl", "timings.jsonl", "stop.json"
_RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}")


def recorded(settings: dict[str, Any]) -> dict[str, Any]:
    """A config's settings as records keep them: who reads them has found the store, and needs no key to it from there."""
    return {**settings, "store": {**settings["store"], "root": without_keys(settings["store"]["root"])}}


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
    return [
        name for name in names if {_RECORD, _copy_of(_RECORD), COMMITS} & {entry.name for entry in store.list(name)}
    ]


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
        self._write_twice(_RECORD, record)

    def read_record(self) -> dict[str, Any] | None:
        """The run's record, mended from its copy if need be; None if there is no run. RunError if both are damaged."""
        record = self._read_twice(_RECORD)
        if record is None and list_commits(self.storage):
            raise RunError(
                f"run {self.storage.uri}",
                got=f"checkpoints but no {_RECORD}",
                cure="restore a copy of it; or start over: delete the folder, or choose another name with --run",
            )
        return record

    def write_manifest(self, content: bytes) -> None:
        """Put the manifest in place, unless these very bytes are there: cheap enough to do at each start, as a mend."""
        with suppress(StorageError):
            if self.storage.find(MANIFEST) == content:
                return
        self.storage.write(MANIFEST, content)

    def read_manifest(self) -> bytearray:
        return self.storage.read(MANIFEST)

    def write_settled(self, choices: Mapping[str, object]) -> None:
        """Keep what was measured or chosen once for the whole run, such as the precision."""
        self._write_twice(_SETTLED, choices)

    def read_settled(self) -> dict[str, Any] | None:
        """What `write_settled` wrote last, mended like the record; None if nothing. RunError if both are damaged."""
        return self._read_twice(_SETTLED)

    def local_path(self, name: str) -> Path | None:
        """Path of a file or folder of the run on this machine; None where the store is not a local folder."""
        return Path(self.storage.uri) / name if isinstance(self.storage, LocalStorage) else None

    def write_metrics(self, history: Sequence[Mapping[str, object]]) -> None:
        """Replace metrics.jsonl by these lines: canonical JSON, so that equal histories have equal bytes."""
        self.storage.write(_METRICS, "".join(canonical(line) + "\n" for line in history).encode())

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines, as far as they are JSON objects; none if the file cannot be read. Commits hold the history sealed."""
        return _lines(self._readable(lambda: self.storage.find(_METRICS)))

    def append_timing(self, event: Mapping[str, object]) -> None:
        """Add an event to timings.jsonl. Never fails a run: an event that cannot be written is logged and lost."""
        try:
            self.storage.append(_TIMINGS, canonical({**event, "crc": _crc(event)}).encode())
        except StorageError as error:
            log.warning("timing.lost reason=%s", error)

    def read_timings(self) -> list[dict[str, Any]]:
        """The events so far; lines that a crash tore, or that were damaged, are left out."""
        lines = _lines(self._readable(lambda: self.storage.appended(_TIMINGS)))
        return [line for line in lines if line.pop("crc", None) == _crc(line)]

    def _merge_timings(self) -> None:
        """On an object store each event is an object: a long run would wait minutes for them at each start."""
        if isinstance(self.storage, ArrowStorage):
            try:
                log.info("timings.merged objects=%d", self.storage.merge(_TIMINGS))
            except StorageError as error:
                log.warning("timings.unmerged reason=%s", error)

    def request_stop(self, reason: str) -> None:
        """Ask whoever trains this run to commit and pause."""
        self.storage.write(_STOP, seal({"reason": reason}))

    def stop_requested(self) -> str | None:
        """Why the run is to pause; None if nobody asked."""
        try:
            content = self.storage.find(_STOP)
            if content is None:
                return None
            return str(unseal(content, _STOP)["reason"])
        except (RunError, StorageError, KeyError) as error:
            if isinstance(error, StorageError) and not is_of_one_file(error):
                raise
            return "unreadable request"

    def clear_stop(self) -> None:
        self.storage.delete(_STOP)

    def prune(self, keep: int, best_step: int | None, also: Collection[int] = ()) -> list[int]:
        """Delete the checkpoints that `retained` does not name, and return their steps.

        Fenced-off and unfinished ones do not count; unfinished ones go when a newer one is finished. Nothing of an
        attempt that began during the call is touched."""
        fences = read_fences(self.storage)
        mine = max((fence.token for fence in fences), default=0)
        commits = [f for f in list_commits(self.storage) if f.token <= mine and not is_orphan(*f, fences)]
        finished = {found.step: found for found in commits if is_finished(self.storage, found)}
        stay = {finished[step] for step in retained(finished, keep, best_step, also)}
        gone = [found for found in commits if found not in stay and found.step <= max(finished, default=-1)]
        for found in gone:
            delete_commit(self.storage, found)
        return [found.step for found in gone]

    def sweep(self) -> list[str]:
        """Delete what died half-written: temporary files, unfinished and fenced-off checkpoints. What was deleted.
        Besides, put the timings together.

        For the start of an attempt, after `begin_attempt` and before any writing of its own."""
        gone = delete_orphans(self.storage, read_fences(self.storage))
        for folder in ("", COMMITS, weights.FOLDER, "fences"):
            for entry in self.storage.list(folder):
                # The driver may be writing these two just now, in another process.
                if is_temporary(entry.name) and not entry.name.startswith((f".{_STOP}.", ".lease.json.")):
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    self.storage.delete(path)
                    gone.append(path)
        self._merge_timings()
        log.info("run.swept files=%d", len(gone))
        return gone

    def publish_weights(self, name: str, tensors: Mapping[str, Tensor], sidecar: Mapping[str, object]) -> str:
        """Write weights/NAME.safetensors and NAME.json; returns the sha256 of the weights. See weights.py."""
        return weights.publish(self.storage, name, tensors, sidecar)

    def read_weights(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and the sidecar that describes them. WeightsError if they are missing, damaged or not a pair."""
        return weights.read(self.storage, name)

    def describe_weights(self, name: str) -> dict[str, Any] | None:
        """The sidecar of published weights, without loading them; None if there are none, or not the whole pair."""
        return weights.describe(self.storage, name)

    def finished_epochs(self) -> int:
        """Epochs for which the run was trained to its end: both weights are there. 0 if it never was."""
        sidecars = [self.describe_weights(name) for name in ("last", "best")]
        return min(int(sidecar["epochs"]) if sidecar else 0 for sidecar in sidecars)

    def _readable(self, read: Callable[[], bytes | bytearray | None]) -> bytes | bytearray:
        try:
            return read() or b""
        except StorageError as error:
            if not is_of_one_file(error):
                raise
            log.warning("run.unreadable reason=%s", error)
            return b""

    def _write_twice(self, path: str, record: Mapping[str, object]) -> None:
        content = seal(record)
        self.storage.write(_copy_of(path), content)
        self.storage.write(path, content)

    def _read_twice(self, path: str) -> dict[str, Any] | None:
        """The record of the first file that is whole; from the copy it mends the other. None if there is neither."""
        damaged: RunError | StorageError | None = None
        for source in (path, _copy_of(path)):
            try:
                content = self.storage.find(source)
                if content is None:
                    continue
                record = unseal(content, f"{self.storage.uri}/{source}")
            except (RunError, StorageError) as error:
                damaged = damaged or error
                continue
            if source != path:
                log.warning("run.mended file=%s from=%s", path, source)
                with suppress(StorageError):
                    self.storage.write(path, content)
            return record
        if damaged:
            raise damaged
        return None


def _copy_of(path: str) -> str:
    return path.replace(".json", ".copy.json")


def _crc(event: Mapping[str, object]) -> str:
    return f"{zlib.crc32(canonical(event).encode()):08x}"


def _lines(content: bytes | bytearray) -> list[dict[str, Any]]:
    found = []
    for line in content.split(b"\n"):
        with suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict):
                found.append(value)
    return found
