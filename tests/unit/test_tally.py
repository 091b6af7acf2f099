"""Scores are exact sums: equal to scikit-learn's, and the same bits in any order and any batch size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, top_k_accuracy_score

from sports_ray.score.main_score import wilson
from sports_ray.score.tally import LOSS_CAP, LOSS_UNIT, scores, tally


def draw(images: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(images, classes) * 3, torch.randint(classes, (images,))


@pytest.mark.parametrize(("images", "classes"), [(1, 2), (257, 6), (1000, 102)])
def test_scores_equal_those_of_scikit_learn(images: int, classes: int) -> None:
    logits, labels = draw(images, classes)
    found = scores(tally(logits, labels).tolist())
    every = list(range(classes))
    assert found["val_acc1"] == top_k_accuracy_score(
        labels, logits if classes > 2 else logits.diff()[:, 0], k=1, labels=every
    )
    if classes > 5:
        assert found["val_acc5"] == top_k_accuracy_score(labels, logits, k=5, labels=every)
    else:
        assert found["val_acc5"] == 1.0
    assert found["val_loss"] == pytest.approx(log_loss(labels, logits.double().softmax(1), labels=every), rel=1e-6)


def test_no_order_and_no_batch_size_changes_a_bit() -> None:
    logits, labels = draw(521, 37)
    whole = tally(logits, labels)
    shuffled = torch.randperm(521)
    for size in (1, 2, 7, 64, 300):
        parts = [tally(logits[part], labels[part]) for part in shuffled.split(size)]
        assert torch.equal(torch.stack(parts).sum(0), whole)
    assert whole.dtype == torch.int64


def test_tie_with_the_own_class_is_an_error() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 2.0, 1.0]])
    assert tally(logits, torch.tensor([0, 2, 1]))[:3].tolist() == [3, 1, 3]
    six = torch.zeros(1, 6)
    assert tally(six, torch.tensor([3]))[2] == 0, "all of six classes tied: not among the first five"
    six[0, 5] = -1
    assert tally(six, torch.tensor([3]))[1:3].tolist() == [0, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_logit_that_is_not_finite_is_an_error_with_the_largest_loss(value: float, place: int) -> None:
    logits = torch.tensor([[5.0, 0.0], [5.0, 0.0]])
    logits[0, place] = value
    images, first, fifth, loss = tally(logits, torch.tensor([0, 0])).tolist()
    assert (images, first, fifth) == (2, 1, 1)
    assert loss * LOSS_UNIT == pytest.approx(LOSS_CAP, rel=1e-6)


def test_half_precision_logits_are_scored_in_float32() -> None:
    logits, labels = draw(64, 10)
    half = logits.bfloat16()
    assert torch.equal(tally(half, labels), tally(half.float(), labels))


def test_prefix_stands_before_each_name() -> None:
    assert scores([4, 2, 3, round(0.5 / LOSS_UNIT) * 4], "ema_") == {
        "ema_val_acc1": 0.5, "ema_val_acc5": 0.75, "ema_val_loss": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_interval_is_that_of_newcombe_1998_table_1(correct: int, images: int, low: float, high: float) -> None:
    assert wilson(correct, images) == pytest.approx((low, high), abs=5e-5)
    assert wilson(images - correct, images) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_interval_solves_the_score_equation() -> None:
    for correct, images in [(7, 10), (50, 60), (999, 1000)]:
        for bound in wilson(correct, images):
            assert abs(correct / images - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / images))


def test_interval_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(5, 5)[1] == 1.0
    assert np.isclose(wilson(0, 5)[0], 0.0)
