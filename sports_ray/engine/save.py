"""Commits of a running session, the weights of a finished one, and what to do while the store fails."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from functools import cache

from sports_ray.engine.interval import commit_interval
from sports_ray.engine.record import write_scalars
from sports_ray.engine.session import Session, Snapshot
from sports_ray.engine.snapshot import is_best, is_kept, kept_steps, owe, take_snapshot
from sports_ray.errors import RunError
from sports_ray.score.multilabel import DEFAULT
from sports_ray.store.commit import read_commit, write_commit
from sports_ray.store.fence import check

logger = logging.getLogger(__name__)

SAVE_SECONDS = 600.0
"""How long the last commit of a session that was asked to stop may take, tries included."""
FAILING_SECONDS = 60.0
"""How long at most a store that fails is waited for by who was asked to stop."""
WAIT_SECONDS = 0.5
"""Between two looks while the last commit is waited for."""
LAST_TRY = 5.0
"""How long at least a store that has failed for too long already is given for the last commit."""
STUCK_SECONDS = 60.0
"""After so long without an answer to a commit, and ten times the slowest one, the store counts as failing."""
STUCK_BYTES = 20e6
"""A store that takes fewer bytes a second counts as failing too."""
LONGEST_WAIT = 900.0
"""How long at most training waits for the store at a commit, however large the one being written is: meanwhile the other
ranks wait in a sum. Their watchdogs end them after 1200 s, the time limit of collectives after 1800 s."""
EXIT_SECONDS = 1.5
"""Of a time budget: left to the end of the process when the store does not take the last commit."""


def commit_is_due(session: Session) -> bool:
    store, writer = session.config.store, session.writer
    assert writer is not None
    if is_kept(session) or (store.every_steps and session.progress.step % store.every_steps == 0):
        return True
    return not writer.busy and time.monotonic() - session.submitted_at >= _interval(session)


def _interval(session: Session) -> float:
    """Seconds between two commits; infinite where steps alone decide."""
    every = session.config.store.every_seconds
    if every == "auto":
        return commit_interval(session.costs.cost.mean, session.config.cluster.mtbf)
    return every or math.inf


def commit(session: Session) -> None:
    """Copies the state to host memory and lets the writer's thread write it.

    A commit that is being written is waited for; one that failed and waits for its next try is replaced by this one, but
    the best so far and those to be kept are written in any case. A store that does not answer is not waited for: training
    goes on, and the next commit that is due tries again.
    """
    start = time.perf_counter()
    if not _idle(session, start):
        if is_best(session) or is_kept(session):
            owe(session, take_snapshot(session))
        return
    hand_over = _prepared(session, start)
    # Refused: the old commit's next try began while the state was copied. One that must become safe is owed from here on.
    while not hand_over():
        if not (is_best(session) or is_kept(session)) or not _idle(session, start):
            return


def _idle(session: Session, start: float) -> bool:
    """Waits until the writer is free; False if the store does not answer. `start`: of all waiting at this commit."""
    writer = session.writer
    assert writer is not None
    while writer.busy:
        if failing_seconds(session) or time.perf_counter() - start > LONGEST_WAIT:
            return False
        time.sleep(0.001)
        if session.watchdog is not None:
            session.watchdog.wait()
    return True


def _prepared(session: Session, start: float) -> Callable[[], bool]:
    """Copies the state. Returns what hands it to the writer, and tells whether it was taken: if not, call it again.

    `start`: when waiting for the writer began, on the performance counter."""
    writer, costs = session.writer, session.costs
    assert writer is not None
    new = take_snapshot(session)
    copied_at = time.monotonic()
    stall = time.perf_counter() - start
    costs.cost.begin(stall)
    session.speed.stall(stall)
    owe(session, new)
    owed = {snapshot.step: snapshot for snapshot in (session.unsaved_best, *session.unsaved_kept, new) if snapshot}
    snapshots = [owed[step] for step in sorted(owed)]
    write = _writing(session, new, snapshots, stall, copied_at)
    groups = [group for snapshot in snapshots for group in snapshot.tensors.values()]
    size = sum(tensor.nbytes for group in groups for tensor in group.values())

    def hand_over() -> bool:
        if not writer.submit(write):
            return False
        session.submitted_at, session.submitted_bytes, session.unsaved = time.monotonic(), size, False
        return True

    return hand_over


def _writing(
    session: Session, new: Snapshot, snapshots: list[Snapshot], stall: float, copied_at: float
) -> Callable[[], None]:
    """The writer's job: the newest state, with those that were owed when it was copied."""
    run_dir, token, costs, keep = session.run_dir, session.token, session.costs, session.config.store.keep
    best_step, stay, before = session.progress.best_step, kept_steps(session), costs.cost.last
    best, kept = session.unsaved_best, list(session.unsaved_kept)

    def write() -> None:
        begin = time.perf_counter()
        for snapshot in snapshots:
            write_commit(run_dir.storage, snapshot.step, token, snapshot.tensors, snapshot.state)
        run_dir.write_metrics(new.state["history"])
        run_dir.prune(keep, best_step or None, stay)
        seconds = time.perf_counter() - begin
        session.committed, costs.safe_at = new.step, copied_at
        if session.unsaved_best is best:
            session.unsaved_best = None
        for snapshot in kept:
            # Not there if the older commit, which had the writer first when this one was refused, has made it safe.
            if snapshot in session.unsaved_kept:
                session.unsaved_kept.remove(snapshot)
        costs.commit = max(costs.commit, stall + seconds)
        event = {"kind": "commit", "step": new.step, "stall": round(stall, 5), "seconds": round(seconds, 4)}
        # What this commit costs is known when it is over: the event holds the one before.
        run_dir.append_timing({**event, "excess": before and round(before, 5), "slowest": costs.slowest()})

    return write


