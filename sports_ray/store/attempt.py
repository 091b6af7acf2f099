"""Attempts: the right to go on with a run. Each fences off all before it, and knows the commit to go on from."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

from sports_ray.errors import FencedError, RunError
from sports_ray.store.commit import Commit, CommitId, is_finished, list_commits, newest, read_commit
from sports_ray.store.fence import Fence, check, is_orphan, move_fence, new_token, raise_fence, read_fences, withdraw
from sports_ray.store.lease import check_holder
from sports_ray.store.storage import Storage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Attempt:
    """The right to write commits: the fencing token, and the commit to go on from (None: from the start)."""

    token: int
    commit: Commit | None
    passed_over: tuple[str, ...]


def begin_attempt(storage: Storage, owner: Mapping[str, object], lease: str = "") -> Attempt:
    """Find the newest commit that verifies and fence off every attempt before. Called by one process of an attempt.

    With `lease`, the id of the driver's lease: FencedError if another driver holds the run. So workers that a dead
    driver's cluster starts again cannot fence off the workers of the driver that took over."""
    while True:
        if lease:
            check_holder(storage, lease)
        there = list_commits(storage)
        before = [found for found in there if is_finished(storage, found)]
        commit, passed_over = _to_go_on_from(storage, read_fences(storage))
        fence = _fence(new_token(storage, max((found.token for found in there), default=0)), commit)
        if raise_fence(storage, fence, owner):
            break
    try:
        if lease:
            check_holder(storage, lease)
        check(storage, fence.token)
    except FencedError:
        withdraw(storage, fence.token)
        raise
    # Whoever passed its check before the fence stood may have committed since, and pruned what this attempt goes on from.
    others = [other for other in read_fences(storage) if other.token != fence.token]
    while late := _finished_since(storage, before, fence, others):
        before += late
        commit, passed_over = _to_go_on_from(storage, others)
        fence = _fence(fence.token, commit)
        move_fence(storage, fence, owner)
    log.info("attempt.begun token=%d from_step=%d", fence.token, fence.from_step)
    return Attempt(fence.token, commit, tuple(passed_over))


def _fence(token: int, commit: Commit | None) -> Fence:
    return Fence(token, commit.step, commit.token) if commit else Fence(token, 0)


def _to_go_on_from(storage: Storage, fences: list[Fence]) -> tuple[Commit | None, list[str]]:
    """The newest commit that verifies; if the best one that its state names (`best_step`) does not, one before that.

    Training from there makes the best again, bit for bit. If there is none before it, the newest stays: the best is
    lost, but hours of training are not."""
    commit, passed_over = newest(storage, fences)
    best = commit.state.get("best_step") if commit else None
    if commit is None or not best or best >= commit.step:
        return commit, passed_over
    try:
        read_commit(storage, best)
        return commit, passed_over
    except RunError as error:
        reason = str(error)
    for found in sorted(list_commits(storage), reverse=True):
        if found.step < best and not is_orphan(*found, fences):
            with suppress(RunError):
                older = read_commit(storage, *found)
                log.warning("commit.passed_over step=%d token=%d reason=%s", commit.step, commit.token, reason)
                return older, [*passed_over, f"step {commit.step} (attempt {commit.token}): its best, {reason}"]
    log.warning("commit.best_lost step=%d reason=%s", best, reason)
    return commit, passed_over


def _finished_since(
    storage: Storage, before: Collection[CommitId], fence: Fence, others: list[Fence]
) -> list[CommitId]:
    """Commits on the line of the `others` that are newer than what `fence` goes on from, and were not there before."""
    start = CommitId(fence.from_step, fence.from_token)
    return [
        found
        for found in list_commits(storage)
        if found > start and found not in before and not is_orphan(*found, others) and is_finished(storage, found)
    ]
