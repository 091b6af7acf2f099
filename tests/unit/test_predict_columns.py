"""Logits become probabilities, averages by hand, and tables on disk; whatever the logits are, nothing becomes NaN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sports_ray.cli.score_show import refuse_unsound
from sports_ray.errors import DataError
from sports_ray.predict.blocks import ROWS, Shelf
from sports_ray.predict.columns import (
    ENSEMBLE,
    Damaged,
    Rows,
    Shelved,
    Tables,
    independent,
    mean_of,
    output_errors,
    parts,
    probabilities,
)
from sports_ray.predict.views import views_of
from sports_ray.score.evaluate import evaluate_predictions
from sports_ray.score.merge import uniform
from sports_ray.score.rows import NLL_CAP
from tests.unit.test_predict_views import spec

CLASSES = 4


def logits(count: int, seed: int) -> np.ndarray:
    return (3 * np.random.default_rng(seed).normal(size=(count, CLASSES))).astype(np.float32)


def softmax(rows: np.ndarray) -> np.ndarray:
    powers = np.exp(rows.astype(np.float64))
    return powers / powers.sum(1, keepdims=True)


def test_views_and_members_are_averaged_as_by_hand() -> None:
    a, b = logits(9, 0), logits(9, 1)
    np.testing.assert_allclose(probabilities(a), softmax(a), rtol=1e-6)
    np.testing.assert_allclose(
        mean_of([probabilities(a), probabilities(b)], "probs"), (softmax(a) + softmax(b)) / 2, rtol=1e-6
    )
    mean = mean_of([probabilities(a), probabilities(b)], "logits")
    np.testing.assert_allclose(mean, softmax((a + b) / 2), rtol=1e-5)


@pytest.mark.parametrize("average", ["probs", "logits"])
def test_no_logit_whatever_makes_a_probability_that_is_none(average: str) -> None:
    wild = np.array([[np.nan] * 4, [np.inf, 0, 0, 0], [-np.inf, 0, 0, 0], [3e38, -3e38, 0, 0], [1e4] * 4], np.float32)
    tame = logits(5, 0)
    for views in ([wild], [wild, tame], [wild, wild], [tame, wild]):
        mean = mean_of([probabilities(view) for view in views], average)
        assert np.isfinite(mean).all() and (mean >= 0).all()
        known = np.logical_or.reduce([np.isfinite(view).all(1) for view in views])
        np.testing.assert_allclose(mean.sum(1), known, rtol=1e-5)
    both = mean_of([probabilities(wild), probabilities(tame)], average)
    np.testing.assert_allclose(both[:3], softmax(tame)[:3], rtol=1e-4)  # the sound view alone counts


Broken = dict[tuple[str, int], list[int]]
"""(member, number of the view) -> rows whose logits are not finite."""


def shelved(
    store: Path, rows: int, errors: dict[int, str] | None = None, broken: Broken | None = None
) -> list[Shelved]:
    members = []
    for place, name in enumerate("ab"):
        shelf = Shelf.of(str(store), name, {"n": place}, rows, CLASSES)
        members.append(Shelved(name, shelf, views_of("hflip", spec())))
        for number, view in enumerate(members[-1].views):
            values = logits(rows, 10 * place + number)
            values[(broken or {}).get((name, number), []), 1] = np.nan
            for block in range(shelf.blocks):
                start, stop = shelf.span(block)
                bad = [(errors or {}).get(row) for row in range(start, stop)]
                shelf.write(view.name, block, values[start:stop], bad)
    return members


def test_columns_are_members_their_plain_view_and_the_ensemble_and_bad_rows_are_zeros(tmp_path: Path) -> None:
    rows = ROWS + 20
    members = shelved(tmp_path, rows, {ROWS + 3: "an image is empty"})
    tables = Tables(CLASSES)
    for part in parts(members, "probs", uniform(["a", "b"])):
        tables.append(part)
    assert set(tables.columns) == {"a", "a/none", "b", "b/none", ENSEMBLE}
    whole = {name: table[0:rows] for name, table in tables.columns.items()}
    mean = {name: (softmax(logits(rows, n)) + softmax(logits(rows, n + 1))) / 2 for name, n in (("a", 0), ("b", 10))}
    good = np.arange(rows) != ROWS + 3
    np.testing.assert_allclose(whole["a"][good], mean["a"][good], rtol=1e-6)
    np.testing.assert_allclose(whole["b/none"][good], softmax(logits(rows, 10))[good], rtol=1e-6)
    np.testing.assert_allclose(whole[ENSEMBLE][good], ((mean["a"] + mean["b"]) / 2)[good], rtol=1e-6)
    assert all(not table[~good].any() for table in whole.values())
    assert [row for row, error in enumerate(tables.errors) if error] == [ROWS + 3]


BROKEN: Broken = {("a", 0): [0, 1, 2], ("a", 1): [1, 2], ("b", 0): [2], ("b", 1): [2]}
"""Row 0: a's plain view; row 1: all of a; row 2: everything."""


