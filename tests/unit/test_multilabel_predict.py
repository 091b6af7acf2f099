"""Members whose photographs show several classes: who goes together, and from which probability on a class is predicted."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from sports_ray.errors import ConfigError
from sports_ray.predict.columns import independent
from sports_ray.predict.images import Images
from sports_ray.predict.member import Member, check_classes, find_member
from sports_ray.predict.plan import Plan
from sports_ray.predict.record import chosen_thresholds, thresholds_of
from sports_ray.predict.write import label_lists
from sports_ray.score.merge import Merge
from tests.support.members import CLASSES, make_member

FIRST, SECOND = (0.2, 0.4, 0.6, 0.8), (0.3, 0.3, 0.3, 0.3)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Member:
    store = tmp_path_factory.mktemp("store")
    make_member(store, "a")
    return find_member("a", str(store))


def plan_of(*members: Member) -> Plan:
    table = pa.table(
        {"id": pa.array([], pa.int64()), "path": [], "label": pa.array([], pa.int32()), "sha256": [], "error": []}
    )
    settings = {
        "data": "",
        "split": "test",
        "tta": "hflip",
        "average": "probs",
        "weights": "uniform",
        "groups": "",
        "home": "",
    }
    return Plan(members=members, images=Images("", table), names=(), **settings)


def test_a_members_columns_have_its_own_thresholds_and_the_ensemble_their_weighted_mean(one: Member) -> None:
    plan = plan_of(replace(one, thresholds=FIRST), replace(one, name="b", thresholds=SECOND))
    merge = Merge({"a": 0.25, "b": 0.75})
    for column, wanted in (("a", FIRST), ("a/none", FIRST), ("b", SECOND), ("b/none", SECOND)):
        assert thresholds_of(plan, column, merge).tolist() == list(wanted)
    assert thresholds_of(plan, "ensemble", merge).tolist() == pytest.approx([0.275, 0.325, 0.375, 0.425])
    assert chosen_thresholds(plan).tolist() == pytest.approx([0.25, 0.35, 0.45, 0.55])
    assert chosen_thresholds(plan_of(plan.members[0])).tolist() == list(FIRST)


def test_members_of_one_class_and_of_several_do_not_go_together(one: Member) -> None:
    assert not one.multilabel, "its weights name no thresholds"
    several = replace(one, name="b", thresholds=FIRST)
    with pytest.raises(ConfigError) as caught:
        check_classes([several, one])
    assert str(caught.value) == (
        "members of two kinds; got a: one class a photograph, b: several; wanted all of one kind; cure: evaluate them apart"
    )
    check_classes([several, replace(several, name="c")])


def test_logits_become_a_probability_each_and_a_broken_row_none() -> None:
    found = independent(np.array([[0.0, 3.0], [np.inf, 1.0], [-200.0, 200.0]], np.float32))
    assert found.dtype == np.float32
    assert found[0].tolist() == pytest.approx([0.5, 0.9525741]) and np.isnan(found[1]).all()
    assert found[2].tolist() == [0.0, 1.0]


def test_rows_are_sorted_and_name_what_reaches_its_threshold() -> None:
    table = np.array([[0.2, 0.1, 0.9, 0.9], [0.1, 0.1, 0.1, 0.1], [0, 0, 0, 0]], np.float32)
    cuts = np.array([0.2, 0.4, 0.6, 0.95])
    text = label_lists(["b", "a", "c"], table, [None, None, "broken"], CLASSES, cuts, ("id", "labels"), fill="?")
    header, *rows = csv.reader(io.StringIO(text))
    assert header == ["id", "labels", *CLASSES]
    assert rows[0] == ["a", "", "0.100000", "0.100000", "0.100000", "0.100000"]
    assert rows[1][:2] == ["b", "archery|golf"] and rows[2] == ["c", "?", "", "", "", ""]
