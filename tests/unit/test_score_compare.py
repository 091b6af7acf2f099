"""Paired comparisons equal those of the literature, of full enumeration and of scikit-learn-free hand counts."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import comb

import numpy as np
import pytest

from sports_ray.score.compare import accuracy_interval, bootstrap, compare, mcnemar


@pytest.mark.parametrize(
    ("gained", "lost", "exact", "mid"), [(1, 7, 0.0703, 0.0391), (6, 16, 0.0525, 0.0347), (0, 5, 0.0625, 0.03125)]
)
def test_p_values_are_those_of_fagerland_2013(gained: int, lost: int, exact: float, mid: float) -> None:
    for a, b in [(gained, lost), (lost, gained)]:
        assert mcnemar(a, b, mid=False) == pytest.approx(exact, abs=5e-5)
        assert mcnemar(a, b) == pytest.approx(mid, abs=5e-5)


def test_p_values_equal_exact_fractions() -> None:
    for gained, lost in product(range(12), range(40)):
        n, least = gained + lost, min(gained, lost)
        exact = 2 * sum(Fraction(comb(n, k), 2**n) for k in range(least + 1))
        assert mcnemar(gained, lost, mid=False) == pytest.approx(float(min(exact, 1)), rel=1e-12)
        mid = float(exact - Fraction(comb(n, least), 2**n))
        assert mcnemar(gained, lost) == pytest.approx(mid, rel=1e-12)


def test_p_value_is_1_without_a_difference_and_finite_for_many_images() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == pytest.approx(1.0)
    assert mcnemar(500_000, 500_000) == pytest.approx(1.0, abs=1e-6)
    assert 0.04 < mcnemar(500_000, 501_960) < 0.06, "1.96 standard deviations"
    assert mcnemar(0, 10**6) == 0.0


def enumerated(gained: int, lost: int, images: int) -> tuple[float, float]:
    """Percentiles over all images**images resamples."""
    signs = [1] * gained + [-1] * lost + [0] * (images - gained - lost)
    sums = sorted(sum(draw) for draw in product(signs, repeat=images))
    below = [sum(value <= s for value in sums) / len(sums) for s in range(-images, images + 1)]
    low, high = (next(s for s, share in enumerate(below) if share >= q) - images for q in (0.025, 0.975))
    return low / images, high / images


@pytest.mark.parametrize(
    ("gained", "lost", "images"), [(1, 0, 5), (2, 1, 6), (0, 3, 6), (3, 3, 6), (0, 0, 4), (1, 0, 1)]
)
def test_interval_equals_that_of_all_resamples(gained: int, lost: int, images: int) -> None:
    assert accuracy_interval(gained, lost, images) == enumerated(gained, lost, images)


def test_drawn_resamples_tend_to_the_interval() -> None:
    values = np.repeat([1.0, -1.0, 0.0], [60, 35, 905])
    low, high = accuracy_interval(60, 35, 1000)
    assert bootstrap(values, resamples=4000) == pytest.approx((low, high), abs=0.0015)
    assert low < 0.025 < high and high - low == pytest.approx(
        2 * 1.96 * (0.095 - 0.025**2) ** 0.5 / 1000**0.5, rel=0.05
    )


def test_interval_of_a_million_images_is_the_normal_one() -> None:
    low, high = accuracy_interval(30_000, 29_000, 10**6)
    half = 1.96 * (0.059 - 0.001**2) ** 0.5 / 1000
    assert (low, high) == pytest.approx((0.001 - half, 0.001 + half), abs=3e-6)


def test_interval_turns_with_the_question() -> None:
    low, high = accuracy_interval(40, 22, 500)
    assert accuracy_interval(22, 40, 500) == pytest.approx((-high, -low))
    assert accuracy_interval(0, 0, 500) == (0.0, 0.0)


def test_bootstrap_is_a_function_of_values_and_seed() -> None:
    values = np.random.default_rng(0).normal(size=400)
    first = bootstrap(values, seed=3)
    assert bootstrap(values.copy(), seed=3) == first
    assert bootstrap(values, seed=4) != first
    assert first == pytest.approx((values.mean() - 1.96 / 20, values.mean() + 1.96 / 20), abs=0.012)


def test_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(100):
        low, high = bootstrap(np.random.default_rng(seed).exponential(size=200), seed, resamples=300)
        covered += low <= 1.0 <= high
    assert 86 <= covered <= 99, "95 % of 100, with the noise of 100"


def test_comparison_is_counted_by_hand() -> None:
    best = np.array([True] * 6 + [False] * 4)
    other = np.array([True] * 5 + [False] + [True] * 3 + [False])
    found = compare(other, best)
    assert found["difference"] == pytest.approx(0.2)
    assert found["interval"] == list(accuracy_interval(3, 1, 10))
    assert found["mcnemar_p"] == pytest.approx(2 * (1 + 4) / 16 - 4 / 16)
