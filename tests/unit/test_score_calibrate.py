"""Calibration error is that of scikit-learn's curve, and the temperature is the minimum of a convex loss."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from sports_ray.score.calibrate import COLDEST, HOTTEST, at_temperature, ece, log_linear, reliability, temperature
from sports_ray.score.convex import minimise
from sports_ray.score.rows import facts_of
from tests.unit.test_score_multiclass import draw


def calibrated(images: int, classes: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities, and labels drawn by them."""
    random = np.random.default_rng(seed)
    powers = np.exp(2 * random.normal(size=(images, classes)))
    shares = powers / powers.sum(1, keepdims=True)
    return shares, (shares.cumsum(1) < random.random((images, 1))).sum(1).clip(max=classes - 1)


def test_calibration_error_is_that_computed_by_hand() -> None:
    shares = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    table = reliability(facts_of(shares, np.array([0, 1, 0, 0])))
    assert sum(table["count"]) == 4 and table["count"][8] == 2 and table["count"][13] == 2
    assert (table["accuracy"][8], table["accuracy"][13]) == (1.0, 0.5)
    assert (table["confidence"][8], table["confidence"][13]) == pytest.approx((0.6, 0.9), abs=1e-9)
    assert ece(table) == pytest.approx((0.4 + 0.4) / 2, abs=1e-9)
    assert len(table["edges"]) == 16 and table["confidence"][0] == 0


@pytest.mark.parametrize("seed", range(3))
def test_reliability_equals_the_curve_of_scikit_learn(seed: int) -> None:
    facts = facts_of(*draw(3000, 8, seed))
    table = reliability(facts)
    accuracy, confidence = calibration_curve(
        facts.correct().astype(int), facts.confidence, n_bins=15, strategy="uniform"
    )
    used = np.array(table["count"]) > 0
    assert np.array(table["accuracy"])[used] == pytest.approx(accuracy)
    assert np.array(table["confidence"])[used] == pytest.approx(confidence, abs=1e-9)
    weights = np.array(table["count"])[used] / 3000
    assert ece(table) == pytest.approx(float((weights * np.abs(accuracy - confidence)).sum()), abs=1e-9)


def test_confidences_of_zero_and_one_have_a_bin() -> None:
    shares = np.array([[1.0, 0.0], [0.0, 0.0], [0.5, 0.5]], dtype=np.float32)
    assert reliability(facts_of(shares, np.array([0, 0, 0])))["count"][::14] == [1, 1]


def test_no_order_of_the_images_changes_a_bit_of_the_table() -> None:
    shares, labels = draw(4000, 5)
    order = np.random.default_rng(1).permutation(4000)
    assert reliability(facts_of(shares, labels)) == reliability(facts_of(shares[order], labels[order]))


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_temperature_mends_what_was_sharpened(sharpness: float) -> None:
    shares, labels = calibrated(6000, 6)
    spoiled = at_temperature(shares, 1 / sharpness)
    found = temperature(spoiled, labels)
    assert found == pytest.approx(sharpness, rel=0.06)
    mended = at_temperature(spoiled, found)
    assert np.array_equal(mended.argmax(1), spoiled.argmax(1)), "no temperature changes a class"
    if sharpness != 1.0:
        assert ece(reliability(facts_of(mended, labels))) < ece(reliability(facts_of(spoiled, labels))) / 3


def test_temperature_is_the_minimum_of_the_loss() -> None:
    shares, labels = draw(400, 7, hit=1.0)
    best = temperature(shares, labels)

    def loss(one: float) -> float:
        powers = shares.astype(np.float64) ** (1 / one)
        return log_loss(labels, powers / powers.sum(1, keepdims=True), labels=list(range(7)))

    assert loss(best) <= min(loss(one) for one in np.geomspace(COLDEST, HOTTEST, 200)) + 1e-9
    for other in (best * 1.01, best / 1.01):
        assert loss(other) > loss(best)


def test_temperature_has_bounds_where_the_loss_has_no_minimum() -> None:
    right = np.array([[0.9, 0.1]] * 8, dtype=np.float32)
    assert COLDEST <= temperature(right, np.zeros(8, dtype=np.int64)) < 0.2
    assert temperature(right, np.ones(8, dtype=np.int64)) == pytest.approx(HOTTEST)


def test_temperature_ignores_rows_that_are_not_sound() -> None:
    shares, labels = draw(500, 4)
    broken = np.full((3, 4), np.nan, dtype=np.float32)
    with_them = temperature(np.concatenate([shares, broken]), np.concatenate([labels, [0, 1, 2]]))
    assert with_them == pytest.approx(temperature(shares, labels), rel=1e-6)
    assert at_temperature(broken, 2.0).tolist() == [[0.25] * 4] * 3


def test_log_linear_factors_beat_all_others_of_a_grid() -> None:
    shares, labels = draw(600, 5, hit=1.5)
    other, _ = draw(600, 5, seed=9, hit=0.0)
    found = log_linear([shares, other], labels)

    def loss(first: float, second: float) -> float:
        powers = shares.astype(np.float64) ** first * other.astype(np.float64) ** second
        return log_loss(labels, powers / powers.sum(1, keepdims=True), labels=list(range(5)))

    best = loss(*found)
    assert all(best <= loss(a, b) + 1e-7 for a in np.linspace(0, 3, 13) for b in np.linspace(0, 3, 13))


def test_minimum_at_the_edge_of_the_box_is_found_in_few_steps() -> None:
    asked = []

    def bowl(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        asked.append(x)
        matrix, centre = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([3.0, -1.0])
        return float((x - centre) @ matrix @ (x - centre) / 2), matrix @ (x - centre), matrix

    found = minimise(bowl, np.array([0.5, 0.5]), 0.0, 10.0)
    assert found == pytest.approx([3.0 - 0.45, 0.0], abs=1e-8)
    assert len(asked) < 10
