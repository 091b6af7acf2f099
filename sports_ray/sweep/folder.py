"""The folder of a sweep: a store of its own for the trials' runs, and beside them

sweep.json           what the sweep is, sealed; written again for more samples, other resources, other places
manifest.arrow       the photographs, as all trials see them
decisions.jsonl      a line a decision, each with a crc32 of itself; always written whole, before anybody acts on it
leaderboard.*        csv and json; a function of the two above and of the runs
best-LABEL.toml      the best settings of each backbone, as a recipe
lease*               one driver at a time, as for a run
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from sports_ray.data.manifest import Manifest
from sports_ray.errors import FencedError, RunError, SportsRayError, StorageError, UserError
from sports_ray.store.codec import canonical, seal, unseal
from sports_ray.store.commit import RECORD, CommitId
from sports_ray.store.lease import Owner, holder
from sports_ray.store.run_dir import MANIFEST, RunDir, checked_run_name
from sports_ray.store.storage import Storage, below, is_temporary, open_storage
from sports_ray.sweep.patience import patiently
from sports_ray.sweep.spec import SweepSpec

log = logging.getLogger(__name__)

SWEEP, DECISIONS = "sweep.json", "decisions.jsonl"
Decision = dict[str, Any]


class SweepDir:
    """One sweep; `uri` is its folder, which holds its trials' runs."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.storage: Storage = open_storage(uri)

    @classmethod
    def open(cls, store: str, name: str) -> SweepDir:
        return cls(below(store, checked_run_name(name)))

    def read_spec(self) -> SweepSpec | None:
        """What the sweep is; None if there is none. RunError if its record is damaged."""
        content = self.storage.find(SWEEP)
        return None if content is None else SweepSpec.from_json(unseal(content, f"{self.storage.uri}/{SWEEP}"))

    def create(self, spec: SweepSpec, manifest: Manifest, command: Iterable[str]) -> None:
        """Writes what the sweep is, the photographs first: who finds sweep.json finds all."""
        self.storage.write(MANIFEST, manifest.to_bytes())
        self.storage.write(SWEEP, seal({**spec.to_json(), "command": list(command)}))

    def has_manifest(self, manifest: Manifest) -> bool:
        """Whether the photographs lie there as these very bytes; one that cannot be read counts as another."""
        with suppress(StorageError):
            return self.storage.find(MANIFEST) == manifest.to_bytes()
        return False

    def manifest(self) -> Manifest:
        return Manifest.from_bytes(self.storage.read(MANIFEST))

    def run_dir(self, trial: str) -> RunDir:
        return RunDir.open(self.storage, trial)

    def sweep_up(self) -> None:
        """Deletes what interrupted writes have left; the lease must be held."""
        for entry in self.storage.list():
            if is_temporary(entry.name) and not entry.name.startswith(".lease.json."):
                self.storage.delete(entry.name)

    def decisions(self) -> list[Decision]:
        """All that was decided so far, in order; damaged lines are left out, for the runs tell what they said."""
        found: list[Decision] = []
        for number, text in enumerate(bytes(self.storage.find(DECISIONS) or b"").splitlines(), 1):
            with suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict) and line.pop("crc", None) == _crc(line):
                    found.append(line)
                    continue
            log.warning("decision.damaged line=%d", number)
        return found

    def write_decisions(self, decisions: Iterable[Decision]) -> None:
        """Tried again for a while: what a training outlives must not end the sweep. FencedError if it is another's by then."""
        content = "".join(canonical({**one, "crc": _crc(one)}) + "\n" for one in decisions).encode()
        patiently(lambda: self.storage.write(DECISIONS, content), again=self._check_driver)

    def _check_driver(self) -> None:
        """FencedError if another process holds the sweep: while this one could not write, its beat stood still too."""
        found, mine = holder(self.storage), Owner.current()
        if found and found.id and (found.place, found.pid, found.start) != (mine.place, mine.pid, mine.start):
            raise FencedError(
                f"sweep {self.storage.uri} has been taken over",
                got=f"host {found.host}, pid {found.pid} as its owner",
                cure="nothing to do: the other driver goes on; this one was silent for too long",
            )

    def history(self, trial: str, sure: bool = True) -> list[dict[str, Any]]:
        """A trial's evaluations: those of its newest commit, which are what it goes on from; none without one.

        StorageError if that cannot be told now: the row of a trial that has ended is never made again. Not `sure`: a commit
        that cannot be read is passed over, as its run would."""
        with suppress(UserError):
            run_dir = self.run_dir(trial)
            commit = _newest(run_dir, sure)
            if commit is not None:
                state = unseal(run_dir.storage.read(f"{commit.folder}/{RECORD}"), RECORD)["state"]
                return list(state["history"])
        return []

    def step(self, trial: str) -> int:
        """The newest step of a trial that is safe; 0 without one."""
        with suppress(SportsRayError):
            commit = _newest(self.run_dir(trial))
            return commit.step if commit else 0
        return 0

    def finished_epochs(self, trial: str) -> int:
        """Epochs for which the trial was trained to its end, as far as its weights tell."""
        with suppress(SportsRayError):
            return self.run_dir(trial).finished_epochs()
        return 0

    def drop_weights(self, trial: str) -> None:
        """Deletes a finished trial's weights; `sports-ray resume` takes them from its checkpoints again."""
        storage = self.run_dir(trial).storage
        if storage.exists("weights"):
            storage.delete("weights")


def find_sweep(name: str, store: str) -> SweepDir | None:
    """A sweep by its name in `store`, or the path or address of its folder; None if there is none."""
    places = [name]
    if "/" not in name:
        with suppress(RunError):
            places.insert(0, below(store, checked_run_name(name)))
    for place in places:
        found = SweepDir(place)
        if found.storage.exists(SWEEP):
            return found
    return None


def _newest(run_dir: RunDir, sure: bool = False) -> CommitId | None:
    """The newest finished commit; its record and its files' sizes are right."""
    from sports_ray.engine.overview import newest_commit  # brings torch

    return newest_commit(run_dir, sure=sure)[0]


def _crc(line: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(canonical(line).encode()):08x}"
