"""Optuna's suggestions are a function of what was found so far, and learn from it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sports_ray.sweep.conduct import Conductor
from sports_ray.sweep.space import parse_space
from sports_ray.sweep.suggest import Told, suggest
from tests.support.sweeps import leave, line, made_up, sweep_dir

pytest.importorskip("optuna", exc_type=ImportError)
SPACE = parse_space(["optim.lr=log:1e-4..1e-2", "augment.mixup=0,0.2,0.8", "loop.global_batch=8..64"], ())


def test_suggestions_are_values_of_the_space_and_repeat_with_equal_facts() -> None:
    told = [Told({"optim.lr": 1e-3, "augment.mixup": 0.2, "loop.global_batch": 8}, 0.5, 0)]
    told.append(Told({"optim.lr": 1e-2, "augment.mixup": 0, "loop.global_batch": 9}, -math.inf, 0))
    told.append(Told({"optim.lr": 2e-3, "augment.mixup": 0, "loop.global_batch": 64}, 0.4, 3))
    first = suggest(SPACE, 0, "a-000", told)
    assert first == suggest(SPACE, 0, "a-000", told) != suggest(SPACE, 0, "a-001", told)
    assert 1e-4 <= first["optim.lr"] <= 1e-2 and float(f"{first['optim.lr']:.4g}") == first["optim.lr"]
    assert first["augment.mixup"] in (0, 0.2, 0.8) and type(first["loop.global_batch"]) is int


def test_suggestions_come_near_to_what_was_good() -> None:
    told = []
    for number in range(30):
        rate = 10 ** (-4 + 2 * number / 29)
        params = {"optim.lr": rate, "augment.mixup": 0.2, "loop.global_batch": 32}
        told.append(Told(params, 1 - abs(math.log10(rate / 1e-3)), 0))
    rates = [suggest(SPACE, 0, f"a-{number:03d}", told)["optim.lr"] for number in range(15)]
    near = sum(abs(math.log10(rate / 1e-3)) < 0.4 for rate in rates)
    assert near >= 10, rates


def test_search_goes_on_after_a_death_with_what_it_had_suggested(tmp_path: Path) -> None:
    spec = made_up(models=("test_vit",), search="optuna", samples=3)
    folder = sweep_dir(tmp_path)
    conductor = Conductor(spec, folder)
    first, second = conductor.next(), conductor.next()
    assert first and second
    params = [conductor.params(name) for name in (first, second)]
    again = Conductor(spec, folder)
    assert [again.next(), again.next()] == [first, second]
    assert [again.params(name) for name in (first, second)] == params
    leave(folder, first, [line(9, 0.5)])
    again.ended(first, "done")
    assert [told.score for told in again.told("test_vit")] == [0.5]
    assert again.next() == "test_vit-002" and len(folder.decisions()) == 4
