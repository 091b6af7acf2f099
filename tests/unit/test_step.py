"""One optimiser step: the same update on one rank or several, at once or in micro-batches, or none at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sports_ray.engine.learner import Progress
from sports_ray.engine.world import World
from tests.support.learners import (
    CLASSES,
    assert_close,
    assert_same_bits,
    epoch_images,
    new_learner,
    snapshot,
    take_step,
)
from tests.support.ranks import on_ranks

ROUNDING = 2e-5
"""float32 sums of some thousand terms in another order."""


def train(world: World, steps: int, settings: dict[str, Any], stop_at: int = -1, stop_rank: int = 0) -> dict[str, Any]:
    """`steps` steps at rate 1; what they left and what they said."""
    learner, schedule = new_learner(world, **settings)
    start, progress = snapshot(learner), Progress(micro_batch=learner.config.loop.micro_batch)
    results = []
    for step in range(steps):
        stop = step == stop_at and world.rank == stop_rank
        results.append(take_step(learner, schedule, progress, stop=stop))
    return {
        "start": start,
        "end": snapshot(learner),
        "stops": [r.stop for r in results],
        "losses": [r.loss for r in results],
        "images": [r.images for r in results],
    }


def change(found: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Minus the gradient, by parameter."""
    return {
        name: (found["end"][name].double() - tensor.double())
        for name, tensor in found["start"].items()
        if name.startswith("model/")
    }


@pytest.mark.parametrize(("ranks", "model"), [(2, "test_vit"), (3, "test_convnext")])
def test_gradient_of_several_ranks_with_uneven_lanes_is_that_of_one(tmp_path: Path, ranks: int, model: str) -> None:
    settings = {"model__name": model}
    alone = train(World(), 1, settings)
    several = on_ranks(tmp_path, ranks, train, 1, settings)
    assert max(float(delta.abs().max()) for delta in change(alone).values()) > 1e-2, "nothing was learned"
    for found in several:
        assert_same_bits(found["end"], several[0]["end"])
        assert_close(change(found), change(alone), ROUNDING)
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert found["images"] == [10]


def test_a_rank_without_images_takes_part(tmp_path: Path) -> None:
    settings = {"loop__global_batch": 4, "images": 2, "augment__mixup": 0.0, "augment__cutmix": 0.0}
    alone = train(World(), 1, settings)
    several = on_ranks(tmp_path, 3, train, 1, settings)  # lanes of 0, 1, 0 and 1 images: the first rank has none
    for found in several:
        assert_same_bits(found["end"], several[0]["end"])
        assert_close(change(found), change(alone), ROUNDING)


def test_batch_norm_statistics_are_the_same_everywhere_and_a_stop_reaches_all_at_its_step(tmp_path: Path) -> None:
    settings = {"model__name": "test_resnet", "augment__cutmix": 0.0, "optim__name": "adamw"}
    alone = train(World(), 1, settings)
    first, second = on_ranks(tmp_path / "one", 2, train, 1, settings)
    name = "model/conv1.1.running_mean"
    # The first layer sees the same input on one rank and on two: the mean over ranks, weighted by images, is the mean.
    assert_close({name: first["end"][name]}, {name: alone["end"][name]}, ROUNDING)
    assert first["end"][name].abs().max() > 0
    first, second = on_ranks(tmp_path / "three", 2, train, 3, settings, 1, 1)
    assert_same_bits(first["end"], second["end"])
    assert first["stops"] == second["stops"] == [False, True, False]


def test_last_image_of_a_step_trains_alone_a_model_whose_last_map_is_one_pixel() -> None:
    found = train(World(), 1, {"model__name": "resnet18", "loop__micro_batch": 9})
    assert found["images"] == [10] and all(bool(tensor.isfinite().all()) for tensor in found["end"].values())
    assert max(float(delta.abs().max()) for delta in change(found).values()) > 1e-2, "nothing was learned"


@pytest.mark.parametrize(("images", "micros"), [(10, (1, 5, 7)), (9, (5,))])
def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch(images: int, micros: tuple[int, ...]) -> None:
    whole = train(World(), 1, {"images": images})
    for micro in micros:
        parts = train(World(), 1, {"images": images, "loop__micro_batch": micro})
        assert_close(change(parts), change(whole), ROUNDING)
        assert parts["losses"] == pytest.approx(whole["losses"], rel=1e-6)
        assert parts["images"] == [images]


def test_loss_and_update_are_those_of_plain_torch() -> None:
    settings: dict[str, Any] = {"augment__mixup": 0.0, "augment__cutmix": 0.0, "augment__smoothing": 0.1}
    found = train(World(), 1, settings)
    learner, _ = new_learner(World(), **settings)
    pixels, labels = epoch_images(10)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (learner.spec.mean, learner.spec.std))
    loss = torch.nn.functional.cross_entropy(learner.model((pixels / 255 - mean) / std), labels, label_smoothing=0.1)
    loss.backward()
    named = dict(learner.model.named_parameters())
    wanted = {f"model/{name}": -p.grad.double() for name, p in named.items() if p.grad is not None}
    assert len(wanted) == len(named)
    assert found["losses"] == pytest.approx([loss.item()], rel=1e-5)
    assert_close({name: change(found)[name] for name in wanted}, wanted, ROUNDING)


def test_clipping_bounds_the_norm_of_the_update() -> None:
    def norm(found: dict[str, Any]) -> float:
        return float(torch.cat([delta.flatten() for delta in change(found).values()]).norm())

    free, clipped = train(World(), 1, {}), train(World(), 1, {"optim__clip": 0.5})
    loose = train(World(), 1, {"optim__clip": 1e6})
    assert norm(free) > 0.6
    assert norm(clipped) == pytest.approx(0.5, rel=1e-4)
    assert_same_bits(loose["end"], free["end"])


def test_mixing_is_keyed_by_step_and_lane() -> None:
    first = train(World(), 2, {"images": 10, "loop__global_batch": 5})
    again = train(World(), 2, {"images": 10, "loop__global_batch": 5})
    other = train(World(), 2, {"images": 10, "loop__global_batch": 5, "loop__lanes": 2})
    assert_same_bits(first["end"], again["end"])
    assert first["losses"] != other["losses"]


@pytest.mark.parametrize("images", [2, 9])
def test_last_steps_of_fewer_images_count_each_image_once(images: int) -> None:
    found = train(World(), 2, {"images": images, "loop__global_batch": 5})
    assert sum(found["images"]) == images * (2 if images == 2 else 1)


def test_classes_are_as_many_as_the_labels_need() -> None:
    assert int(epoch_images(100)[1].max()) == CLASSES - 1
