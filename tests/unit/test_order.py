"""The order of images and the cut into steps and lanes: pure functions, whose values never change."""

from __future__ import annotations

import numpy as np
import pytest

from sports_ray.data.order import Orders, generator, order, spans, steps_per_epoch, uniforms, worker_lanes


def test_known_answers_of_the_generator() -> None:
    raw = generator(7, 3, 11, 12, 13).bit_generator.random_raw(3)
    assert [hex(int(word)) for word in raw] == KNOWN_RAW
    assert order(1, 2, 12).tolist() == KNOWN_ORDER
    assert uniforms(5, 2, 1, 3, 4, 4)[0].tolist() == KNOWN_UNIFORMS


KNOWN_RAW = ["0x5bdd69c145352959", "0x51ce7f8326a4b5f4", "0xfa7b6d321a4dae09"]
KNOWN_ORDER = [11, 8, 5, 1, 4, 7, 0, 9, 3, 6, 10, 2]
KNOWN_UNIFORMS = [0.42798951436404975, 0.75258017236089, 0.022845130371102473, 0.6376130061975881]


@pytest.mark.parametrize("other", [(8, 3, 11, 12, 13), (7, 4, 11, 12, 13), (7, 3, 12, 12, 13), (7, 3, 11, 12, 14)])
def test_another_seed_domain_or_counter_gives_another_stream(other: tuple[int, ...]) -> None:
    raw = generator(7, 3, 11, 12, 13).bit_generator.random_raw(64)
    assert not np.intersect1d(raw, generator(*other).bit_generator.random_raw(64)).size


def test_order_is_a_permutation_that_changes_with_epoch_and_seed() -> None:
    orders = [order(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1, 2)]
    for rows in orders:
        assert rows.dtype == np.int64
        assert np.array_equal(np.sort(rows), np.arange(1000))
    assert len({rows.tobytes() for rows in orders}) == len(orders)


def test_every_image_is_as_likely_at_every_place() -> None:
    first = np.bincount([int(order(0, epoch, 10)[0]) for epoch in range(2000)], minlength=10)
    assert abs(first - 200).max() < 60  # 4.5 standard deviations


@pytest.mark.parametrize("start", [0, 1, 5, 19])
def test_uniforms_depend_on_the_position_alone(start: int) -> None:
    whole = uniforms(3, 2, 9, 0, 20, 8)
    assert np.array_equal(uniforms(3, 2, 9, start, 20, 8), whole[start:])
    assert whole.min() >= 0 and whole.max() < 1
    assert len(np.unique(whole)) == whole.size


@pytest.mark.parametrize("n", [1, 31, 32, 33, 1001])
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_steps_cover_an_epoch_once_in_nearly_equal_parts(n: int, batch: int) -> None:
    steps = steps_per_epoch(n, batch)
    cuts = [spans(n, steps, step) for step in range(steps)]
    assert [position for start, stop in cuts for position in range(start, stop)] == list(range(n))
    sizes = {stop - start for start, stop in cuts}
    assert max(sizes) <= batch and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_workers_share_the_lanes_in_contiguous_ranges(world: int) -> None:
    ranges = [worker_lanes(4, rank, world) for rank in range(world)]
    assert [lane for lanes in ranges for lane in lanes] == [0, 1, 2, 3]
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@pytest.mark.parametrize("ahead_from", [10**9, 5], ids=["inline", "ahead"])
def test_orders_of_a_run_are_those_of_its_epochs_and_two_are_kept(
    monkeypatch: pytest.MonkeyPatch, ahead_from: int
) -> None:
    monkeypatch.setattr("sports_ray.data.order._AHEAD_FROM", ahead_from)
    orders = Orders(lambda epoch: order(7, epoch, 1000), 1000)
    for epoch in (0, 0, 1, 2, 2, 3, 9, 10, 4):
        assert orders.of(epoch).dtype == np.int32 and np.array_equal(orders.of(epoch), order(7, epoch, 1000))
        assert len(orders._found) <= 2
