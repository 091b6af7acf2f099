"""All of a run: measured on its own weights, photographs and history, with nothing in its folder changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from sports_ray.config import TrainConfig
from sports_ray.data.manifest import Manifest
from sports_ray.doctor.check import Check
from sports_ray.doctor.gradients import check_gradients
from sports_ray.doctor.history import check_history
from sports_ray.doctor.labels import check_labels
from sports_ray.doctor.layers import check_layers
from sports_ray.doctor.patient import Patient, open_patient
from sports_ray.doctor.rate import check_rate
from sports_ray.doctor.scores import check_scores
from sports_ray.errors import DataError, RunError
from sports_ray.store.run_dir import RunDir

PARTS: dict[str, Callable[[Patient], Iterator[Check]]] = {
    "history": check_history,
    "scores": check_scores,
    "gradients": check_gradients,
    "rate": check_rate,
    "layers": check_layers,
    "labels": check_labels,
}
"""In the order in which they are told."""
ONE_CLASS = ("rate", "labels")
"""Parts that judge by the one class that each photograph shows: of multi-label data they tell nothing."""


def check_run(
    run_dir: RunDir,
    config: TrainConfig,
    manifest: Manifest,
    most_images: int,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Check]:
    """A check at a time. `most_images`: of each split that are looked at; `say` takes a line of progress.

    Raises StorageError when the store as a whole does not answer."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        patient = open_patient(run_dir, config, manifest, device, most_images)
    except RunError as error:
        cure = error.cure or f"sports-ray verify {run_dir.storage.uri}"
        yield Check("run", error.what, str(error.got), "bad", error.want, cure)
        return
    if patient is None:
        cure = f"sports-ray resume {run_dir.storage.uri}"
        yield Check("run", "checkpoint", "none yet: nothing can be measured", "look", "a commit", cure)
        return
    for name, part in PARTS.items():
        if manifest.multilabel and name in ONE_CLASS:
            yield Check("run", name, "not judged: photographs show several classes")
            continue
        say(f"measuring {name}")
        try:
            yield from part(patient)
        except DataError as error:
            yield Check("run", f"{name}: {error.what}", str(error.got), "bad", error.want, error.cure)