@pytest.mark.parametrize("average", ["probs", "logits"])
def test_a_row_without_a_finite_logit_is_zeros_and_counts_in_no_average(tmp_path: Path, average: str) -> None:
    (part,) = parts(shelved(tmp_path / "broken", 9, None, BROKEN), average, uniform(["a", "b"]))
    (whole,) = parts(shelved(tmp_path / "whole", 9), average, uniform(["a", "b"]))
    empty = {name: np.flatnonzero(~rows.any(1)).tolist() for name, rows in part.columns.items()}
    assert empty == {"a": [1, 2], "a/none": [0, 1, 2], "b": [2], "b/none": [2], ENSEMBLE: [2]}
    np.testing.assert_allclose(part.columns["a"][0], probabilities(logits(9, 1))[0], rtol=1e-5)
    np.testing.assert_allclose(part.columns[ENSEMBLE][1], part.columns["b"][1], rtol=1e-5)
    assert all(np.array_equal(rows[3:], whole.columns[name][3:]) for name, rows in part.columns.items())
    assert part.errors == [None] * 9, "of the photographs"


def test_a_row_without_a_finite_logit_is_scored_as_an_error_with_the_largest_loss(tmp_path: Path) -> None:
    (part,) = parts(shelved(tmp_path, 9, None, BROKEN), "probs", uniform(["a", "b"]))
    scores = evaluate_predictions(part.columns, np.zeros(9, np.int64), list("wxyz"))
    unsound = {one["name"]: one["unsound"] for one in scores["candidates"]}
    assert unsound == {"a": 2, "a/none": 3, "b": 1, "b/none": 1, ENSEMBLE: 1}
    losses = {one["name"]: one["nll"] for one in scores["candidates"]}
    assert losses["a/none"] > 3 * NLL_CAP / 9
    with pytest.raises(DataError, match="predictions of a; got 2 that are not finite; wanted none"):
        refuse_unsound(scores["candidates"])


def test_several_classes_a_photograph_keep_nan_where_nothing_is_finite(tmp_path: Path) -> None:
    for average in ("probs", "logits"):
        members = shelved(tmp_path / average, 9, None, BROKEN)
        (part,) = parts(members, average, uniform(["a", "b"]), multilabel=True)
        empty = {name: np.flatnonzero(np.isnan(rows).all(1)).tolist() for name, rows in part.columns.items()}
        assert empty == {"a": [1, 2], "a/none": [0, 1, 2], "b": [2], "b/none": [2], ENSEMBLE: [2]}
        np.testing.assert_array_equal(part.columns["a"][0], independent(logits(9, 1))[0])
        np.testing.assert_array_equal(part.columns[ENSEMBLE][1], part.columns["b"][1])


def test_logits_of_several_classes_are_averaged_however_sure_they_are(tmp_path: Path) -> None:
    # From 17.3 on, the sigmoid as float32 is 1.0: +18 and -25 became 36.7 and -25.
    firsts = np.array([[18, -18, 40, 200], [30, -3, 0, 1]], np.float32)
    seconds = np.array([[-25, 25, -90, -201], [20, 5, 0, -1]], np.float32)
    members = []
    for name, values in (("a", firsts), ("b", seconds)):
        shelf = Shelf.of(str(tmp_path), name, {}, 2, CLASSES)
        shelf.write("plain", 0, values, [None, None])
        members.append(Shelved(name, shelf, views_of("none", spec())))
    (part,) = parts(members, "logits", uniform(["a", "b"]), multilabel=True)
    mean = (firsts.astype(np.float64) + seconds) / 2
    np.testing.assert_allclose(part.columns[ENSEMBLE], 1 / (1 + np.exp(-mean)), rtol=1e-6)
    np.testing.assert_array_equal(part.columns["a"], independent(firsts))


def test_views_of_several_classes_are_averaged_before_they_are_probabilities(tmp_path: Path) -> None:
    shelf = Shelf.of(str(tmp_path), "a", {}, 1, CLASSES)
    views = views_of("hflip", spec())
    values = np.array([[18, -25, 3, 0]], np.float32), np.array([[-25, 18, 1, 0]], np.float32)
    for view, row in zip(views, values, strict=True):
        shelf.write(view.name, 0, row, [None])
    (part,) = parts([Shelved("a", shelf, views)], "logits", multilabel=True)
    mean = np.array([[-3.5, -3.5, 2.0, 0.0]])
    np.testing.assert_allclose(part.columns["a"], 1 / (1 + np.exp(-mean)), rtol=1e-6)
    np.testing.assert_array_equal(part.columns["a/none"], independent(values[0]))


def test_a_photograph_whose_output_is_not_finite_gets_an_error_that_says_so() -> None:
    table = np.array([[0.5, 0.5], [0, 0], [0, 0]], np.float32)
    found = output_errors(table, [None, None, "an image is empty"], multilabel=False)
    assert found == [None, "the model's output is not finite", "an image is empty"]
    several = np.array([[0.5, np.nan], [0, 0], [np.nan, np.nan]], np.float32)
    found = output_errors(several, [None, None, "an image is empty"], multilabel=True)
    assert found == ["the model's output is not finite", None, "an image is empty"], "all may be improbable"


def test_a_missing_block_names_its_member(tmp_path: Path) -> None:
    members = shelved(tmp_path, 2 * ROWS)
    members[1].shelf.forget("plain-flip", 1)
    with pytest.raises(Damaged) as error:
        list(parts(members, "probs"))
    assert error.value.place == 1


def test_rows_on_disk_are_sliced_like_an_array() -> None:
    values, table = logits(50, 3), Rows(CLASSES)
    for start in range(0, 50, 8):
        table.append(values[start : start + 8])
    assert table.shape == values.shape
    for part in (slice(0, 50), slice(7, 9), slice(48, 60), slice(60, 70), slice(None), slice(5, 2)):
        np.testing.assert_array_equal(table[part], values[part])
