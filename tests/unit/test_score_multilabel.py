"""Multi-label scores are scikit-learn's, thresholds are the best on the images they were fitted on, and nothing is NaN."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from sklearn import metrics

from sports_ray.errors import DataError
from sports_ray.score.evaluate import Candidate
from sports_ray.score.evaluate_multilabel import _resampled_maps, evaluate_multilabel
from sports_ray.score.multilabel import (
    average_precisions,
    chosen,
    fit_thresholds,
    mean_rows,
    scores_of,
    sigmoid,
    training_scores,
)

CLASSES = [f"thing {k}" for k in range(7)]
Bools = NDArray[np.bool_]


def draw(images: int = 400, seed: int = 0, ties: bool = False, hit: float = 1.5) -> tuple[NDArray[np.float32], Bools]:
    """Probabilities and targets of seven classes from common to rare; the last one never occurs."""
    random = np.random.default_rng(seed)
    targets = random.random((images, 7)) < np.array([0.6, 0.4, 0.3, 0.2, 0.1, 0.05, 0.0])
    logits = random.normal(size=targets.shape) + hit * (targets - 0.5)
    probabilities = expit(logits - 0.7)
    return (np.round(probabilities, 1) if ties else probabilities).astype(np.float32), targets


@pytest.mark.parametrize("ties", [False, True])
def test_all_scores_are_scikit_learns(ties: bool) -> None:
    probabilities, targets = draw(ties=ties)
    thresholds = np.array([0.5, 0.4, 0.3, 0.6, 0.2, 0.1, 0.5])
    found = scores_of(probabilities, targets, thresholds)
    predicted = probabilities >= thresholds
    assert found["hamming"] == pytest.approx(metrics.hamming_loss(targets, predicted), abs=1e-12)
    assert found["subset"] == metrics.accuracy_score(targets, predicted)
    for average in ("micro", "macro"):
        wanted = metrics.f1_score(targets, predicted, average=average, zero_division=0)
        assert found[f"f1_{average}"] == pytest.approx(wanted, abs=1e-12)
    each = metrics.precision_recall_fscore_support(targets, predicted, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), each, strict=True):
        assert found["per_class"][name] == pytest.approx(values.tolist(), abs=1e-12)
    defined = [metrics.average_precision_score(targets[:, k], probabilities[:, k]) for k in range(6)]
    assert found["per_class"]["ap"][:6] == pytest.approx(defined, abs=1e-12) and found["per_class"]["ap"][6] is None
    assert found["map"] == pytest.approx(np.mean(defined), abs=1e-12)
    clipped = np.clip(probabilities.astype(np.float64), 2.0**-126, 1)
    losses = [metrics.log_loss(targets[:, k], clipped[:, k], labels=[False, True]) for k in range(7)]
    assert ties or found["nll"] == pytest.approx(np.mean(losses), rel=1e-6)


def test_thresholds_have_the_best_f1_of_all_thresholds_on_the_images_they_were_fitted_on() -> None:
    probabilities, targets = draw(40, seed=3)
    found = fit_thresholds(probabilities, targets)
    for k in range(6):
        every = np.unique(np.append(probabilities[:, k], [0.0, 1.1]))
        best = max(metrics.f1_score(targets[:, k], probabilities[:, k] >= cut, zero_division=0) for cut in every)
        assert metrics.f1_score(targets[:, k], probabilities[:, k] >= found[k]) == best
        gap = np.abs(probabilities[:, k].astype(np.float64) - found[k]).min()
        assert gap > 0, "half-way between two probabilities, so that rounding moves nothing over it"
    assert found[6] == 0.5, "no positive: neutral"


def test_a_threshold_of_one_half_stays_where_it_is_as_good() -> None:
    targets = np.array([[True], [True], [False], [False]])
    assert fit_thresholds(np.array([[0.9], [0.8], [0.3], [0.1]], np.float32), targets).tolist() == [0.5]
    assert fit_thresholds(np.array([[0.9], [0.8], [0.7], [0.1]], np.float32), targets).tolist() == pytest.approx([0.75])
    assert fit_thresholds(np.array([[0.3], [0.2], [0.1], [0.1]], np.float32), targets).tolist() == pytest.approx([0.15])


def test_a_row_that_is_not_finite_predicts_nothing_and_costs_the_most() -> None:
    probabilities, targets = draw(50)
    broken = probabilities.copy()
    broken[7, 2] = np.nan
    thresholds = np.zeros(7)
    assert not chosen(broken, thresholds)[7].any() and chosen(broken, thresholds)[6].all()
    found = scores_of(broken, targets, thresholds)
    assert found["unsound"] == 1 and json.dumps(found, allow_nan=False)
    assert found["nll"] > scores_of(probabilities, targets, thresholds)["nll"] + 1
    assert np.isnan(average_precisions(broken, targets)).tolist() == (~targets.any(0)).tolist()
    assert np.isfinite(fit_thresholds(broken, targets)).all()


def test_members_are_averaged_and_a_broken_row_of_one_counts_in_none() -> None:
    first, second = draw(30)[0], draw(30, seed=1)[0]
    mean = mean_rows([first, second], [0.25, 0.75])
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, 0.25 * first + 0.75 * second, rtol=1e-6)
    sure = mean_rows([np.array([[18.0, -3e38]], np.float32), np.array([[-25.0, -3e38]], np.float32)], [0.5, 0.5])
    assert sure.tolist() == [[-3.5, float(np.float32(-3e38))]], "logits as well"
    broken = first.copy()
    broken[4] = np.nan
    assert np.array_equal(mean_rows([broken, second], [0.5, 0.5])[4], second[4])
    assert np.isnan(mean_rows([broken, broken], [0.5, 0.5])[4]).all()
    assert np.array_equal(mean_rows([first], [1.0]), first)


def test_sigmoid_of_huge_logits_is_0_or_1_without_a_warning() -> None:
    assert sigmoid(np.array([-1e5, 0.0, 1e5], np.float32)).tolist() == [0.0, 0.5, 1.0]


def evaluated(**more: Any) -> dict[str, Any]:
    good, targets = draw(hit=3.0)
    other, _ = draw(seed=0, hit=1.0)
    columns = {"a": good, "b": other, "ensemble": (good + other) / 2}
    named = [Candidate(name=name, kind="ensemble" if name == "ensemble" else "member") for name in columns]
    thresholds = {name: np.full(7, 0.4) for name in columns}
    known = np.ones(len(targets), dtype=bool)
    return evaluate_multilabel(
        **{
            "columns": columns,
            "targets": targets,
            "known": known,
            "classes": CLASSES,
            "thresholds": thresholds,
            "candidates": named,
        }
        | more
    )


def test_an_evaluation_compares_with_the_best_single_on_the_same_images() -> None:
    scores = evaluated()
    assert scores["task"] == "multilabel" and scores["best_single"] == "a" and scores["detailed"] == "ensemble"
    by_name = {one["name"]: one for one in scores["candidates"]}
    worse = by_name["b"]["against_best"]
    assert worse["map_difference"] == by_name["b"]["map"] - by_name["a"]["map"] < 0
    assert worse["map_interval"][0] < worse["map_difference"] < worse["map_interval"][1] < 0
    assert by_name["a"]["against_best"] is None
    for one in by_name.values():
        low, high = one["map_interval"]
        assert low < one["map"] < high and one["images"] == 400
    assert evaluated(best_single="b")["best_single"] == "b"
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores and evaluated() == scores


def test_a_resample_is_scored_as_its_repeated_rows() -> None:
    probabilities, targets = draw(80, seed=5, ties=True)
    draws = [np.random.default_rng(seed).integers(0, 4, 80) for seed in range(3)]
    found = _resampled_maps(probabilities, targets, draws)
    for value, counts in zip(found, draws, strict=True):
        rows = np.repeat(np.arange(80), counts)
        wanted = average_precisions(probabilities[rows], targets[rows])
        assert value == pytest.approx(np.nanmean(wanted), abs=1e-12)


def test_worst_sets_are_the_wrong_ones_with_the_largest_loss() -> None:
    good, targets = draw(hit=3.0)
    scores = evaluated()
    ensemble = (good + draw(seed=0, hit=1.0)[0]) / 2
    wrong = np.flatnonzero(((ensemble >= 0.4) != targets).any(1))
    assert {one["id"] for one in scores["worst"]} <= set(wrong.tolist())
    losses = [one["loss"] for one in scores["worst"]]
    assert losses == sorted(losses, reverse=True) and len(losses) == min(50, len(wrong))
    first = scores["worst"][0]
    assert first["true"] == [CLASSES[k] for k in np.flatnonzero(targets[first["id"]])]
    assert first["predicted"] == [CLASSES[k] for k in np.flatnonzero(ensemble[first["id"]] >= 0.4)]


def test_images_without_labels_are_left_out() -> None:
    known = np.arange(400) % 4 > 0
    scores = evaluated(known=known)
    assert all(one["images"] == 300 for one in scores["candidates"])
    assert all(one["id"] % 4 for one in scores["worst"])
    with pytest.raises(DataError, match="got 0 labelled images"):
        evaluated(known=np.zeros(400, dtype=bool))


def test_scores_in_training_are_at_the_neutral_threshold() -> None:
    probabilities, targets = draw()
    logits = np.log(probabilities / (1 - probabilities.astype(np.float64)))
    found = training_scores(logits, targets, "ema_")
    assert set(found) == {f"ema_val_{name}" for name in ("map", "loss", "f1_macro", "f1_micro", "hamming", "subset")}
    assert found["ema_val_f1_micro"] == pytest.approx(metrics.f1_score(targets, probabilities >= 0.5, average="micro"))
