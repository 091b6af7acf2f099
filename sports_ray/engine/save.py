"""Commits of a running session, and the weights of a finished one."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from sports_ray.engine.record import write_scalars
from sports_ray.engine.session import Session
from sports_ray.errors import StorageError
from sports_ray.store.commit import read_commit, write_commit
from sports_ray.store.fence import check

SAVE_SECONDS = 600.0
"""How long the last commit of a session may take, tries included."""


def commit_is_due(session: Session) -> bool:
    store, writer, progress = session.config.store, session.writer, session.progress
    assert writer is not None
    if store.every_steps and progress.step % store.every_steps == 0:
        return True
    return (
        bool(store.every_seconds)
        and not writer.busy
        and (time.monotonic() - session.submitted_at >= store.every_seconds)
    )


def commit(session: Session, wait: bool = False) -> None:
    """Copies the state to host memory and lets the writer's thread write it; `wait`: until it is safe in the store.

    A commit that is being written is waited for; one that failed and waits for its next try is replaced by this one.
    Raises StorageError when `wait` and the store stays away for SAVE_SECONDS.
    """
    writer, progress, run_dir, token = session.writer, session.progress, session.run_dir, session.token
    assert writer is not None
    start = time.perf_counter()
    while writer.busy:
        time.sleep(0.001)
        if session.watchdog is not None:
            session.watchdog.wait()
    tensors = {name: _host_copy(group) for name, group in session.learner.tensors().items()}
    state, step, keep, best = progress.to_json(), progress.step, session.config.store.keep, progress.best_step
    stall = time.perf_counter() - start

    def write() -> None:
        begin = time.perf_counter()
        write_commit(run_dir.storage, step, token, tensors, state)
        run_dir.write_metrics(state["history"])
        run_dir.prune(keep, best or None)
        seconds = time.perf_counter() - begin
        session.committed = step
        run_dir.append_timing({"kind": "commit", "step": step, "stall": round(stall, 5), "seconds": round(seconds, 4)})

    writer.submit(write)
    session.submitted_at = time.monotonic()
    session.speed.stall(stall)
    if wait and not writer.wait(SAVE_SECONDS):
        raise StorageError(
            f"step {step} could not be saved for {SAVE_SECONDS:.0f} s",
            got=writer.last_error or "a store that does not answer",
            cure="bring the store back; the same command goes on from the last commit",
        )


def _host_copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies in host memory; from a GPU all transfers are queued before one wait."""
    copies = {
        name: tensor.detach().to("cpu", copy=True, non_blocking=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    if any(tensor.is_cuda for tensor in tensors.values()):
        torch.cuda.synchronize()
    return copies


def finish(session: Session, reason: str) -> None:
    """Commits the last step and, when the run is done, publishes its weights."""
    if session.writer is None:
        return
    if session.committed != session.progress.step or not reason:
        commit(session, wait=True)
    if not reason:
        _publish(session)
    write_scalars(session.run_dir, session.progress.history)
    seconds = round(time.monotonic() - session.opened_at, 3)
    speed = {"images": session.speed.total_images, "step_seconds": round(session.speed.total_seconds, 4)}
    session.run_dir.append_timing(
        {"kind": "end", "step": session.progress.step, "reason": reason, "seconds": seconds, **speed}
    )


def _publish(session: Session) -> None:
    """Writes weights/last and weights/best: the EMA's where EMA is on, each with its sidecar."""
    run_dir, progress, config = session.run_dir, session.progress, session.config
    check(run_dir.storage, session.token)
    part = "ema" if session.learner.ema is not None else "model"
    for name, step in (("last", progress.step), ("best", progress.best_step or progress.step)):
        saved = read_commit(run_dir.storage, step)
        line = next((entry for entry in progress.history if entry["step"] == step), {})
        spec = session.learner.spec
        sidecar = {
            "model": config.model.name,
            "classes": list(session.manifest.classes),
            "step": step,
            "epochs": config.loop.epochs,
            "weights": part,
            "scores": {key: value for key, value in line.items() if "val_" in key},
            "preprocessing": {name: getattr(spec, name) for name in spec.__slots__},
        }
        run_dir.publish_weights(name, saved.load(part), sidecar)
