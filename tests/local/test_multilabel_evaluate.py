"""An evaluation of multi-label data keeps each logit in its row, whoever computed it, and a step learns from soft targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sports_ray.data.loader import Batch
from sports_ray.engine.evaluate import add_batch, empty_sums, summarise
from sports_ray.engine.learner import Progress
from sports_ray.engine.schedule import Schedule
from sports_ray.engine.step import optimiser_step
from sports_ray.engine.world import World
from sports_ray.model.multilabel_loss import MultilabelLoss
from sports_ray.report.explain import Seer
from tests.support.learners import CLASSES, assert_same_bits, epoch_images, new_learner, snapshot
from tests.support.ranks import on_ranks

IMAGES = 23


def several(images: int) -> torch.Tensor:
    """uint8 [n, K]: which classes each image shows; of pixels, so that there is something to learn."""
    pixels, _ = epoch_images(images)
    shares = pixels.float().mean((2, 3)) - 127.5
    return torch.stack([shares[:, 0] > 0, shares[:, 1] > 0, shares.sum(1) > 0, shares[:, 2] < 1], 1).to(torch.uint8)


def trained(world: World, **settings: Any) -> Any:
    learner, schedule = new_learner(World(), model__name="test_resnet", optim__name="adamw", **settings)
    learner.multilabel = MultilabelLoss(CLASSES)
    progress, (pixels, _) = Progress(), epoch_images(schedule.train_images)
    for _ in range(2):
        request = schedule.train_request(progress.step, 0, 1)
        batch = Batch(request, pixels, several(schedule.train_images), torch.arange(schedule.train_images))
        result = optimiser_step(learner, schedule, progress, batch, 1e-2, False)
        assert result.loss > 0 and not result.skipped
        progress.step += 1
    learner.world = world
    return learner


def score(world: World, eval_batch: int, backwards: bool = False, chunk: int = 0) -> dict[str, Any]:
    """Scores of IMAGES images, of which a rank takes the batches that the schedule gives it."""
    learner = trained(world)
    learner.eval_chunk = chunk
    pixels, labels = epoch_images(IMAGES)[0], several(IMAGES)
    requests = list(Schedule(10, IMAGES, 10, 4, eval_batch, 1, 1).eval_requests(world.rank, world.size))
    table = empty_sums(learner, IMAGES)
    for request in reversed(requests) if backwards else requests:
        part = slice(request.start, request.stop)
        add_batch(learner, table, Batch(request, pixels[part], labels[part], torch.arange(IMAGES)[part]))
    return summarise(learner, table)


def test_scores_are_those_of_the_logits_of_raw_and_ema_weights() -> None:
    from sklearn.metrics import average_precision_score  # here: the children of other tests need not import it

    found, learner = score(World(), 5), trained(World())
    pixels, targets = epoch_images(IMAGES)[0], several(IMAGES).numpy()
    with torch.no_grad():
        logits = learner.model.eval()(learner.normalise(pixels))
    assert found["val_map"] == pytest.approx(average_precision_score(targets, logits.numpy()), abs=1e-9)
    assert found["val_images"] == IMAGES and len(found["thresholds"]) == CLASSES
    assert found["ema_val_loss"] != found["val_loss"]


def test_the_order_of_batches_and_the_number_of_ranks_change_no_bit(tmp_path: Path) -> None:
    alone = score(World(), 5)
    assert score(World(), 5, backwards=True) == alone
    assert on_ranks(tmp_path / "two", 2, score, 5) == [alone, alone]


def test_chunks_of_a_batch_after_memory_ran_out_change_scores_by_rounding_alone() -> None:
    whole, chunked = score(World(), 8), score(World(), 8, chunk=3)
    assert chunked["val_map"] == pytest.approx(whole["val_map"], abs=1e-6)
    assert chunked["val_loss"] == pytest.approx(whole["val_loss"], rel=1e-5)


@pytest.mark.long
def test_strict_lanes_give_the_bits_of_one_worker_on_two(tmp_path: Path) -> None:
    alone = on_ranks(tmp_path / "one", 1, strict_step)[0]
    first, second = on_ranks(tmp_path / "two", 2, strict_step)
    assert_same_bits(first, alone)
    assert_same_bits(second, alone)


def strict_step(world: World) -> dict[str, Any]:
    """The weights after one step whose images two ranks share."""
    learner, schedule = new_learner(world, loop__strict=True)
    learner.multilabel = MultilabelLoss(CLASSES, "focal", pos_weight=torch.tensor([1.0, 2.0, 0.5, 4.0]))
    request = schedule.train_request(0, world.rank, world.size)
    part = slice(request.start, request.stop)
    pixels, labels = epoch_images(10)[0], several(10)
    batch = Batch(request, pixels[part], labels[part], torch.arange(10)[part])
    optimiser_step(learner, schedule, Progress(), batch, 0.1, False)
    return snapshot(learner)


def test_the_probability_beside_a_heat_is_that_of_the_class_alone() -> None:
    learner = trained(World())
    pixels, names = epoch_images(3)[0], tuple("abcd")
    spec = learner.spec
    one, many = (
        Seer("run", learner.model.eval(), names, spec, torch.device("cpu"), 10**6, multilabel=multi).look(pixels)
        for multi in (False, True)
    )
    assert torch.allclose(one.probabilities.sum(1), torch.ones(3))
    assert torch.allclose(many.probabilities, one.logits.sigmoid()) and torch.equal(one.heat, many.heat)
