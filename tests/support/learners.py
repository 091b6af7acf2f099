"""A small learner and the batches of an epoch, without files: for tests of single steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sports_ray.data.loader import Batch
from sports_ray.engine.learner import Learner, Progress, build_learner
from sports_ray.engine.schedule import Schedule
from sports_ray.engine.step import StepResult, optimiser_step
from sports_ray.engine.world import World
from sports_ray.model.build import create, image_spec
from sports_ray.recipe import build_config

CLASSES = 4
SETTINGS: dict[str, Any] = {
    "model.name": "test_vit",
    "data.image_size": 32,
    "loop.global_batch": 10,
    "loop.epochs": 3,
    "augment.mixup": 0.2,
    "augment.cutmix": 1.0,
    "optim.name": "sgd",
    "optim.momentum": 0.0,
    "optim.weight_decay": 0.0,
    "optim.clip": 0.0,
}
"""With plain SGD at rate 1 a step changes the parameters by minus the gradient."""


def new_learner(world: World, images: int = 10, precision: str = "fp32", **settings: Any) -> tuple[Learner, Schedule]:
    """A learner that every rank builds alike; `settings` with `__` for the dot."""
    named = {key.replace("__", "."): value for key, value in settings.items()}
    config = build_config(None, {**SETTINGS, **named})
    torch.manual_seed(config.loop.seed)
    size = config.data.image_size
    model = create(config.model, CLASSES, size)
    learner = build_learner(config, model, image_spec(model, size), 1.0, 0.9, precision, world)
    return learner, Schedule.of(config, images, 0)


def epoch_images(images: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """uint8 [n, 3, S, S] and labels [n], the same in every process."""
    draw = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (images, 3, size, size), generator=draw, dtype=torch.uint8)
    return pixels, torch.randint(CLASSES, (images,), generator=draw)


def batch_of(schedule: Schedule, step: int, world: World, pixels: Tensor, labels: Tensor) -> Batch:
    """What a rank reads for a step, where position and row are the same."""
    request = schedule.train_request(step, world.rank, world.size)
    part = slice(request.start, request.stop)
    return Batch(request, pixels[part], labels[part], torch.arange(request.start, request.stop))


def take_step(
    learner: Learner, schedule: Schedule, progress: Progress, lr: float = 1.0, stop: bool = False
) -> StepResult:
    """One step on `epoch_images`; counts it in `progress`."""
    pixels, labels = epoch_images(schedule.train_images, learner.spec.train_size)
    batch = batch_of(schedule, progress.step, learner.world, pixels, labels)
    result = optimiser_step(learner, schedule, progress, batch, lr, stop)
    progress.step += 1
    return result


def snapshot(learner: Learner) -> dict[str, Tensor]:
    """Copies of all that a checkpoint would hold, by `file/name`."""
    return {
        f"{file}/{name}": tensor.detach().clone(memory_format=torch.contiguous_format)
        for file, tensors in learner.tensors().items()
        for name, tensor in tensors.items()
    }


def assert_same_bits(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert not different, f"differ: {different}"


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """To `tolerance`, relative to the largest value of each tensor, and the resolution of a weight of about one."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        error = (found[name].double() - tensor.double()).abs().max() if tensor.numel() else torch.zeros(())
        assert error <= tolerance * float(tensor.double().abs().max()) + 3e-7, f"{name} differs by {error}"
