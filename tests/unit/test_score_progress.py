"""The curve of a run is read as drawn: best epoch, rates, plateaus, and what each session added."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sports_ray.score.progress import learning_progress, plateaus, segment_of


def history(scores: list[float], steps: int = 10, **more: list[float]) -> list[dict[str, Any]]:
    return [
        {"epoch": i + 1, "step": (i + 1) * steps, "val_acc1": score, "lr": 0.1 / (i + 1), "train_loss": 2.0 - i / 10}
        | {name: values[i] for name, values in more.items()}
        for i, score in enumerate(scores)
    ]


def start(step: int) -> dict[str, Any]:
    return {"kind": "start", "step": step}


def evaluation(step: int) -> dict[str, Any]:
    return {"kind": "evaluation", "step": step, "seconds": 1.0}


def test_best_epoch_is_the_first_of_equals() -> None:
    found = learning_progress(history([0.1, 0.5, 0.7, 0.7, 0.6]))
    assert found["best"] == {"epoch": 3, "step": 30, "score": 0.7}
    assert [entry["best"] for entry in found["curve"]] == [0.1, 0.5, 0.7, 0.7, 0.7]


def test_rate_is_the_gain_per_epoch() -> None:
    lines = history([0.1, 0.5, 0.7])
    lines[2]["epoch"] = 6
    curve = learning_progress(lines)["curve"]
    assert curve[0]["rate"] is None
    assert [entry["rate"] for entry in curve[1:]] == pytest.approx([0.4, 0.05])
    assert [entry["lr"] for entry in curve] == pytest.approx([0.1, 0.05, 0.1 / 3])
    assert curve[1]["train_loss"] == 1.9


def test_ema_counts_where_there_is_one() -> None:
    found = learning_progress(history([0.9, 0.1], ema_val_acc1=[0.2, 0.3]))
    assert found["best"]["score"] == 0.3


def test_loss_gets_better_downwards() -> None:
    found = learning_progress(history([0.0] * 4, val_loss=[2.0, 1.0, 1.5, 1.2]), metric="loss")
    assert found["best"] == {"epoch": 2, "step": 20, "score": 1.0}
    assert [entry["rate"] for entry in found["curve"][1:]] == pytest.approx([1.0, -0.5, 0.3])
    assert [entry["best"] for entry in found["curve"]] == [2.0, 1.0, 1.0, 1.0]


def test_plateaus_of_a_synthetic_curve_are_found() -> None:
    scores = [0.1, 0.3, 0.5, 0.5, 0.501, 0.499, 0.6, 0.7, 0.7, 0.7, 0.8]
    found = learning_progress(history(scores), min_delta=0.002, patience=3)["plateaus"]
    assert found == [{"from_epoch": 3, "to_epoch": 6, "evaluations": 3, "score": 0.5}]
    assert plateaus(scores, 0.002, 2) == [(2, 5), (7, 9)]
    assert plateaus(scores, 0.002, 4) == []


def test_plateau_at_the_end_is_one_and_slow_progress_is_none() -> None:
    assert plateaus([0.1, 0.9, 0.9, 0.8, 0.9], 0.002, 3) == [(1, 4)]
    creeping = [0.5 + 0.0015 * i for i in range(20)]
    assert plateaus(creeping, 0.002, 3) == []
    assert plateaus([], 0.002, 3) == plateaus([0.5], 0.002, 1) == []


def test_segments_say_what_each_session_added() -> None:
    lines = history([0.2, 0.4, 0.5, 0.45, 0.8])
    events = [start(0), evaluation(10), evaluation(20), start(25), start(25), evaluation(30), evaluation(40), start(44)]
    first, second, third = learning_progress(lines, events)["segments"]
    assert (first["segment"], second["segment"], third["segment"]) == (0, 2, 3)
    assert (first["start_step"], second["start_step"], third["start_step"]) == (0, 25, 44)
    assert (first["from_epoch"], first["to_epoch"], first["evaluations"]) == (1, 2, 2)
    assert (first["gain"], first["rate"]) == (pytest.approx(0.2), pytest.approx(0.2))
    assert (second["gain"], second["rate"]) == (pytest.approx(0.05), pytest.approx(0.025))
    assert second["best"] == {"epoch": 3, "step": 30, "score": 0.5}
    assert (third["gain"], third["evaluations"], third["rate"]) == (pytest.approx(0.35), 1, pytest.approx(0.35))


def test_evaluation_done_again_belongs_to_the_last_session_that_did_it() -> None:
    again = [start(0), evaluation(10), evaluation(20), start(15), evaluation(20), start(20), evaluation(30)]
    assert segment_of([10, 20, 30], again) == [0, 1, 2]
    interrupted = [start(0), evaluation(10), start(20), evaluation(20)]
    assert segment_of([10, 20], interrupted) == [0, 1], "stopped during the evaluation, which then was done again"
    assert segment_of([10, 20], [start(0), evaluation(10), evaluation(20), start(20)]) == [0, 0]


def test_run_without_events_is_one_segment() -> None:
    (only,) = learning_progress(history([0.2, 0.4]))["segments"]
    assert (only["segment"], only["start_step"], only["gain"]) == (0, 0, pytest.approx(0.2))
    (single,) = learning_progress(history([0.2]))["segments"]
    assert single["gain"] is None and single["rate"] is None


def test_lines_that_are_not_sound_are_passed_over() -> None:
    lines = history([0.2, 0.4, 0.6])
    lines[1]["val_acc1"] = math.nan
    damaged = [{}, {"epoch": 1, "step": 2}, {"epoch": "x", "step": 3, "val_acc1": 1.0}, {"val_acc1": 0.9}]
    found = learning_progress([*damaged, *lines], [{"kind": "start"}, {"kind": "start", "step": "x"}])
    assert [entry["score"] for entry in found["curve"]] == [0.2, 0.6]


def test_nothing_learned_is_no_error() -> None:
    assert learning_progress([]) == {"metric": "acc1", "curve": [], "best": None, "plateaus": [], "segments": []}
