"""What the weights tell of how they came about: batch norm's counters and how far the EMA lags behind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from sports_ray.doctor.check import Check
from sports_ray.doctor.patient import Patient, facts_of

LEFT_OF_START = 0.05
"""Share of the start in the EMA from which on it lags."""
MEAN_AGE = 0.3
"""Mean age of what the EMA averages, as a share of the steps done, from which on it lags."""
WORSE = 0.1
"""By how much of the raw weights' loss (at least 0.05 nats) the EMA's may be higher."""

_Run = partial(Check, "run")


def check_layers(patient: Patient) -> Iterator[Check]:
    """All checks of this module."""
    yield _counters(patient)
    if patient.averaged is not None:
        yield _lag(patient)


def _counters(patient: Patient) -> Check:
    """Batch norm counts the batches that it has seen in training mode: none means that it was left in evaluation mode."""
    phases = sum(phase.epochs for phase in patient.config.loop.phases) * patient.schedule.steps_per_epoch
    steps = patient.progress.step - phases
    counters = {name: int(value) for name, value in patient.weights.items() if name.endswith("num_batches_tracked")}
    if not counters or steps <= 0:
        reason = "no layer counts batches" if not counters else "no step yet in which all layers learn"
        return _Run("training mode", f"not told by these weights: {reason}")
    start = patient.start()
    before = {name: int(start[name]) if start else 0 for name in counters}
    still = [name.rpartition(".")[0] for name, count in counters.items() if count <= before[name]]
    if not still:
        return _Run("training mode", f"batch norm has seen {min(counters.values()) - min(before.values()):,} batches")
    got = f"{len(still)} of {len(counters)} batch norms (such as {still[0]}) have seen no batch in {steps:,} steps"
    cure = "train again with the model in training mode (model.train() before each step): nothing may call eval() on it"
    return _Run("model left in evaluation mode", got, "bad", "statistics that follow the photographs", cure)


def _lag(patient: Patient) -> Check:
    """How old the average is, by its own decays, and whether that costs it its score."""
    ema, line, steps = patient.learner.ema, facts_of(patient.progress.history), patient.progress.step
    assert ema is not None and patient.averaged is not None
    left, age = 1.0, 0.0
    for step in range(steps):
        decay = ema.decay_at(step)
        left, age = left * decay, decay * (age + 1.0)
    moved = math.sqrt(sum(_square(patient, name) for name in patient.averaged))
    size = math.sqrt(
        sum(float(value.float().square().sum()) for value in patient.averaged.values() if value.is_floating_point())
    )
    off = moved / max(size, 1e-12)
    text = f"mean age {age:,.0f} of {steps:,} steps, {left:.0%} of it is the start, {off:.1%} off the weights"
    raw, mean = line.get("val_loss"), line.get("ema_val_loss")
    lags = left > LEFT_OF_START or age > MEAN_AGE * steps
    if raw is None or mean is None or not (lags and mean > raw + max(0.05, WORSE * raw)):
        return _Run("EMA", text)
    want = f"a loss near that of the raw weights, {raw:.3g} (accuracy {line.get('val_acc1', 0):.3f})"
    got = f"a loss of {mean:.3g} (accuracy {line.get('ema_val_acc1', 0):.3f}): {text}"
    own = 1.0 - 1.0 / max(2, patient.schedule.steps_per_epoch)
    cure = f"--set ema.decay=0 (which takes {own:.4f} here) --set ema.warmup=true; or score the raw weights"
    return _Run("EMA lags behind", got, "bad", want, cure)


def _square(patient: Patient, name: str) -> float:
    assert patient.averaged is not None
    mean = patient.averaged[name]
    return float((mean - patient.weights[name].float()).square().sum()) if mean.is_floating_point() else 0.0
