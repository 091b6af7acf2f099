"""The learning rate: where a run has not learned, short trials from its start tell whether another rate would.

In the manner of a range test (Smith 2017), but each rate for itself and from the same weights: a few steps on the run's
own stream, then the loss on other photographs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from sports_ray.data.loader import Batch
from sports_ray.doctor.check import Check, Severity
from sports_ray.doctor.patient import Patient, facts_of
from sports_ray.model.optim import create_optimizer, set_learning_rate
from sports_ray.score.main_score import wilson

NOT_LEARNED = 0.9
"""Share of the loss of guessing, ln(classes), which the training loss has to fall below."""
WELL = 0.5
"""The same, from which on nothing is tried."""
DIVERGED = 1.5
"""Times the lowest training loss so far, from which on it has diverged."""
RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""That are tried, ten times as high for SGD, besides the run's own."""
STEPS, WARM_UP = 10, 4
IMAGES = 32
CLEAR = 0.03
"""Of ln(classes): by how much the loss has to be lower for a rate to be better."""
FAR = 5.0
"""How many times higher or lower a better rate has to be."""

_Run = partial(Check, "run")


def check_rate(patient: Patient) -> Iterator[Check]:
    """Nothing more than a fact where the run learns."""
    line, history = facts_of(patient.progress.history), patient.progress.history
    losses = [each["train_loss"] for each in history if each.get("train_loss") is not None]
    if not line or not losses:
        yield _Run("learning rate", f"{patient.lr:.3g}; not judged before the first evaluation")
        return
    guessing = math.log(patient.classes)
    text = f"training loss {losses[-1]:.3g} after {len(losses)} evaluations, {guessing:.3g} by guessing"
    score = max(line.get("val_acc1", 0.0), line.get("ema_val_acc1", 0.0))
    # Mixing and augmentation keep the training loss of a healthy run up; its score on validation is above chance then.
    lost = wilson(round(score * line["val_images"]), line["val_images"])[0] <= 1 / patient.classes
    lost |= losses[-1] > DIVERGED * min(losses)
    if not lost and losses[-1] < WELL * guessing:
        yield _Run("learning rate", f"{patient.lr:.3g}; {text}")
        return
    yield _judged(patient, text + f", accuracy {score:.3f}", guessing, lost, losses[-1] < NOT_LEARNED * guessing)


def _judged(patient: Patient, text: str, guessing: float, lost: bool, learns: bool) -> Check:
    """`lost`: no better than guessing, or worse than it was; `learns`: then only lower rates are tried."""
    rates = (patient.lr / 100, patient.lr / 10) if learns and not lost else RATES
    before, after = trials(patient, rates)
    own = after[patient.lr]
    best = min(after, key=lambda rate: after[rate])
    told = ", ".join(f"{rate:.0e}: {loss:.3g}" for rate, loss in sorted(after.items()))
    text += f"; {STEPS} steps from the start bring the loss from {before:.3g} to (by rate) {told}"
    clear = own - after[best] > CLEAR * guessing and before - after[best] > CLEAR * guessing
    if clear and (best * FAR <= patient.lr or best >= FAR * patient.lr):
        what = "learning rate too high" if best < patient.lr else "learning rate too low"
        cure = f"--set optim.lr={best:.0e} under another --run NAME"
        severity: Severity = "look" if learns and not lost else "bad"
        return _Run(what, f"{patient.lr:.3g}: {text}", severity, f"about {best:.0e}", cure)
    if not lost:
        return _Run("learning rate", f"{patient.lr:.3g}: {text}: no other rate is clearly better")
    cure = (
        "look at the labels (`sports-ray data scan`, --data here) and at photographs as the model sees them; fewer "
        "augmentations, or more epochs"
    )
    return _Run("does not learn, and no other rate would help", text, "look", "a loss below that of guessing", cure)


def trials(patient: Patient, rates: Sequence[float] = RATES) -> tuple[float, dict[float, float]]:
    """(loss at the start, rate -> loss after STEPS) of these rates and the run's own: on photographs of validation, by
    batch statistics."""
    unit = 10.0 if patient.config.optim.name == "sgd" and rates is RATES else 1.0
    tried = dict.fromkeys([*(unit * rate for rate in rates), patient.lr])
    steps = [step % patient.schedule.total_steps for step in range(STEPS)]
    batches = list(patient.batches(steps, IMAGES))
    start = patient.start() or patient.weights
    patient.learner.enter_phase(None)
    before = _try(patient, start, [], 0.0)
    after = {rate: _try(patient, start, batches, rate) for rate in tried}
    patient.use(patient.weights)
    return before, after


def _try(patient: Patient, start: dict[str, Tensor], batches: list[Batch], rate: float) -> float:
    learner, config = patient.learner, patient.config
    patient.use(start)
    learner.model.train()
    optimizer = create_optimizer(learner.model, config.optim, rate)
    device = learner.world.device
    for number, batch in enumerate(batches):
        # Warmed up, as a run is: fresh moments would make the first steps too long for a rate that is sound.
        set_learning_rate(optimizer, rate * min(1.0, (number + 1) / WARM_UP))
        learner.seed_dropout(number, 0)
        with learner.autocast():
            logits = learner.model(learner.normalise(batch.images))
        loss = functional.cross_entropy(
            logits.float(), batch.labels.to(device), label_smoothing=config.augment.smoothing
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.optim.clip:
            torch.nn.utils.clip_grad_norm_(learner.model.parameters(), config.optim.clip)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return _held_out(patient)


@torch.no_grad()
def _held_out(patient: Patient) -> float:
    """Mean loss on photographs of validation with batch statistics: after a few steps the running ones are not there yet."""
    learner, pictures = patient.learner, patient.pictures("val")
    learner.seed_dropout(0, 1)
    labels = pictures.labels[:64].to(learner.world.device)
    with learner.autocast():
        logits = learner.model(learner.normalise(pictures.images[:64]))
    loss = float(functional.cross_entropy(logits.float(), labels))
    return loss if math.isfinite(loss) else 1e3