def failing_seconds(session: Session) -> float:
    """For how long the store has been failing, or has given no answer to a commit; 0 if it is well."""
    writer = session.writer
    assert writer is not None
    if writer.failing_seconds:
        return writer.failing_seconds
    waited = time.monotonic() - session.submitted_at
    return waited if writer.busy and waited > stuck_after(session.submitted_bytes, session.costs.commit) else 0.0


def stuck_after(size: int, slowest: float) -> float:
    """Seconds after which a commit of `size` bytes without an answer tells of a store that fails; `slowest`: of all so far.

    The first one of a large model has no other to be compared with: 10 GB take more than a minute on many a store."""
    return max(STUCK_SECONDS, 10 * slowest, size / STUCK_BYTES)


def watch_store(session: Session) -> str:
    """Tells people that the store fails, and that it is back. Returns why to stop, before too much is unsaved, or ""."""
    writer = session.writer
    if writer is None:
        return ""
    seconds = failing_seconds(session)
    event = {"kind": "store", "committed": session.committed or 0}
    if not seconds:
        if session.told:
            logger.warning("store: back after %.0f s, safe step=%s", session.told, session.committed)
            session.tell({**event, "state": "back", "seconds": round(session.told, 1)})
            session.told = 0.0
        return ""
    unsaved = time.monotonic() - session.costs.safe_at
    why = _reason(session)
    if not session.told or seconds >= 2 * max(session.told, 1.0):
        session.told = seconds
        logger.warning("store: failing for %.0f s, safe step=%s: %s", seconds, session.committed, why)
        facts = {"seconds": round(seconds, 1), "unsaved_seconds": round(unsaved, 1), "reason": why}
        session.tell({**event, "state": "failing", **facts})
    limit = session.config.store.max_unsaved_seconds
    # The step that follows is done before the stop.
    return f"the store fails: {why}" if unsaved + session.costs.step >= limit else ""


def _reason(session: Session) -> str:
    assert session.writer is not None
    error = session.writer.last_error
    return str(error.got or error.what) if error is not None else "no answer to a write"


def _cure(session: Session) -> str:
    assert session.writer is not None
    error = session.writer.last_error
    return error.cure if error is not None else "check the storage"


