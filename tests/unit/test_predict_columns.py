"""Logits become probabilities, averages by hand, and tables on disk; whatever the logits are, nothing becomes NaN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sports_ray.predict.blocks import ROWS, Shelf
from sports_ray.predict.columns import ENSEMBLE, Damaged, Rows, Shelved, Tables, mean_of, parts, probabilities
from sports_ray.predict.views import views_of
from sports_ray.score.merge import uniform
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
        np.testing.assert_allclose(mean.sum(1), 1, rtol=1e-5)
    both = mean_of([probabilities(wild), probabilities(tame)], average)
    np.testing.assert_allclose(both[:3], softmax(tame)[:3], rtol=1e-4)  # the sound view alone counts


def shelved(store: Path, rows: int, errors: dict[int, str] | None = None) -> list[Shelved]:
    members = []
    for place, name in enumerate("ab"):
        shelf = Shelf.of(str(store), name, {"n": place}, rows, CLASSES)
        members.append(Shelved(name, shelf, views_of("hflip", spec())))
        for number, view in enumerate(members[-1].views):
            values = logits(rows, 10 * place + number)
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
