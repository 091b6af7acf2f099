"""Raw and EMA weights are scored side by side, exactly, and scoring leaves no trace."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from sports_ray.data.loader import Batch
from sports_ray.data.order import Request
from sports_ray.engine.evaluate import add_batch, empty_sums, summarise
from sports_ray.engine.learner import Learner, Progress
from sports_ray.engine.schedule import Schedule
from sports_ray.engine.world import World
from tests.support.learners import assert_same_bits, epoch_images, new_learner, snapshot, take_step
from tests.support.ranks import on_ranks

IMAGES = 23


def trained(world: World, **settings: Any) -> Learner:
    learner, schedule = new_learner(World(), model__name="test_resnet", optim__name="adamw", **settings)
    progress = Progress()
    for _ in range(2):
        take_step(learner, schedule, progress, lr=1e-2)
    learner.world = world
    return learner


def score(world: World, eval_batch: int, backwards: bool = False) -> dict[str, float]:
    """Scores of IMAGES images, of which a rank takes the batches that the schedule gives it."""
    learner = trained(world)
    pixels, labels = epoch_images(IMAGES)
    schedule = Schedule(10, IMAGES, 10, 4, eval_batch, 1, 1)
    requests = list(schedule.eval_requests(world.rank, world.size))
    sums = empty_sums(learner)
    for request in reversed(requests) if backwards else requests:
        part = slice(request.start, request.stop)
        add_batch(learner, sums, Batch(request, pixels[part], labels[part], torch.arange(IMAGES)[part]))
    return summarise(learner, sums)


def test_scores_are_those_of_plain_torch_for_raw_and_ema_weights() -> None:
    learner, found = trained(World()), score(World(), 5)
    pixels, labels = epoch_images(IMAGES)
    assert learner.ema is not None
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (learner.spec.mean, learner.spec.std))
    averaged = copy.deepcopy(learner.model)
    averaged.load_state_dict(learner.ema.tensors())
    for prefix, model in (("", learner.model), ("ema_", averaged)):
        with torch.no_grad():
            logits = model.eval()((pixels / 255 - mean) / std)
        assert found[f"{prefix}val_acc1"] == (logits.argmax(1) == labels).float().mean().item() or (
            found[f"{prefix}val_acc1"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
        )
        loss = torch.nn.functional.cross_entropy(logits, labels).item()
        assert found[f"{prefix}val_loss"] == pytest.approx(loss, rel=1e-5)
    assert found["val_images"] == IMAGES
    assert found["val_loss"] != found["ema_val_loss"], "both scores come from the same weights"


def test_order_of_batches_and_number_of_ranks_change_no_bit(tmp_path: Path) -> None:
    alone = score(World(), 5)
    assert score(World(), 5, backwards=True) == alone
    assert on_ranks(tmp_path, 2, score, 5) == [alone, alone]
    # 23 images in batches of 12 for 3 ranks: the third has an empty batch.
    wide = score(World(), 12)
    assert on_ranks(tmp_path / "three", 3, score, 12) == [wide] * 3


def test_scoring_changes_nothing_that_learns() -> None:
    learner = trained(World())
    before = snapshot(learner)
    pixels, labels = epoch_images(4)
    add_batch(learner, empty_sums(learner), Batch(Request("val", -1, 0, 4), pixels, labels, torch.arange(4)))
    assert_same_bits(snapshot(learner), before)


def test_without_ema_there_are_only_raw_scores() -> None:
    learner = trained(World(), ema__enabled=False)
    pixels, labels = epoch_images(4)
    sums = empty_sums(learner)
    add_batch(learner, sums, Batch(Request("val", -1, 0, 4), pixels, labels, torch.arange(4)))
    assert sorted(summarise(learner, sums)) == ["val_acc1", "val_acc5", "val_images", "val_loss"]
    assert sums[1].tolist() == [0, 0, 0, 0]
