"""The gradients of the next steps, as training would compute them: dead and exploding ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from sports_ray.data.loader import Batch
from sports_ray.doctor.check import Check
from sports_ray.doctor.patient import Patient
from sports_ray.engine.gradient import forward_backward

STEPS = 2
IMAGES = 32
"""Of each step."""
EXPLODING = 100.0
"""Times optim.clip (at least 1) that the norm of a step's gradient may be: healthy ones are near 1, up to some tens."""
DEAD_ROWS = 0.5
"""Share of a tensor's outputs without any gradient from which on it is told."""

_Run = partial(Check, "run")


@dataclass(slots=True)
class Gradients:
    """Of some steps at the same weights."""

    norms: list[float] = field(default_factory=list)
    """Of each step, over all parameters."""
    losses: list[float] = field(default_factory=list)
    largest: dict[str, Tensor] = field(default_factory=dict)
    """Largest absolute value of each output (row) of each parameter over the steps."""
    steepest: str = ""
    """The parameter with the largest norm of the last step."""


def check_gradients(patient: Patient) -> Iterator[Check]:
    """Two steps of the stream that comes next (of the last epoch where the run is done), in training mode."""
    found = measure(patient)
    yield _exploding(patient, found)
    yield from _dead(found)


def measure(patient: Patient) -> Gradients:
    """Leaves weights and running statistics as they were."""
    patient.use(patient.weights)
    patient.learner.enter_phase(None)
    last = patient.schedule.total_steps - 1
    first = max(0, min(patient.progress.step, last - STEPS + 1))
    found = Gradients()
    steps = list(range(first, min(first + STEPS, last + 1)))
    for step, batch in zip(steps, patient.batches(steps, IMAGES), strict=True):
        _one_step(patient, step, batch, found)
    patient.use(patient.weights)
    return found


def _one_step(patient: Patient, step: int, batch: Batch, found: Gradients) -> None:
    learner, images = patient.learner, len(batch.labels)
    lanes = [(0, batch.request.start, batch.request.stop)]
    micro = patient.progress.micro_batch or images
    learner.optimizer.zero_grad(set_to_none=True)
    first, stop = patient.schedule.step_span(step)
    loss = forward_backward(learner, patient.schedule, step, batch, lanes, micro)
    # Its gradients are those of the sum of losses over the whole step's images, times the loss scale.
    scale = (stop - first) / images / learner.scale.value
    norms = {}
    for name, parameter in learner.model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.float() * scale
        norms[name] = float(gradient.norm())
        rows = gradient.abs().reshape(gradient.shape[0] if gradient.ndim else 1, -1).amax(1)
        found.largest[name] = torch.maximum(found.largest.get(name, rows), rows)
    found.norms.append(math.hypot(*norms.values()))
    found.losses.append(float(loss) / images)
    found.steepest = max(norms, key=lambda name: norms[name] if math.isfinite(norms[name]) else math.inf)
    learner.optimizer.zero_grad(set_to_none=True)


def _exploding(patient: Patient, found: Gradients) -> Check:
    worst = max(found.norms, key=lambda norm: norm if math.isfinite(norm) else math.inf)
    limit = EXPLODING * max(1.0, patient.config.optim.clip)
    if math.isfinite(worst) and worst <= limit:
        return _Run("gradients", f"norm {worst:.3g} at step {patient.progress.step}, loss {found.losses[-1]:.3g}")
    clip = patient.config.optim.clip
    clipped = f", of which optim.clip leaves {clip / worst:.1%}" if clip and math.isfinite(worst) else ""
    got = f"norm {worst:.3g}{clipped}; the largest is that of {found.steepest}"
    cure = (
        f"--set optim.lr={patient.lr / 10:.1g}, a longer --set optim.warmup_epochs, --set optim.clip=1, "
        "or another --run NAME from sound weights"
    )
    return _Run("exploding gradients", got, "bad", f"a norm of at most {limit:g}", cure)


def _dead(found: Gradients) -> Iterator[Check]:
    matrices = {name: rows for name, rows in found.largest.items() if rows.numel() > 1}
    dead = [name for name, rows in matrices.items() if not rows.any()]
    partly = {name: float((rows == 0).float().mean()) for name, rows in matrices.items() if rows.any()}
    weak = [name for name, share in partly.items() if share > DEAD_ROWS]
    cure = (
        "look at what follows these layers: units that are always off (a rate that was too high, a dead ReLU) never learn "
        "again; start from sound weights with a lower --set optim.lr and --set optim.clip=1"
    )
    if dead:
        got = f"none at all in {len(dead)} of {len(matrices)} tensors: {_some(dead)}"
        yield _Run("dead gradients", got, "bad", "a gradient in every layer", cure)
    if weak:
        got = f"none in most outputs of {len(weak)} tensors: {_some([f'{name} ({partly[name]:.0%})' for name in weak])}"
        yield _Run("dead gradients", got, "look", "a gradient in every output", cure)
    if not dead and not weak:
        yield _Run("dead gradients", f"none: all {len(matrices)} tensors learn")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
