"""The states that become commits: copies in host memory, and which of them have to become safe in any case."""

from __future__ import annotations

import torch
from torch import Tensor

from sports_ray.engine.session import Session, Snapshot


def take_snapshot(session: Session) -> Snapshot:
    tensors = {name: host_copy(group) for name, group in session.learner.tensors().items()}
    return Snapshot(session.progress.step, tensors, session.progress.to_json())


def is_best(session: Session) -> bool:
    return session.progress.best_step == session.progress.step == session.progress.evaluated


def kept_steps(session: Session) -> set[int]:
    """Steps at the ends of store.keep_epochs."""
    return {epoch * session.schedule.steps_per_epoch for epoch in session.config.store.keep_epochs}


def is_kept(session: Session) -> bool:
    """Whether this state is one to be kept: at the end of its epoch, evaluation included."""
    step = session.progress.step
    whole = session.progress.evaluated == step or not session.schedule.evaluates_after(step)
    return whole and step in kept_steps(session)


def owe(session: Session, snapshot: Snapshot) -> None:
    """Takes note of a state that has to become safe, whatever newer ones may follow."""
    if is_best(session):
        session.unsaved_best = snapshot
    if is_kept(session):
        session.unsaved_kept.append(snapshot)


def host_copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies in host memory; from a GPU all transfers are queued before one wait."""
    copies = {
        name: tensor.detach().to("cpu", copy=True, non_blocking=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    if any(tensor.is_cuda for tensor in tensors.values()):
        torch.cuda.synchronize()
    return copies
