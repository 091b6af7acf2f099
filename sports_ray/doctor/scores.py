"""The validation score measured again, against the one that the run recorded; where they differ, what explains it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sports_ray.config import ImageSpec
from sports_ray.doctor.check import Check
from sports_ray.doctor.patient import Patient, Pictures
from sports_ray.errors import RunError
from sports_ray.score.tally import LOSS_CAP
from sports_ray.store.commit import read_commit

TOLERANCE = 0.02
"""Nats, and share of the loss, by which another device or precision may differ."""
EXPLAINS = 0.35
"""An explanation has to bring the measured loss so much nearer to the recorded one: to this share of the distance."""
NORMS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "mean and std of ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mean and std of 0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "pixels from 0 to 1, not normalised": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "pixels from 0 to 255, not normalised": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
PIXEL_MEAN, PIXEL_STD = 2.5, (0.05, 5.0)
"""What normalised pixels may have over all images: the largest absolute mean, and the range of the deviation."""

_Run = partial(Check, "run")


def check_scores(patient: Patient) -> Iterator[Check]:
    """All checks of this module; of multi-label data the score is not taken again."""
    pictures = patient.pictures("val")
    yield _pixels(patient, pictures)
    yield from _published(patient, pictures)
    if not patient.manifest.multilabel and (found := _evaluated(patient)) is not None:
        yield _again(patient, pictures, *found)


def nats(logits: Tensor, labels: Tensor) -> Tensor:
    """float32 [n]: negative log-likelihood of each image (multi-label: its mean over classes); as `tally` counts it."""
    if labels.ndim == 2:
        losses = functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(1)
    else:
        losses = functional.cross_entropy(logits, labels, reduction="none")
    return torch.nan_to_num(losses, nan=LOSS_CAP, posinf=LOSS_CAP).clamp(max=LOSS_CAP)


def _evaluated(patient: Patient) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The newest line of the history of which the weights are still there, and those."""
    for line in reversed(patient.progress.history):
        if line["step"] == patient.progress.step:
            return line, patient.weights
        try:
            return line, read_commit(patient.run_dir.storage, line["step"]).load("model")
        except RunError:
            continue
    return None


def _again(patient: Patient, pictures: Pictures, line: dict[str, Any], weights: dict[str, Tensor]) -> Check:
    recorded = line["val_loss"]
    losses = nats(patient.logits(pictures, weights), pictures.labels)
    measured, images = float(losses.mean()), len(losses)
    tolerance = TOLERANCE * (1.0 + recorded)
    if images < line["val_images"]:
        tolerance += 4 * float(losses.std()) / images**0.5
    text = f"loss {measured:.4g} on {images} photographs, {recorded:.4g} recorded at step {line['step']}"
    if abs(measured - recorded) <= tolerance:
        return _Run("validation, measured again", text)
    best = ("", measured)
    for name, logits in _explanations(patient, pictures, weights).items():
        loss = float(nats(logits(), pictures.labels).mean())
        if abs(loss - recorded) < EXPLAINS * abs(measured - recorded) and abs(loss - recorded) < abs(
            best[1] - recorded
        ):
            best = (name, loss)
    return _explained(patient, text, *best)


def _explanations(patient: Patient, pictures: Pictures, weights: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
    """Logits as they would have come about by a mistake, by its name."""
    reversed_ = replace(pictures, images=pictures.images.flip(1))
    return {
        "training mode": partial(patient.logits, pictures, weights, training=True),
        "blue and red exchanged": partial(patient.logits, reversed_, weights),
        **{
            name: partial(patient.logits, pictures, weights, replace(patient.learner.spec, mean=mean, std=std))
            for name, (mean, std) in NORMS.items()
        },
    }


def _explained(patient: Patient, text: str, name: str, loss: float) -> Check:
    uri = patient.run_dir.storage.uri
    if name == "training mode":
        cure = f"call model.eval() before scoring; score it anew with `sports-ray eval-ensemble --run {uri}`"
        got = f"{text}; in training mode it is {loss:.4g}"
        return _Run(
            "model left in training mode for evaluation", got, "bad", "scores of the model in evaluation mode", cure
        )
    if name:
        spec = patient.learner.spec
        own = f"mean {_triple(spec.mean)}, std {_triple(spec.std)}"
        cure = f"normalise as timm says for {patient.config.model.name}: {own}; then train again"
        got = f"{text}; with {name} it is {loss:.4g}"
        return _Run("wrong normalisation", got, "bad", "the same preprocessing in training and now", cure)
    cure = f"see whether photographs or labels have changed: `sports-ray verify {uri} --photos`; or another version of timm"
    return _Run("validation score not reproduced", text, "bad", "the recorded loss", cure)


def _pixels(patient: Patient, pictures: Pictures) -> Check:
    """Mean and deviation of what the model gets, over all images and channels."""
    images = patient.normalised(pictures.images[:64])
    mean, std = float(images.mean()), float(images.std())
    text = f"mean {mean:.2f}, deviation {std:.2f} over {len(images)} photographs"
    if abs(mean) <= PIXEL_MEAN and PIXEL_STD[0] <= std <= PIXEL_STD[1]:
        return _Run("normalised pixels", text)
    cure = f"look at the photographs, and at the mean and std of `sports-ray models {patient.config.model.name}`"
    return _Run("wrong normalisation", text, "bad", "a mean near 0 and a deviation near 1", cure)


def _published(patient: Patient, pictures: Pictures) -> Iterator[Check]:
    """What prediction will do with the published weights, against what training did with the photographs."""
    spec, fitting = patient.learner.spec, 0
    for kind in ("best", "last"):
        sidecar = patient.run_dir.describe_weights(kind)
        if sidecar is None:
            continue
        given = sidecar["preprocessing"]
        other = replace(spec, mean=tuple(given["mean"]), std=tuple(given["std"]))
        if other == spec:
            fitting += 1
            continue
        yield _differing(patient, pictures, kind, other)
    if fitting:
        yield _Run("preprocessing of the published weights", "that of the training")


def _differing(patient: Patient, pictures: Pictures, kind: str, other: ImageSpec) -> Check:
    spec = patient.learner.spec
    weights = patient.averaged or patient.weights
    there, here = (
        float(nats(patient.logits(pictures, weights, each), pictures.labels).mean()) for each in (other, spec)
    )
    got = f"weights/{kind}.json says mean {_triple(other.mean)}, std {_triple(other.std)}: a loss of {there:.3g}"
    want = f"mean {_triple(spec.mean)}, std {_triple(spec.std)}, with which it was trained: a loss of {here:.3g}"
    cure = f"delete weights/ of the run, then `sports-ray resume {patient.run_dir.storage.uri}` writes them anew"
    return _Run("wrong normalisation", got, "bad", want, cure)


def _triple(values: tuple[float, float, float]) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in values) + ")"
