"""What an epoch draws: a pure function of (seed, epoch) that has each class as often as was asked for."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from sports_ray.config import DataConfig
from sports_ray.data.augment import draws
from sports_ray.data.order import order
from sports_ray.data.sampler import Sampler
from sports_ray.engine.ledger import Ledger, expected
from sports_ray.engine.schedule import Schedule

SIZES = (70, 20, 7, 3)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), SIZES)).astype(np.int32)
WEIGHTED, COPIES = DataConfig(sampler="weighted"), DataConfig(min_per_class=18)


def histogram(rows: np.ndarray) -> list[int]:
    return np.bincount(LABELS[rows], minlength=4).tolist()


def test_without_settings_an_epoch_is_the_order_that_it_always_was() -> None:
    sampler = Sampler(DataConfig(), 7, LABELS)
    assert len(sampler) == 100
    assert all(np.array_equal(sampler.rows(epoch), order(7, epoch, 100)) for epoch in range(3))


@pytest.mark.parametrize("data", [WEIGHTED, COPIES], ids=["weighted", "copies"])
def test_an_epoch_is_a_function_of_seed_and_epoch_alone(data: DataConfig) -> None:
    sampler = Sampler(data, 7, LABELS)
    forwards = [sampler.rows(epoch) for epoch in range(4)]
    for epoch in (3, 1, 2, 0):  # in another order, and by another one
        assert np.array_equal(Sampler(data, 7, LABELS).rows(epoch), forwards[epoch])
        assert np.array_equal(sampler.rows(epoch), forwards[epoch]) and len(forwards[epoch]) == len(sampler)
    others = [*forwards, Sampler(data, 8, LABELS).rows(0)]
    assert len({rows.tobytes() for rows in others}) == 5


@pytest.mark.parametrize(
    ("data", "known"), [(WEIGHTED, "a8d24c1c1323225b"), (COPIES, "2bc72d4061b7aacc")], ids=["weighted", "copies"]
)
def test_known_answers(data: DataConfig, known: str) -> None:
    rows = np.concatenate([Sampler(data, 7, LABELS).rows(epoch) for epoch in range(3)]).astype("<i8")
    assert hashlib.sha256(rows.tobytes()).hexdigest()[:16] == known


def test_weighted_sampling_gives_every_class_the_same_number() -> None:
    sampler = Sampler(WEIGHTED, 7, LABELS)
    assert len(sampler) == 100 and all(histogram(sampler.rows(epoch)) == [25] * 4 for epoch in range(5))
    three = LABELS[LABELS < 3][:95]
    counts = [np.bincount(three[Sampler(WEIGHTED, 7, three).rows(epoch)]) for epoch in range(3)]
    assert all(sorted(one.tolist()) == [31, 32, 32] for one in counts)
    assert np.sum(counts, axis=0).tolist() == [95, 95, 95]  # the larger part goes round
    assert Sampler(WEIGHTED, 7, three).class_shares(4).tolist() == [95 / 3, 95 / 3, 95 / 3, 0]


def test_weighted_sampling_repeats_no_image_before_the_class_is_through() -> None:
    rows = Sampler(WEIGHTED, 7, LABELS).rows(2)
    for label, size in enumerate(SIZES):
        times = np.bincount(rows[LABELS[rows] == label], minlength=100)[label == LABELS]
        assert times.sum() == 25 and times.min() == 25 // size and times.max() == -(-25 // size)


def test_weighted_sampling_comes_to_all_images_and_mixes_the_classes() -> None:
    sampler = Sampler(WEIGHTED, 7, LABELS)
    seen = np.bincount(np.concatenate([sampler.rows(epoch) for epoch in range(40)]), minlength=100)
    large = seen[LABELS == 0] / 40
    assert abs(large.mean() - 25 / 70) < 1e-12 and large.min() > 0.1 and large.max() < 0.65
    first = LABELS[sampler.rows(0)[:48]]
    assert np.bincount(first, minlength=4).min() >= 5


def test_small_classes_are_copied_up_to_the_least_number_and_others_left_alone() -> None:
    sampler = Sampler(COPIES, 7, LABELS)
    assert len(sampler) == 70 + 20 + 18 + 18
    for epoch in range(3):
        rows = sampler.rows(epoch)
        assert histogram(rows) == [70, 20, 18, 18] == sampler.class_shares(4).tolist()
        assert np.array_equal(np.unique(rows), np.arange(100))
    over = np.bincount(np.concatenate([sampler.rows(epoch) for epoch in range(7)]))
    assert set(over[LABELS == 2].tolist()) == {18}  # 7 x 18 positions for 7 images
    assert set(over[LABELS == 3].tolist()) == {42}


def test_each_copy_stands_at_a_position_of_its_own_and_is_augmented_by_it() -> None:
    rows = Sampler(COPIES, 7, LABELS).rows(0)
    rare = int(np.flatnonzero(LABELS == 3)[0])
    positions = np.flatnonzero(rows == rare).tolist()
    assert len(positions) == 6
    assert len({tuple(draws(7, 0, position, position + 1)[0]) for position in positions}) == 6


@pytest.mark.parametrize("data", [WEIGHTED, COPIES], ids=["weighted", "copies"])
def test_the_ledger_knows_what_was_drawn(data: DataConfig) -> None:
    ledger = Ledger([hashlib.sha256(bytes([row])).hexdigest() for row in range(100)])
    sampler = Sampler(data, 7, LABELS)
    schedule = Schedule(len(sampler), 0, 32, 4, 8, 1, 2)
    found = expected(ledger, schedule, sampler, schedule.total_steps)
    assert found[-1] != expected(ledger, schedule, Sampler(data, 8, LABELS), schedule.total_steps)[-1]
    assert len(found) == schedule.total_steps + 1
