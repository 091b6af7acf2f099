"""Who reads what, and when: every image once an epoch, whatever the number of workers and wherever a run goes on."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from sports_ray.config import LoopConfig, TrainConfig
from sports_ray.data.order import Request
from sports_ray.engine.schedule import Schedule

SHAPES = [
    # train, val, batch, lanes, eval batch, eval every, epochs
    (48, 12, 12, 4, 5, 1, 2),
    (37, 11, 10, 4, 4, 2, 3),
    (7, 1, 3, 3, 2, 1, 3),
    (5, 9, 32, 4, 4, 1, 2),
    (61, 0, 16, 7, 4, 1, 2),
    (3, 3, 32, 8, 1, 1, 2),
]
WORLDS = [1, 2, 3, 4]


def schedule_of(shape: tuple[int, ...]) -> Schedule:
    train, val, batch, lanes, eval_batch, eval_every, epochs = shape
    return Schedule(train, val, batch, lanes, eval_batch, eval_every, epochs)


CASES = [(shape, world) for shape, world in itertools.product(SHAPES, WORLDS) if world <= shape[3]]


@pytest.mark.parametrize(("shape", "world"), CASES)
def test_from_any_step_on_every_position_that_remains_is_read_exactly_once(shape: tuple[int, ...], world: int) -> None:
    plan = schedule_of(shape)
    for step in range(plan.total_steps + 1):
        read: Counter[tuple[int, int]] = Counter()
        for rank in range(world):
            for request in plan.requests(step, True, rank, world):
                if request.split == "train":
                    read.update((request.epoch, position) for position in range(request.start, request.stop))
        epoch, first = plan.epoch_of(step), plan.step_span(step)[0] if step < plan.total_steps else 0
        remain = [
            (e, p) for e in range(epoch, plan.epochs) for p in range(plan.train_images) if (e, p) >= (epoch, first)
        ]
        assert read == Counter(remain)


@pytest.mark.parametrize(("shape", "world"), CASES)
def test_requests_after_a_resume_are_the_tail_of_the_unbroken_ones(shape: tuple[int, ...], world: int) -> None:
    plan = schedule_of(shape)
    for rank in range(world):
        unbroken = list(plan.requests(0, False, rank, world))
        evaluation = list(plan.eval_requests(rank, world))
        for step in range(plan.total_steps + 1):
            tail = list(plan.requests(step, True, rank, world))
            assert tail == unbroken[len(unbroken) - len(tail) :]
            if plan.evaluates_after(step):
                again = list(plan.requests(step, False, rank, world))
                assert again == evaluation + tail == unbroken[len(unbroken) - len(again) :]


@pytest.mark.parametrize(("shape", "world"), CASES)
def test_an_evaluation_reads_every_row_once_in_batches_that_no_world_changes(
    shape: tuple[int, ...], world: int
) -> None:
    plan = schedule_of(shape)
    shares = [list(plan.eval_requests(rank, world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1, "a rank with fewer batches would leave the others waiting"
    batches = sorted((r.start, r.stop) for share in shares for r in share if r.stop > r.start)
    whole = range(0, plan.val_images, plan.eval_batch)
    assert batches == [(start, min(start + plan.eval_batch, plan.val_images)) for start in whole]
    assert {(r.split, r.epoch) for share in shares for r in share} <= {("val", -1)}


@pytest.mark.parametrize(("shape", "world"), CASES)
def test_lanes_of_all_workers_are_those_of_one_and_cut_the_step_evenly(shape: tuple[int, ...], world: int) -> None:
    plan = schedule_of(shape)
    for step in range(plan.total_steps):
        alone = plan.lane_spans(step, 0, 1)
        assert list(itertools.chain(*(plan.lane_spans(step, rank, world) for rank in range(world)))) == alone
        first, last = plan.step_span(step)
        assert [alone[0][1], *(stop for _, _, stop in alone)] == [first, *(start for _, start, _ in alone[1:]), last]
        sizes = {stop - start for _, start, stop in alone}
        assert max(sizes) - min(sizes) <= 1 and len(alone) == plan.lanes


@pytest.mark.parametrize("shape", SHAPES)
def test_no_step_of_an_epoch_is_much_smaller_than_another(shape: tuple[int, ...]) -> None:
    plan = schedule_of(shape)
    sizes = [stop - start for start, stop in map(plan.step_span, range(plan.steps_per_epoch))]
    assert sum(sizes) == plan.train_images and max(sizes) <= plan.global_batch
    assert max(sizes) - min(sizes) <= 1


def test_evaluations_follow_every_nth_epoch_and_the_last() -> None:
    plan = Schedule(10, 4, 5, 2, 4, 3, 7)
    assert [step for step in range(plan.total_steps + 1) if plan.evaluates_after(step)] == [6, 12, 14]
    without = Schedule(10, 0, 5, 2, 4, 3, 7)
    assert not any(without.evaluates_after(step) for step in range(15))
    assert not any(request.split == "val" for request in without.requests(0, False, 0, 1))


def test_the_ends_that_a_run_had_before_it_was_extended_stay_ends() -> None:
    plan = Schedule(10, 4, 5, 2, 4, 3, 9, lengths=(4, 7))
    assert [step // 2 for step in range(plan.total_steps + 1) if plan.evaluates_after(step)] == [3, 4, 6, 7, 9]
    assert [plan.epochs_left(2 * epoch) for epoch in range(10)] == [4, 3, 2, 1, 3, 2, 1, 2, 1, 0]
    assert [Schedule(10, 4, 5, 2, 4, 3, 3).epochs_left(step) for step in range(6)] == [3, 3, 2, 2, 1, 1]


def test_evaluation_comes_between_the_epochs() -> None:
    plan = Schedule(4, 3, 2, 1, 2, 1, 2)
    assert list(plan.requests(0, False, 0, 1)) == [
        Request("train", 0, 0, 2), Request("train", 0, 2, 4), Request("val", -1, 0, 2), Request("val", -1, 2, 3),
        Request("train", 1, 0, 2), Request("train", 1, 2, 4), Request("val", -1, 0, 2), Request("val", -1, 2, 3),
    ]  # fmt: skip


def test_sizes_come_from_the_settings() -> None:
    config = TrainConfig(loop=LoopConfig(epochs=3, global_batch=8, lanes=2, eval_batch=5, eval_every=2))
    plan = Schedule.of(config, 20, 7)
    assert plan == Schedule(20, 7, 8, 2, 5, 2, 3)
    assert (plan.steps_per_epoch, plan.total_steps, plan.epoch_of(2), plan.epoch_of(3)) == (3, 9, 0, 1)
