"""A run at its newest commit that verifies, with some of its photographs, ready to be measured on one device."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from sports_ray.config import AugmentConfig, ImageSpec, TrainConfig
from sports_ray.data.loader import Batch, stream
from sports_ray.data.manifest import Manifest
from sports_ray.data.order import Request
from sports_ray.data.sampler import Sampler
from sports_ray.engine.learner import Learner, Progress, build_learner
from sports_ray.engine.multilabel import loss_of
from sports_ray.engine.schedule import Schedule
from sports_ray.engine.world import World
from sports_ray.errors import WeightsError
from sports_ray.model.build import create, image_spec
from sports_ray.model.lone import lone_image
from sports_ray.model.loss import balanced_weights
from sports_ray.model.optim import default_lr
from sports_ray.model.weights import load_weights
from sports_ray.store.commit import Commit, newest
from sports_ray.store.run_dir import RunDir

logger = logging.getLogger(__name__)

CHUNK = 64
"""Images of one forward pass."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Photographs as evaluation sees them: uint8 [n, 3, S, S], labels int64 [n] (multi-label: uint8 [n, K]), names."""

    images: Tensor
    labels: Tensor
    names: list[str]


@dataclass(slots=True)
class Patient:
    config: TrainConfig
    manifest: Manifest
    run_dir: RunDir
    schedule: Schedule
    learner: Learner
    commit: Commit
    progress: Progress
    lr: float
    """Peak learning rate."""
    weights: dict[str, Tensor]
    """Of the commit, on the device: what the raw model holds."""
    averaged: dict[str, Tensor] | None
    """The EMA's, where there is one."""
    most_images: int
    """Of a split that are looked at."""
    _seen: dict[str, Pictures] = field(default_factory=dict)
    _start: list[dict[str, Tensor] | None] = field(default_factory=list)

    @property
    def classes(self) -> int:
        return len(self.manifest.classes)

    def pictures(self, split: str) -> Pictures:
        """Up to `most_images` photographs of train or val, evenly spread over its rows. Raises DataError if one is gone."""
        if split not in self._seen:
            self._seen[split] = _evaluated(self, split)
        return self._seen[split]

    def start(self) -> dict[str, Tensor] | None:
        """The weights that training began with, drawn or loaded anew; None where they cannot be had any more."""
        if not self._start:
            self._start.append(_first_weights(self.config, self.manifest))
        return self._start[0]

    def use(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts weights into the model, in place."""
        self.learner.model.load_state_dict(tensors)

    @torch.no_grad()
    def logits(
        self, pictures: Pictures, tensors: Mapping[str, Tensor], spec: ImageSpec | None = None, training: bool = False
    ) -> Tensor:
        """float32 [n, K] on the CPU. `spec`: normalised by another's mean and std; `training`: in training mode, in the
        run's batches for evaluation; the model's own statistics stay as they are."""
        learner, parts = self.learner, []
        learner.model.train(training)
        # A copy in training mode: batch norm writes its running statistics into what it is called with.
        given = {name: value.clone() for name, value in tensors.items()} if training else dict(tensors)
        chunk = self.config.loop.eval_batch if training else CHUNK
        for first in range(0, len(pictures.labels), chunk):
            images = self.normalised(pictures.images[first : first + chunk], spec)
            with learner.autocast(), lone_image(learner.model, len(images)):
                parts.append(functional_call(learner.model, given, (images,)).float().cpu())
        return torch.cat(parts)

    def normalised(self, images: Tensor, spec: ImageSpec | None = None) -> Tensor:
        """uint8 [n, 3, S, S] -> as the model gets them; by another's mean and std where `spec` is given."""
        if spec is None:
            return self.learner.normalise(images)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
        return ((images.float() / 255 - mean) / std).to(self.learner.world.device)

    def batches(self, steps: list[int], most: int) -> Iterator[Batch]:
        """What training reads for these steps, augmented, of each step at most `most` images."""
        requests = []
        for step in steps:
            asked = self.schedule.train_request(step, 0, 1)
            requests.append(asked._replace(stop=min(asked.stop, asked.start + most)))
        config = self.config
        data = replace(config.data, cache_gb=0.0)
        batches = stream(self.manifest, data, config.augment, self.learner.spec, config.loop.seed, requests, 0)
        with closing(batches):
            yield from batches


def open_patient(
    run_dir: RunDir, config: TrainConfig, manifest: Manifest, device: torch.device, most_images: int
) -> Patient | None:
    """The run at its newest commit; None where it has none yet. Raises RunError where none of its commits verifies."""
    commit, passed = newest(run_dir.storage)
    for reason in passed:
        logger.warning("doctor: passed over %s", reason)
    if commit is None:
        return None
    size = config.data.image_size
    model = create(config.model, len(manifest.classes), size)
    settled = run_dir.read_settled() or {}
    precision = settled.get("precision", "fp32")
    sampler = Sampler.of(config, manifest)
    schedule = Schedule.of(config, len(sampler), manifest.rows("val").num_rows)
    lr = default_lr(config.optim, config.loop.global_batch, config.model.weights == "none")
    decay = config.ema.decay or 1.0 - 1.0 / max(2, schedule.steps_per_epoch)
    spec = image_spec(model, size, config.data.crop_mode, config.data.crop_pct)
    learner = build_learner(config, model, spec, lr, decay, precision, World(device=device))
    if config.loop.class_weights == "balanced":
        learner.class_weights = balanced_weights(sampler.class_shares(len(manifest.classes))).to(device)
    learner.multilabel = loss_of(config, manifest, device)
    learner.load(commit.load)
    weights = {name: value.detach().clone() for name, value in learner.model.state_dict().items()}
    averaged = learner.ema.tensors() if learner.ema is not None else None
    progress = Progress.from_json(commit.state)
    return Patient(
        config, manifest, run_dir, schedule, learner, commit, progress, lr, weights, averaged, most_images
    )  # fmt: skip


def _evaluated(patient: Patient, split: str) -> Pictures:
    import pyarrow as pa

    rows = patient.manifest.rows(split)
    count = min(patient.most_images, rows.num_rows)
    chosen = rows.take(pa.array(np.linspace(0, rows.num_rows - 1, count).round().astype(np.int64)))
    as_val = chosen.set_column(chosen.column_names.index("split"), "split", pa.array(["val"] * count))
    # Beside rows of train, which the reader wants too.
    table = pa.concat_tables([as_val, patient.manifest.rows("train").slice(0, 1)])
    manifest = replace(patient.manifest, table=table.combine_chunks())
    data = replace(patient.config.data, cache_gb=0.0, sampler="shuffle", min_per_class=0)
    requests = [Request("val", -1, first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    spec = patient.learner.spec
    with closing(stream(manifest, data, AugmentConfig(), spec, 0, requests, 0)) as batches:
        parts = list(batches)
    images, labels = torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    return Pictures(images, labels, chosen.column("path").to_pylist())


def _first_weights(config: TrainConfig, manifest: Manifest) -> dict[str, Tensor] | None:
    """As a session finds them at step 0: `loop.seed` alone fixes what is random in them."""
    torch.manual_seed(config.loop.seed)
    model = create(config.model, len(manifest.classes), config.data.image_size)
    try:
        load_weights(model, config.model.weights, config.model.name, manifest.classes)
    except WeightsError as error:
        logger.info("doctor: no start weights: %s", error)
        return None
    return model.state_dict()


def facts_of(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The newest evaluation's line; empty where there was none."""
    return history[-1] if history else {}
