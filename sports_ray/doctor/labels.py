"""Labels that the run's own weights contradict: classes that are named otherwise in validation, and single photographs.

A photograph counts as contradicted when the model is nearly as sure of another class as it is, on average, of photographs
that bear that class (after the confident joint of Northcutt et al. 2021), and gives its own label little.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from sports_ray.doctor.check import Check
from sports_ray.doctor.patient import Patient
from sports_ray.doctor.scores import nats

OWN = 0.25
"""Probability of the own label, at most."""
OTHER = 0.5
"""Probability of the other class, at least."""
AS_SURE = 0.8
"""And as a share of the mean over photographs of that class, some of which bear it by mistake."""
KNOWS = 0.75
"""Accuracy on training photographs, as evaluation sees them, from which on labels are judged."""
SHARE, LEAST = 0.03, 3
"""Contradicted photographs from which on they are told: of those looked at, and in all."""
EXCHANGED = 0.7
"""Share of a class of validation that has to look like another one."""
OF_A_CLASS = 3
"""Photographs of validation that a class needs to be judged."""

_Run = partial(Check, "run")


def check_labels(patient: Patient) -> Iterator[Check]:
    """All checks of this module. Single photographs are judged in train alone: in validation a model errs by itself."""
    train, val = patient.pictures("train"), patient.pictures("val")
    weights = _better(patient)
    probabilities = [torch.softmax(patient.logits(each, weights), 1) for each in (train, val)]
    probs = probabilities[0]
    accuracy = float((probs.argmax(1) == train.labels).float().mean())
    if accuracy < KNOWS:
        yield _Run("labels", f"not judged: the run knows {accuracy:.0%} of its training photographs so far")
        return
    yield from _exchanged(patient, probabilities, [train.labels, val.labels])
    rows = contradicted(probs, train.labels)
    if len(rows) < max(LEAST, SHARE * len(train.labels)):
        yield _Run(
            "labels", f"{len(rows)} of {len(train.labels)} training photographs look like another class to the run"
        )
        return
    classes = patient.manifest.classes
    told = [f"{train.names[row]} (looks like {classes[int(probs[row].argmax())]})" for row in rows]
    got = f"{len(rows)} of {len(train.labels)} training photographs look like another class: {', '.join(told[:5])}"
    cure = "look at them (all with --json); move those that are wrong, then train again"
    yield _Run(
        "wrong labels", got + (" ..." if len(told) > 5 else ""), "look", f"at most {SHARE:.0%}", cure, tuple(told)
    )


def contradicted(probs: Tensor, labels: Tensor) -> list[int]:
    """Rows whose label the probabilities [n, K] contradict, surest first."""
    own = probs.gather(1, labels[:, None])[:, 0]
    classes = probs.shape[1]
    sums = torch.zeros(classes).index_add_(0, labels, own)
    trust = sums / torch.bincount(labels, minlength=classes).clamp(min=1)
    sure, other = probs.max(1)
    wrong = (other != labels) & (sure >= (AS_SURE * trust[other]).clamp(min=OTHER)) & (own <= OWN)
    rows = torch.nonzero(wrong)[:, 0]
    return rows[own[rows].argsort()].tolist()


def _exchanged(patient: Patient, probabilities: list[Tensor], labels: list[Tensor]) -> Iterator[Check]:
    """Classes that the model knows in train and takes for another one in validation."""
    classes, found = patient.manifest.classes, []
    guesses = [probs.argmax(1) for probs in probabilities]
    for label in range(len(classes)):
        train, val = (guess[given == label] for guess, given in zip(guesses, labels, strict=True))
        if len(val) < OF_A_CLASS or not len(train) or float((train == label).float().mean()) <= 0.5:
            continue
        counts = torch.bincount(val, minlength=len(classes))
        other = int(counts.argmax())
        if other != label and int(counts[other]) >= EXCHANGED * len(val):
            found.append(
                f"{classes[label]} of validation is {classes[other]} of train in {int(counts[other])} of {len(val)}"
            )
    if found:
        cure = "compare the folders of these classes in the splits; rename them, then train again"
        got = "; ".join(found[:5])
        yield _Run("wrong labels", got, "bad", "classes of the same name with the same content", cure, tuple(found))


def _better(patient: Patient) -> dict[str, Tensor]:
    """Raw or averaged weights, whichever have the lower loss on validation."""
    val = patient.pictures("val")
    choices = [each for each in (patient.averaged, patient.weights) if each is not None]
    return min(choices, key=lambda each: float(nats(patient.logits(val, each), val.labels).mean()))
