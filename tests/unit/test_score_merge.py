"""Averages are those computed by hand and never NaN; fitted weights are used where they help, and only there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import log_loss

from sports_ray.errors import ConfigError
from sports_ray.score import merge as merge_module
from sports_ray.score.merge import Merge, fit_merge, fold_of, given, merge_rows, mixture_weights, uniform
from sports_ray.score.multiclass import nll
from sports_ray.score.rows import facts_of, soundness
from tests.unit.test_score_multiclass import draw

Columns = dict[str, NDArray[np.float32]]


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


def members(
    images: int, seed: int, hits: tuple[float, ...], sharp: tuple[float, ...]
) -> tuple[Columns, NDArray[np.int64]]:
    """Members of ten classes: `hits` says how much each knows, `sharp` by how much it exaggerates."""
    random = np.random.default_rng(seed)
    labels = random.integers(10, size=images)
    known = np.eye(10)[labels]
    drawn = [sharp[i] * (hit * known + random.normal(size=(images, 10))) for i, hit in enumerate(hits)]
    return {f"m{i}": softmax(logits) for i, logits in enumerate(drawn)}, labels


def score(merge: Merge, columns: Columns, labels: NDArray[np.int64]) -> float:
    return nll(facts_of(merge.apply(columns), labels))


def test_average_of_probabilities_is_that_computed_by_hand() -> None:
    a, b = np.array([[0.9, 0.1, 0.0]], dtype=np.float32), np.array([[0.2, 0.3, 0.5]], dtype=np.float32)
    assert merge_rows([a, b], [0.5, 0.5])[0] == pytest.approx([0.55, 0.2, 0.25], abs=1e-7)
    assert merge_rows([a, b], [0.75, 0.25])[0] == pytest.approx([0.725, 0.15, 0.125], abs=1e-7)
    assert uniform(["a", "b"]).apply({"b": b, "a": a})[0] == pytest.approx([0.55, 0.2, 0.25], abs=1e-7)


def test_average_of_logits_is_the_softmax_of_the_mean_logits() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(size=(50, 7)) * 3, random.normal(size=(50, 7)) * 3
    found = merge_rows([softmax(one), softmax(other)], [0.3, 0.7], "logit")
    assert found == pytest.approx(softmax(0.3 * one + 0.7 * other), abs=1e-6)
    cooler = merge_rows([softmax(one), softmax(other)], [0.3, 0.7], "logit", 2.0)
    assert cooler == pytest.approx(softmax((0.3 * one + 0.7 * other) / 2), abs=1e-6)


def test_temperature_of_an_average_divides_its_logarithms() -> None:
    shares, _ = draw(20, 4)
    found = merge_rows([shares, shares[::-1]], [0.5, 0.5], temperature=3.0)
    mean = (shares.astype(np.float64) + shares[::-1]) / 2
    assert found == pytest.approx(softmax(np.log(mean) / 3), abs=1e-6)


BROKEN = [math.nan, math.inf, -math.inf, -1.0]


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_where_one_member_is_broken_the_others_count(space) -> None:
    good, other = draw(len(BROKEN) + 1, 3)[0], draw(len(BROKEN) + 1, 3, seed=1)[0]
    broken = other.copy()
    broken[np.arange(len(BROKEN)), 1] = BROKEN
    broken[-1] = 0
    found = merge_rows([good, broken, other], [0.25, 0.5, 0.25], space)
    assert found == pytest.approx(merge_rows([good, other], [0.5, 0.5], space), abs=1e-6)
    alone = merge_rows([good, broken], [0.0, 1.0], space)
    assert alone == pytest.approx(good, abs=1e-6), "a member of weight 0 is better than none"
    nothing = merge_rows([broken, broken], [0.5, 0.5], space)
    assert not nothing.any(), "zeros, which are no prediction, where there is none"
    assert not merge_rows([broken], [1.0], space, 2.0).any()


@pytest.mark.parametrize("space", ["probability", "logit"])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_no_input_makes_an_average_nan(space, temperature: float) -> None:
    random = np.random.default_rng(5)
    values = np.array([*BROKEN, 0.0, 1e-45, 1e-30, 0.3, 1.0, 3e38, -0.0], dtype=np.float32)
    tables = [random.choice(values, size=(4000, 4)) for _ in range(3)]
    for weights in ([1 / 3] * 3, [1.0, 0.0, 0.0], [1e-300, 1.0, 0.0]):
        found = merge_rows(tables, weights, space, temperature)
        assert np.isfinite(found).all() and (found >= 0).all()
        known = np.logical_or.reduce([soundness(rows)[1] for rows in tables])
        assert found.sum(1) == pytest.approx(known.astype(float), abs=1e-5) and not known.all()


def test_rows_do_not_depend_on_their_neighbours() -> None:
    columns, _ = members(300, 0, (2.0, 1.0), (1.0, 1.0))
    whole = given({"m0": 0.3, "m1": 0.7}).apply(columns)
    for place in (0, 17, 299):
        part = {name: rows[place : place + 1] for name, rows in columns.items()}
        assert np.array_equal(given({"m0": 0.3, "m1": 0.7}).apply(part), whole[place : place + 1])


def test_given_weights_are_divided_by_their_sum() -> None:
    assert given({"a": 3, "b": 1}).weights == {"a": 0.75, "b": 0.25}


@pytest.mark.parametrize("weights", [{"a": -1.0, "b": 2.0}, {"a": 0.0}, {"a": math.nan}, {"a": math.inf}, {}])
def test_weights_that_cannot_be_a_share_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="weights of members.*wanted numbers from 0, at least one of them positive"):
        given(weights)


def test_mixture_weights_beat_all_others_of_a_grid() -> None:
    columns, labels = members(400, 3, (1.5, 1.0, 0.2), (1.0, 2.0, 1.0))
    tables = list(columns.values())
    found = mixture_weights(tables, labels)
    assert found.sum() == pytest.approx(1.0) and (found >= 0).all()

    def loss(weights: tuple[float, ...]) -> float:
        mean = sum(w * rows.astype(np.float64) for w, rows in zip(weights, tables, strict=True))
        return log_loss(labels, mean / mean.sum(1, keepdims=True), labels=list(range(10)))

    best = loss(tuple(found))
    ticks = np.linspace(0, 1, 21)
    assert all(best <= loss((a, b, 1 - a - b)) + 1e-6 for a in ticks for b in ticks if a + b < 1 - 1e-9)


def test_equal_members_get_equal_weights() -> None:
    shares, labels = draw(200, 5)
    assert mixture_weights([shares, shares, shares], labels) == pytest.approx([1 / 3] * 3, abs=1e-6)


@pytest.mark.parametrize("space", ["probability", "logit"])
@pytest.mark.parametrize(
    "seed", [seed if seed < 5 else pytest.param(seed, marks=pytest.mark.long) for seed in range(20)]
)
def test_with_a_weak_member_the_fit_beats_the_average_and_the_best_single(space, seed: int) -> None:
    hits, sharp = (2.5, 2.3, 0.4), (1.2, 1.0, 2.0)
    merge = fit_merge(*members(600, seed, hits, sharp), space=space)
    columns, labels = members(3000, 1000 + seed, hits, sharp)
    found = score(merge, columns, labels)
    assert found <= score(uniform(list(columns), space), columns, labels)
    assert found <= min(nll(facts_of(rows, labels)) for rows in columns.values())
    assert merge.used == "fit" and merge.weights["m2"] < 0.1
    assert sum(merge.weights.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("space", ["probability", "logit"])
@pytest.mark.parametrize(
    ("hits", "sharp", "images"),
    [((2.5, 2.3, 0.4), (1.2, 1.0, 2.0), 150), ((3.0, 0.3), (3.0, 0.3), 600), ((2.5, 0.0), (2.5, 4.0), 300)],
)
def test_fallback_is_no_worse_either(space, hits: tuple[float, ...], sharp: tuple[float, ...], images: int) -> None:
    for seed in range(4):
        merge = fit_merge(*members(images, seed, hits, sharp), space=space)
        columns, labels = members(3000, 1000 + seed, hits, sharp)
        found = score(merge, columns, labels)
        assert found <= score(uniform(list(columns), space), columns, labels)
        assert found <= min(nll(facts_of(rows, labels)) for rows in columns.values()), merge


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_member_with_all_the_weight_stays_as_it_is_to_the_bit(space) -> None:
    columns, _ = members(500, 0, (2.0, 1.0), (3.0, 1.0))
    columns["m0"][7] = np.nan
    columns["m0"][8] = 2.0
    found = given({"m0": 1.0, "m1": 0.0}, space).apply(columns)
    others = np.setdiff1d(np.arange(500), [7, 8])
    assert np.array_equal(found[others], columns["m0"][others])
    assert found[8] == pytest.approx(np.full(10, 0.1)) and found[7] == pytest.approx(columns["m1"][7], abs=1e-6)


def calibrated(images: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    shares = softmax(2 * random.normal(size=(images, 10)))
    return shares, (shares.cumsum(1) < random.random((images, 1))).sum(1).clip(max=9)


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_where_nothing_can_be_gained_the_average_stays_and_says_why(space) -> None:
    used = []
    for seed in range(10):
        shares, labels = calibrated(500, seed)
        merge = fit_merge({"a": shares, "b": shares}, labels, space=space)
        used.append(merge.used)
        if merge.used == "uniform":
            assert merge.weights == {"a": 0.5, "b": 0.5} and merge.temperature == 1.0
            assert merge.describe()["asked"] == "fit"
            assert merge.reason.startswith("fitted weights are not proven to help: loss ")
            assert "of the uniform average, on 500 validation images cross-fitted in 5 folds" in merge.reason
    assert used.count("uniform") >= 9, "a test at 2.5 % on one side may err"


def test_where_one_member_knows_all_it_stays_alone_unless_more_is_proven() -> None:
    used = []
    for seed in range(10):
        shares, labels = calibrated(500, seed)
        noise = softmax(np.random.default_rng(100 + seed).normal(size=(500, 10)) * 3)
        merge = fit_merge({"noise": noise, "good": shares}, labels)
        used.append(merge.used)
        if merge.used == "best_single":
            assert merge.weights == {"noise": 0.0, "good": 1.0} and "of good, on 500" in merge.reason
    assert used.count("best_single") >= 9


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_what_was_learned_of_the_images_themselves_is_not_believed(space) -> None:
    used = []
    for seed in range(10):
        shares, labels = calibrated(60, seed)
        random = np.random.default_rng(200 + seed)
        noisy = {f"m{i}": softmax(np.log(shares) + random.normal(size=shares.shape)) for i in range(15)}
        used.append(fit_merge({"good": shares, **noisy}, labels, space=space).used)
    assert used.count("fit") <= 1


@pytest.mark.parametrize(("lost", "helps"), [(5, True), (30, False)])
def test_lower_loss_is_not_bought_with_accuracy(lost: int, helps: bool) -> None:
    shares, labels = draw(400, 5, hit=2.0)
    fallback = facts_of(shares, labels)
    correct = fallback.correct().copy()
    correct[np.flatnonzero(correct)[:lost]] = False
    correct[np.flatnonzero(~fallback.correct())[:5]] = True
    found, evidence = merge_module._judge((fallback.loss - 0.1, correct), fallback, seed=0)
    assert found == helps and "at 95 %) and accuracy 0." in evidence


def test_one_member_gets_a_temperature() -> None:
    columns, labels = members(800, 1, (2.0,), (6.0,))
    merge = fit_merge(columns, labels)
    assert merge.used == "fit" and merge.weights == {"m0": 1.0} and 2.5 < merge.temperature < 3.5


def test_fit_looks_at_labelled_sound_rows_alone() -> None:
    columns, labels = members(400, 2, (2.0, 1.5), (1.5, 1.0))
    wanted = fit_merge(columns, labels)
    more, _ = members(30, 9, (0.0, 0.0), (1.0, 1.0))
    more["m0"][20:] = np.nan
    longer = {name: np.concatenate([rows, more[name]]) for name, rows in columns.items()}
    found = fit_merge(longer, np.concatenate([labels, np.full(20, -1), np.zeros(10, dtype=np.int64)]))
    assert found == wanted


def test_fit_depends_on_ids_and_not_on_the_order_of_rows() -> None:
    columns, labels = members(400, 2, (2.0, 1.5), (1.5, 1.0))
    ids = np.arange(400) * 7 + 3
    order = np.random.default_rng(0).permutation(400)
    one = fit_merge(columns, labels, ids)
    other = fit_merge({name: rows[order] for name, rows in columns.items()}, labels[order], ids[order])
    assert list(other.weights.values()) == pytest.approx(list(one.weights.values()), abs=1e-7)
    assert other.temperature == pytest.approx(one.temperature, abs=1e-6)


@pytest.mark.parametrize(("images", "ids", "message"), [(49, None, "49 labelled"), (80, np.zeros(80), "in 1 folds")])
def test_too_few_images_mean_the_uniform_average(images: int, ids, message: str) -> None:
    columns, labels = members(images, 0, (2.0, 0.0), (1.0, 1.0))
    merge = fit_merge(columns, labels, None if ids is None else ids.astype(np.int64))
    assert (merge.asked, merge.used, merge.weights) == ("fit", "uniform", {"m0": 0.5, "m1": 0.5})
    assert message in merge.reason


def test_fit_of_many_images_takes_those_of_the_smallest_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    columns, labels = members(3000, 4, (2.0, 1.0), (2.0, 1.0))
    whole = fit_merge(columns, labels)
    monkeypatch.setattr(merge_module, "FIT_VALUES", 10_000)
    part = fit_merge(columns, labels)
    assert "on 1000 validation images" in part.reason
    assert part.weights["m0"] == pytest.approx(whole.weights["m0"], abs=0.1)


def test_fold_is_a_function_of_the_id_and_folds_are_of_equal_size() -> None:
    ids = np.arange(-500, 9500) * 12345
    folds = fold_of(ids, 5)
    assert np.bincount(folds, minlength=5) == pytest.approx(np.full(5, 2000), abs=150)
    assert fold_of(ids[::-1], 5).tolist() == folds[::-1].tolist()
    assert fold_of(np.arange(8, dtype=np.int32), 5).tolist() == fold_of(np.arange(8), 5).tolist()
