"""A run in half precision: its loss scale is a part of the checkpoint, and a killed run goes on with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sports_ray.data.demo import draw_demo
from tests.support.runs import results, small_config, train_in_child


@pytest.mark.long
def test_killed_after_an_overflow_it_goes_on_with_the_halved_scale_to_the_same_bits(tmp_path: Path) -> None:
    draw_demo(tmp_path / "set", classes=2, per_class=12, size=40, seed=1)
    # At such a rate the first step already makes weights with which the next ones overflow.
    settings = {
        "loop__precision": "fp16",
        "store__every_steps": 1,
        "loop__epochs": 3,
        "optim__lr": 3.0,
        "optim__clip": 0.0,
    }
    whole, killed = (small_config(tmp_path / "set", tmp_path, name, **settings) for name in ("whole", "killed"))
    assert train_in_child(whole) == 0
    assert train_in_child(killed, kill_at=7) == -9
    newest = sorted((tmp_path / "killed" / "checkpoints").glob("step-*/COMMIT.json"))[-1]
    state = json.loads(newest.read_text())["state"]
    assert 1 <= state["step"] < 6 and 1.0 < state["scale"] < 2.0**16, "no step has overflowed yet: nothing to remember"
    assert train_in_child(killed) == 0
    assert results(killed) == results(whole)
