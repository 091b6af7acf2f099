"""Scores of single-label predictions equal scikit-learn's, count ties and broken rows as errors, and are never NaN."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support, top_k_accuracy_score

from sports_ray.errors import DataError
from sports_ray.score import rows as rows_module
from sports_ray.score.breakdown import by_frequency, by_group, read_groups
from sports_ray.score.main_score import wilson
from sports_ray.score.multiclass import confused_pairs, confusion, extremes, nll, per_class, worst
from sports_ray.score.rows import NLL_CAP, Facts, facts_of, read_facts


def draw(images: int, classes: int, seed: int = 0, hit: float = 2.0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Softmaxed noise with `hit` added to the own class's logit: probabilities and labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=images)
    logits = random.normal(size=(images, classes))
    logits[np.arange(images), labels] += hit
    powers = np.exp(logits)
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize(("images", "classes"), [(1, 2), (257, 6), (1000, 102), (40, 30)])
def test_scores_equal_those_of_scikit_learn(images: int, classes: int) -> None:
    shares, labels = draw(images, classes)
    facts, every = facts_of(shares, labels), list(range(classes))
    predicted = shares.argmax(1)
    if classes > 2:
        assert facts.correct().mean() == top_k_accuracy_score(labels, shares, k=1, labels=every)
    if classes > 5:
        assert facts.correct(5).mean() == top_k_accuracy_score(labels, shares, k=5, labels=every)
    exact = shares.astype(np.float64) / shares.sum(1, dtype=np.float64, keepdims=True)
    assert nll(facts) == pytest.approx(log_loss(labels, exact, labels=every), abs=1e-7)
    counts = confusion(facts, classes)
    assert np.array_equal(counts, confusion_matrix(labels, predicted, labels=every))
    wanted = precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0)
    found = per_class(counts)
    for name, values in zip(("precision", "recall", "f1", "support"), wanted, strict=True):
        assert found[name] == pytest.approx(values.tolist(), abs=1e-12), name
    assert np.array_equal(facts.predicted, predicted)
    assert np.allclose(facts.confidence, exact.max(1))


def test_tie_with_the_own_class_is_an_error_and_the_other_class_is_predicted() -> None:
    shares = np.array([[0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [0.25, 0.5, 0.25], [1 / 3, 1 / 3, 1 / 3]], dtype=np.float32)
    facts = facts_of(shares, np.array([0, 1, 1, 2]))
    assert facts.correct().tolist() == [False, False, True, False]
    assert facts.predicted.tolist() == [1, 0, 1, 0]
    counts = confusion(facts, 3)
    assert counts.diagonal().sum() == facts.correct().sum() == 1


def test_six_tied_classes_are_not_among_the_first_five() -> None:
    shares = np.full((2, 6), 1 / 6, dtype=np.float32)
    shares[1, 5] = 0
    assert facts_of(shares, np.array([3, 3])).correct(5).tolist() == [False, True]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.1, 3e38])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_no_value_makes_a_score_nan(value: float, place: int, dtype: type) -> None:
    shares = np.array([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0]])
    shares[0, place] = value
    with np.errstate(over="ignore"):
        facts = facts_of(shares.astype(dtype), np.array([0, 0]))
    sound = value == 3e38 and dtype is not np.float16
    assert facts.sound.tolist() == [sound, True]
    if not sound:
        assert (facts.predicted[0], facts.confidence[0], facts.loss[0]) == (1, 0.0, NLL_CAP)
        assert not facts.correct()[0] and not facts.correct(5)[0]
    assert facts.correct()[1]
    assert math.isfinite(nll(facts)) and np.isfinite(facts.confidence).all()


def test_row_of_zeros_is_an_error_whatever_its_label() -> None:
    facts = facts_of(np.zeros((3, 3), dtype=np.float32), np.array([0, 1, 2]))
    assert facts.predicted.tolist() == [1, 0, 0]
    assert not facts.correct().any() and not facts.sound.any()
    assert confusion(facts, 3).sum() == 3


def test_loss_of_a_class_without_any_probability_is_the_largest() -> None:
    facts = facts_of(np.array([[1.0, 0.0], [1.0, 0.0]], dtype=np.float32), np.array([0, 1]))
    assert facts.loss.tolist() == [0.0, NLL_CAP]
    assert nll(facts) == pytest.approx(NLL_CAP / 2, rel=1e-9)


def equal(one: Facts, other: Facts) -> bool:
    return all(np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(Facts))


@pytest.mark.parametrize("size", [1, 7, 60, 1000, 10**6])
def test_no_chunk_size_changes_a_fact(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shares, labels = draw(257, 6)
    shares[[3, 200]] = np.nan
    labels[[0, 100, 256]] = -1
    known = labels >= 0
    monkeypatch.setattr(rows_module, "CHUNK_VALUES", size)
    assert equal(read_facts(shares, labels), facts_of(shares[known], labels[known]))


def test_no_order_of_the_images_changes_a_bit_of_the_loss() -> None:
    facts = facts_of(*draw(5000, 12))
    whole = nll(facts)
    for seed in range(50):
        order = np.random.default_rng(seed).permutation(5000)
        assert nll(replace(facts, loss=facts.loss[order])) == whole


def planted() -> tuple[Facts, NDArray[np.int64], list[str]]:
    """Five classes: archery always right, baseball never, one mistake of curling, and no image of diving."""
    pairs = [(0, 0)] * 3 + [(1, 2)] * 4 + [(1, 0)] + [(2, 2)] * 2 + [(2, 1)] + [(4, 4)] * 2 + [(4, 2)] * 4
    labels = np.array([true for true, _ in pairs])
    shares = np.full((len(pairs), 5), 0.05, dtype=np.float32)
    for place, (_, predicted) in enumerate(pairs):
        shares[place, predicted] = 0.5 + 0.02 * place
    return facts_of(shares, labels), 1000 - np.arange(len(pairs)), ["archery", "baseball", "curling", "diving", "epee"]


def test_planted_extremes_are_found_and_absent_classes_are_in_neither() -> None:
    facts, _, classes = planted()
    assert extremes(confusion(facts, 5), classes) == (["archery"], ["baseball"])


def test_planted_pairs_are_found_with_their_images() -> None:
    facts, ids, classes = planted()
    found = confused_pairs(facts, ids, classes)
    assert [(pair["true"], pair["predicted"], pair["count"]) for pair in found] == [
        ("baseball", "curling", 4), ("epee", "curling", 4), ("baseball", "archery", 1), ("curling", "baseball", 1),
    ]  # fmt: skip
    assert found[0]["ids"] == [994, 995, 996, 997]
    assert [pair["count"] for pair in confused_pairs(facts, ids, classes, pairs=2, ids_each=3)] == [4, 4]
    assert confused_pairs(facts, ids, classes, ids_each=2)[1]["ids"] == [984, 985]


def test_worst_mistakes_come_first() -> None:
    facts, ids, classes = planted()
    found = worst(facts, ids, classes, count=3)
    assert [entry["id"] for entry in found] == [984, 985, 986]
    assert (found[0]["true"], found[0]["predicted"]) == ("epee", "curling")
    assert found[0]["confidence"] == pytest.approx((0.5 + 0.02 * 16) / (0.7 + 0.02 * 16), rel=1e-6)
    assert len(worst(facts, ids, classes)) == 10


def test_no_mistake_means_no_pair() -> None:
    facts = facts_of(np.eye(3, dtype=np.float32), np.arange(3))
    assert confused_pairs(facts, np.arange(3), ["a", "b", "c"]) == worst(facts, np.arange(3), ["a", "b", "c"]) == []


def test_accuracy_by_frequency_is_that_computed_by_hand() -> None:
    facts, _, classes = planted()
    found = by_frequency(confusion(facts, 5), np.array([10, 10, 50, 7, 90]), classes, parts=2)
    assert [(part["train_images"], part["classes"]) for part in found] == [
        ([7, 10], ["archery", "baseball", "diving"]), ([50, 90], ["curling", "epee"]),
    ]  # fmt: skip
    assert [(part["images"], part["acc1"]) for part in found] == [(8, 3 / 8), (9, 4 / 9)]
    assert found[0]["mean_recall"] == pytest.approx((1 + 0) / 2)
    assert found[1]["mean_recall"] == pytest.approx((2 / 3 + 2 / 6) / 2)
    assert found[1]["acc1_interval"] == list(wilson(4, 9))


def test_classes_of_equal_frequency_stay_together() -> None:
    facts, _, classes = planted()
    (whole,) = by_frequency(confusion(facts, 5), np.full(5, 20), classes, parts=3)
    assert whole["images"] == 17 and whole["train_images"] == [20, 20]


def test_groups_of_a_csv_are_scored_by_arithmetic(tmp_path) -> None:
    facts, _, classes = planted()
    file = tmp_path / "groups.csv"
    rows = "archery,single, outdoor\nbaseball,team,outdoor\ncurling,team,\ndiving,none,indoor\n\n"
    file.write_text(f"\ufeffclass,kind,place\n{rows}", encoding="utf-8")
    groups = read_groups(file, classes)
    assert groups == {
        "kind": {"archery": "single", "baseball": "team", "curling": "team", "diving": "none"},
        "place": {"archery": "outdoor", "baseball": "outdoor", "diving": "indoor"},
    }
    found = by_group(confusion(facts, 5), groups, classes)
    assert [(entry["column"], entry["group"], entry["images"], entry["acc1"]) for entry in found] == [
        ("kind", "single", 3, 1.0), ("kind", "team", 8, 2 / 8), ("place", "outdoor", 8, 3 / 8),
    ]  # fmt: skip
    assert found[1]["classes"] == ["baseball", "curling"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "header ''; wanted class, then"),
        ("class\narchery\n", "header 'class'"),
        ("name,kind\n", "header 'name,kind'"),
        ("class,kind,kind\n", "columns of different names"),
        ("class,kind\narchry,team\n", "row of 'archry'; got no class of these data; cure: did you mean 'archery'?"),
        ("class,kind\narchery,team\narchery,team\n", "row of 'archery'; got a second row"),
        ("class,kind\narchery,team,indoor\n", "row of 'archery'; got 2 groups; wanted 1, as in the header"),
        ('class,kind\n"archery,team\n', "wanted a CSV in UTF-8"),
    ],
)
def test_groups_that_cannot_be_right_are_refused_in_one_line(tmp_path, text: str, message: str) -> None:
    file = tmp_path / "groups.csv"
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        read_groups(file, ["archery", "boxing"])
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_missing_groups_file_is_named(tmp_path) -> None:
    with pytest.raises(DataError, match="groups.*none.csv.*No such file"):
        read_groups(tmp_path / "none.csv", ["archery"])
