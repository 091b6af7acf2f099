"""The loop: take the newest commit that verifies, then step, evaluate and commit until done or asked to stop."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import torch

from sports_ray.config import TrainConfig
from sports_ray.data.loader import Batch, stream
from sports_ray.data.manifest import Manifest
from sports_ray.engine.evaluate import add_batch, empty_sums, summarise
from sports_ray.engine.guard import FIRST_SECONDS, Watchdog
from sports_ray.engine.ledger import chained
from sports_ray.engine.link import Link, Outcome
from sports_ray.engine.memory import settled_objects
from sports_ray.engine.save import SAVE_SECONDS, commit, commit_is_due, finish, lost, watch_store
from sports_ray.engine.session import Session, loader_config, loader_processes, open_session
from sports_ray.engine.step import StepResult, optimiser_step
from sports_ray.engine.world import World
from sports_ray.score.main_score import score_of
from sports_ray.stops import TIME_BUDGET
from sports_ray.store.run_dir import RunDir

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 60.0
"""How long an ending process waits for a commit that is still being written."""


def run(config: TrainConfig, manifest: Manifest, run_dir: RunDir, link: Link, world: World, lease: str = "") -> Outcome:
    """Trains `run_dir` from its newest commit to the end, or to the next stop, on this rank; `lease`: id of the driver's.

    Raises what no retry can mend as SportsRayError; anything else is a crash.
    """
    session = open_session(config, manifest, run_dir, link, world, lease)
    if world.rank == 0:
        session.costs.learn(run_dir.read_timings())
    progress, schedule = session.progress, session.schedule
    requests = schedule.requests(
        progress.step, progress.evaluated == progress.step, world.rank, world.size, progress.eval_done
    )
    batches = stream(
        manifest,
        loader_config(config, world),
        config.augment,
        session.learner.spec,
        config.loop.seed,
        requests,
        loader_processes(config, world),
    )
    with closing(batches), settled_objects():
        try:
            with Watchdog(least=least_patience(config, world)) as watchdog:
                session.watchdog = watchdog
                reason = _train(session, batches, watchdog)
            # Unwatched: the last commit of a large model may take far longer than a step, and has a limit of its own.
            reason = finish(session, reason)
        except BaseException:
            _close(session, CLOSE_SECONDS)
            raise
        _close(session, 0.0)
    return _outcome(session, reason)


def least_patience(config: TrainConfig, world: World) -> float:
    """Least seconds without a beat after which this rank counts as hung."""
    # One rank's hang stops all of them in the next sum: rank 0 finds it. The others may have to wait for its store.
    least = config.cluster.hang_seconds if world.rank == 0 else 2 * SAVE_SECONDS
    # A step of another shape, or of another phase, is compiled anew: any step may take as long as the first ones.
    return max(least, FIRST_SECONDS) if config.model.compile else least


def _close(session: Session, seconds: float) -> None:
    if session.writer is not None:
        session.writer.close(seconds)


def _outcome(session: Session, reason: str) -> Outcome:
    (steps, cure), costs, note = lost(session), session.costs, ""
    if reason == TIME_BUDGET and not costs.steps and not session.progress.eval_done:
        note = (
            f"no step fits into the time budget: of it {costs.reserve():.0f} s are kept for the slowest step "
            f"({max(costs.first, costs.step, costs.batch):.1f} s) and commit ({costs.commit:.1f} s) seen so far"
        )
    step, total = session.progress.step - steps, session.schedule.total_steps
    return Outcome("paused" if reason else "done", reason, step, total, steps, cure, note)


def _train(session: Session, batches: Iterator[Batch], watchdog: Watchdog) -> str:
    """Steps and evaluates until the run is done (returns "") or asked to stop (returns the reason)."""
    progress, schedule = session.progress, session.schedule
    # A step that is begun too late would overrun the budget: what the last sessions took counts before the first one.
    if session.link.deadline and session.world.any(bool(_out_of_time(session))):
        return TIME_BUDGET
    while True:
        due = schedule.evaluates_after(progress.step) and progress.evaluated != progress.step
        reason = _evaluate(session, batches, watchdog) if due else ""
        over = progress.step >= schedule.total_steps or progress.stopped_early
        if reason and not (over and progress.evaluated == progress.step):
            return reason
        if over:
            return ""
        if reason := _step(session, next(batches)):
            return reason
        watchdog.beat("step")


def _step(session: Session, batch: Batch) -> str:
    progress, schedule = session.progress, session.schedule
    _enter_phase(session, schedule.epoch_of(progress.step))
    lr = session.rate(progress.step)
    wish = _wish(session)
    mark = session.ledger.mark(batch.request.epoch, batch.request.start, batch.rows.tolist())
    result = optimiser_step(session.learner, schedule, progress, batch, lr, bool(wish), mark)
    _count(session, result)
    seconds = session.speed.step(result.images) - session.stood_still()
    session.costs.took(max(0.0, seconds), session.writer is not None and session.writer.busy)
    session.unsaved = True
    _show(session, result, lr)
    if session.writer is not None and not result.stop:
        session.writer.check()
        if commit_is_due(session):
            commit(session)
    return (wish or "another worker was asked to stop") if result.stop else ""


def _enter_phase(session: Session, epoch: int) -> None:
    """Freezes and unfreezes as the phase of this epoch says; a pure function of the epoch, so a resume needs no state."""
    first, pattern = 0, None
    for phase in session.config.loop.phases:
        if first <= epoch < first + phase.epochs:
            pattern = phase.train
        first += phase.epochs
    if pattern != session.phase:
        session.learner.enter_phase(pattern)
        session.phase = pattern


def _count(session: Session, result: StepResult) -> None:
    progress = session.progress
    if not result.skipped:
        progress.loss_sum += result.loss * result.images
        progress.loss_images += result.images
    progress.consumed = chained(progress.consumed, progress.step, result.mark)
    progress.step += 1
    progress.scale, progress.scale_good_steps = session.learner.scale.value, session.learner.scale.good_steps


def _wish(session: Session) -> str:
    """Why this rank wants to stop, or ""."""
    return session.link.should_stop() or _out_of_time(session) or watch_store(session)


def _out_of_time(session: Session) -> str:
    """Stops while there is still room for the slowest of all that has to follow."""
    deadline = session.link.deadline
    return TIME_BUDGET if deadline and time.time() + session.costs.reserve() >= deadline else ""


def _evaluate(session: Session, batches: Iterator[Batch], watchdog: Watchdog) -> str:
    """Scores the validation split and takes note of it; a stop returns its reason, and keeps the sums so far."""
    progress, learner, world, val_images = session.progress, session.learner, session.world, session.schedule.val_images
    start, sums, reason = time.perf_counter(), empty_sums(learner, val_images), ""
    if progress.eval_done and world.rank == 0:
        sums += torch.tensor(progress.eval_sums, device=sums.device)
    done = progress.eval_done
    for _ in session.schedule.eval_requests(world.rank, world.size, done):
        begin = time.perf_counter()
        add_batch(learner, sums, next(batches))
        session.costs.batch = max(session.costs.batch, time.perf_counter() - begin - session.stood_still())
        watchdog.beat("evaluation")
        done = min(done + world.size * session.schedule.eval_batch, val_images)
        wish = _wish(session)
        reason = (wish or "another worker was asked to stop") if world.any(bool(wish)) else ""
        if reason and done < val_images:
            if learner.multilabel is None:  # else the table of all logits, with which no commit is burdened
                progress.eval_done, progress.eval_sums = done, world.sum_(sums).tolist()
            session.unsaved = True
            return reason
        if world.rank == 0:
            session.tell({"kind": "evaluation", "done": done / val_images})
    scores = summarise(learner, sums)
    _note(session, scores)
    session.unsaved = True
    session.speed.pause()
    session.link.report(dict(progress.history[-1]))
    if session.writer is not None:
        seconds = time.perf_counter() - start
        best = progress.best_step == progress.step
        event = {"kind": "evaluation", "step": progress.step, "seconds": round(seconds, 3)}
        # Written by this thread: while a store fails, its tries take about as long as the watchdog's least patience.
        with watchdog.waiting(SAVE_SECONDS):
            session.run_dir.append_timing(event)
        session.tell({"kind": "evaluated", **progress.history[-1], "best": best, "seconds": seconds})
        if best or commit_is_due(session):
            commit(session)
    return reason


def _note(session: Session, scores: dict[str, Any]) -> None:
    """Adds a line to the history and settles best score and early stopping."""
    progress, loop = session.progress, session.config.loop
    epoch = progress.step // session.schedule.steps_per_epoch
    train_loss = progress.loss_sum / progress.loss_images if progress.loss_images else None
    prefix = "ema_" if session.learner.ema is not None else ""
    score = score_of(scores) if loop.early_stop_metric == "acc1" else -scores[prefix + "val_loss"]
    if progress.best_score is None or score > progress.best_score:
        progress.best_score, progress.best_step, progress.bad_evaluations = score, progress.step, 0
    else:
        progress.bad_evaluations += 1
    progress.stopped_early = bool(loop.early_stop) and progress.bad_evaluations >= loop.early_stop
    line = {
        "epoch": epoch,
        "step": progress.step,
        "train_loss": train_loss,
        "skipped_steps": progress.skipped,
        **scores,
    }
    line["lr"] = session.rate(progress.step - 1)
    progress.history.append(line)
    progress.evaluated, progress.eval_done, progress.eval_sums = progress.step, 0, []
    progress.loss_sum, progress.loss_images = 0.0, 0


def _show(session: Session, result: StepResult, lr: float) -> None:
    if session.world.rank == 0 and session.speed.due():
        progress, schedule = session.progress, session.schedule
        session.tell(
            {
                "kind": "step",
                "step": progress.step,
                "total_steps": schedule.total_steps,
                "epoch": schedule.epoch_of(progress.step - 1) + 1,
                "epochs": schedule.epochs,
                "loss": result.loss,
                "lr": lr,
                "images_per_second": session.speed.images_per_second,
                "committed": session.committed,
                "pid": os.getpid(),
            }
        )