def finish(session: Session, reason: str) -> str:
    """Commits what is not saved and, when the run is done, publishes its weights. Returns why the run pauses, or "".

    A store that stays away does not raise: what was safe before is what the run goes on from.
    """
    writer = session.writer
    if writer is None:
        return reason
    patience = _patience(session, reason)
    if session.unsaved or not reason:
        # Copied when the writer is free, for an older copy is gone then; and once, though it may be refused once.
        last = cache(lambda: _prepared(session, time.perf_counter()))
        if not _saved(session, lambda: last()(), patience):
            return reason or f"the store fails: {_reason(session)}"
    elif not _saved(session, lambda: True, patience):
        return reason
    begin = time.perf_counter()
    write_scalars(session.run_dir, session.progress.history)
    seconds = time.perf_counter() - begin
    # The weights come last: a run that has them is finished, and nobody looks after it again.
    if not reason and not _saved(session, lambda: writer.submit(lambda: _publish(session)), patience):
        return f"the store fails: {_reason(session)}"
    _leave_times(session, reason, seconds)
    return reason


def _patience(session: Session, reason: str) -> float:
    """Seconds that the store has for the last commit: what may be lost sets the limit, and the time budget."""
    left = session.config.store.max_unsaved_seconds - (time.monotonic() - session.costs.safe_at)
    least = max(LAST_TRY, 4 * session.costs.commit)
    seconds = max(least, min(left, SAVE_SECONDS) if reason else left)
    if session.link.deadline:
        seconds = min(seconds, max(1.0, session.link.deadline - time.time() - session.costs.end - EXIT_SECONDS))
    return seconds


def _saved(session: Session, submit: Callable[[], bool], patience: float) -> bool:
    """Hands work to the writer when it is free, and waits for all of it; whether it was saved in so many seconds.

    `submit` is called again if it is refused: the next try of an older job may begin at any moment."""
    writer, begun = session.writer, time.monotonic()
    assert writer is not None
    while writer.busy or not submit():
        if not _patient(session, begun, patience):
            return False
        time.sleep(0.001)
    while not writer.wait(WAIT_SECONDS):
        if not _patient(session, begun, patience):
            return False
    watch_store(session)
    return True


def _patient(session: Session, begun: float, patience: float) -> bool:
    """Whether to wait on; who was asked to stop waits less for a store that fails."""
    watch_store(session)
    waited = time.monotonic() - begun
    failing = session.link.should_stop() and failing_seconds(session)
    return waited < (min(patience, FAILING_SECONDS) if failing else patience)


def _leave_times(session: Session, reason: str, end_seconds: float) -> None:
    speed = {"images": session.speed.total_images, "step_seconds": round(session.speed.total_seconds, 4)}
    session.run_dir.append_timing(
        {
            "kind": "end",
            "step": session.progress.step,
            "reason": reason,
            "seconds": round(time.monotonic() - session.opened_at, 3),
            "end_seconds": round(end_seconds, 3),
            "steps": session.costs.steps,
            "slowest": session.costs.slowest(),
            **speed,
        }
    )


def lost(session: Session) -> tuple[int, str]:
    """Steps done and not saved, and what would mend the store; (0, "") when all is safe."""
    steps = session.progress.step - (session.committed or 0)
    return (steps, _cure(session)) if session.writer is not None and steps else (0, "")


def _publish(session: Session) -> None:
    """Writes weights/last and weights/best: the EMA's where EMA is on, each with its sidecar."""
    run_dir, progress, config = session.run_dir, session.progress, session.config
    check(run_dir.storage, session.token)
    part = "ema" if session.learner.ema is not None else "model"
    for name, step in (("last", progress.step), ("best", progress.best_step or progress.step)):
        try:
            saved = read_commit(run_dir.storage, step)
        except RunError as error:
            raise RunError(
                f"weights/{name}",
                got=str(error),
                cure="the same command again: it goes on from a commit before that one",
            ) from error
        line = next((entry for entry in progress.history if entry["step"] == step), {})
        spec = session.learner.spec
        sidecar = {
            "model": config.model.name,
            "head": config.model.head,
            "classes": list(session.manifest.classes),
            "step": step,
            "epochs": config.loop.epochs,
            "weights": part,
            "scores": {key: value for key, value in line.items() if "val_" in key},
            "preprocessing": {name: getattr(spec, name) for name in spec.__slots__},
        }
        if session.learner.multilabel is not None:
            # Fitted on validation images in the evaluation of these very weights; without one: the neutral threshold.
            sidecar["thresholds"] = line.get("thresholds", [DEFAULT] * len(session.manifest.classes))
        run_dir.publish_weights(name, saved.load(part), sidecar)
