"""What is known of a run from outside, without its tensors: whoever trains it now, how far it is, what deaths have cost.

Nothing here raises for what lies in a run's folder: a damaged or half-made run is a fact like others. `verify` reads
every byte; this reads records.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from sports_ray.engine.schedule import Schedule
from sports_ray.errors import SportsRayError, StorageError
from sports_ray.processes import process_start
from sports_ray.recipe import config_from_dict
from sports_ray.score.main_score import score_name, score_of
from sports_ray.store.codec import unseal
from sports_ray.store.commit import RECORD, CommitId, is_finished, list_commits
from sports_ray.store.fence import is_orphan, read_fences
from sports_ray.store.lease import holder, is_held
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import is_of_one_file

Facts = dict[str, Any]
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError)
"""What reading a record of another shape raises: it is sound JSON, and not what this version writes."""


def run_facts(run_dir: RunDir, name: str) -> Facts:
    """What is known of a run without reading its tensors; never raises for what lies in its folder."""
    facts: Facts = {"name": name, "where": run_dir.storage.uri}
    try:
        record = run_dir.read_record()
        if record is None:
            return {**facts, "state": "not started", "reason": "its record was not written yet"}
        return {**facts, **_known(run_dir, record)}
    except SportsRayError as error:
        return {**facts, "state": "damaged", "reason": str(error)}
    except _MALFORMED as error:
        reason = f"a record that this version cannot read ({type(error).__name__}: {error})"
        return {**facts, "state": "damaged", "reason": reason}


def _known(run_dir: RunDir, record: Mapping[str, Any]) -> Facts:
    config = config_from_dict(record["config"])
    images = record["data"].get("positions", record["data"]["train"])  # copies included
    schedule = Schedule.of(config, images, record["data"]["val"])
    history = [line for line in run_dir.read_metrics() if isinstance(score_of(line), (int, float)) and "epoch" in line]
    best = max(history, key=score_of, default=None)
    last, commits, reason = newest_commit(run_dir)
    run_dir.read_settled()  # a run does not go on without it: RunError if it is damaged
    facts = {
        "model": config.model.name,
        "step": last.step if last else 0,
        "total_steps": schedule.total_steps,
        "epochs": config.loop.epochs,
        "best": best and {"epoch": best["epoch"], f"val_{score_name(best)}": score_of(best)},
        "commit_age": commit_age(run_dir, last) if last else None,
        **session_facts(run_dir.read_timings()),
    }
    owner, done = _owner(run_dir), _epochs_done(run_dir) >= config.loop.epochs
    if owner:
        state = "training"
    elif done:
        state = "done"
    elif commits and last is None:
        state = "damaged"
    else:
        state = "paused" if last else "not started"
    command = f"sports-ray resume {run_dir.storage.uri}"
    if state == "damaged":
        command = f"sports-ray verify {run_dir.storage.uri}"
    return {
        "state": state, **({"reason": reason} if reason else {}), **facts, "by": owner,
        "command": None if state in ("done", "training") else command,
    }  # fmt: skip


def newest_commit(run_dir: RunDir, sure: bool = False) -> tuple[CommitId | None, int, str]:
    """(newest finished commit whose record and files' sizes are right, finished ones in all, what is wrong with newer).

    StorageError if the storage fails as a whole; `sure`: also where one record cannot be read, which may pass."""
    storage = run_dir.storage
    fences = read_fences(storage)
    commits = [one for one in list_commits(storage) if not is_orphan(*one, fences) and is_finished(storage, one)]
    wrong: list[str] = []
    for commit in reversed(commits):
        fault = _fault(run_dir, commit, sure)
        if not fault:
            return commit, len(commits), "; ".join(wrong)
        wrong.append(f"checkpoint of step {commit.step}: {fault}")
    if not commits and any(fence.from_step for fence in fences):
        return None, 1, "no checkpoint at all, though there were some"
    return None, len(commits), "; ".join(wrong)


def _fault(run_dir: RunDir, commit: CommitId, sure: bool) -> str:
    """What is wrong with a commit, as far as its record and the sizes of its files tell; "" if nothing is.

    StorageError as `newest_commit` has it."""
    try:
        record = unseal(run_dir.storage.read(f"{commit.folder}/{RECORD}"), RECORD)
        sizes = {entry.name: entry.size for entry in run_dir.storage.list(commit.folder)}
        bad = [entry["path"] for entry in record["files"].values() if sizes.get(entry["path"]) != entry["size"]]
        return f"{', '.join(bad)} missing or of another size" if bad else ""
    except StorageError as error:
        if sure or not is_of_one_file(error):
            raise
        return str(error)
    except SportsRayError as error:
        return str(error)
    except _MALFORMED:
        return f"{RECORD} of another shape"


def commit_age(run_dir: RunDir, commit: CommitId) -> float | None:
    """Seconds since a commit was finished, by this machine's clock; None where the store is no local folder."""
    path = run_dir.local_path(f"{commit.folder}/COMMIT.json")
    with suppress(OSError):
        return round(max(0.0, time.time() - path.stat().st_mtime), 1) if path else None
    return None


def _epochs_done(run_dir: RunDir) -> int:
    """Weights that are damaged count as not there: the command to go on writes them again."""
    with suppress(SportsRayError, *_MALFORMED):
        return run_dir.finished_epochs()
    return 0


def _owner(run_dir: RunDir) -> Facts | None:
    """Who trains the run now: host, pid, since when (Unix time), and whether that was seen or is only written there."""
    with suppress(StorageError):
        owner = holder(run_dir.storage)
        if owner is None or not is_held(run_dir.storage):
            return None
        seen = owner.host == socket.gethostname() and bool(owner.pid) and process_start(owner.pid) == owner.start
        return {"host": owner.host, "pid": owner.pid, "since": owner.since, "seen": seen}
    return None


def session_facts(events: Iterable[Mapping[str, Any]]) -> Facts:
    """Sums up timings.jsonl: sessions, seconds of those that ended by themselves, commits and their stalls, lost steps.

    A step is known to be lost when something was recorded after it and the next attempt started before it. What a
    killed process did since its last commit or evaluation is recorded nowhere: there were at least so many."""
    starts = commits = lost = reached = 0
    seconds = stall = 0.0
    for event in events:
        kind, step = event.get("kind"), event.get("step")
        step = step if isinstance(step, int) else 0
        if kind == "start":
            lost += max(0, reached - step)
            starts, reached = starts + 1, step
        reached = max(reached, step)
        if kind == "commit":
            commits, stall = commits + 1, stall + _number(event.get("stall"))
        elif kind == "end":
            seconds += _number(event.get("seconds"))
    return {
        "sessions": starts, "seconds": round(seconds, 1), "commits": commits, "stall_seconds": round(stall, 3),
        "steps_lost_at_least": lost,
    }  # fmt: skip


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
