"""The page of a sweep says what its leaderboard says, and needs nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sports_ray.report.page import sweep_page, write
from sports_ray.report.read_sweep import read_sweep
from sports_ray.report.sweep_part import axis_of
from sports_ray.store.codec import seal
from sports_ray.sweep.conduct import Conductor
from sports_ray.sweep.folder import SWEEP, SweepDir
from sports_ray.sweep.space import parse_space
from tests.support import pages
from tests.support.sweeps import MODELS, leave, line, made_up, sweep_dir


def finished(tmp_path: Path) -> SweepDir:
    """Eight trials; one failed, one was killed once, and one has work left."""
    spec, folder = made_up(), sweep_dir(tmp_path)
    folder.storage.write(SWEEP, seal({**spec.to_json(), "command": ["sports-ray", "tune", "--models", "a b"]}))
    conductor = Conductor(spec, folder)
    for place, trial in enumerate(spec.trials()[:-1]):
        history = [line(epoch, 0.3 + 0.05 * epoch + 0.01 * place) for epoch in (1, 2, 3)]
        leave(folder, trial.name, history)
        folder.run_dir(trial.name).write_metrics(history)
        conductor.ended(trial.name, *(("failed", "loss <not> finite") if place == 2 else ("done",)))
    killed = folder.run_dir("test_resnet-000")
    for event in (
        {"kind": "start", "step": 0}, {"kind": "commit", "step": 4, "stall": 0.1}, {"kind": "commit", "step": 6, "stall": 0},
        {"kind": "start", "step": 4}, {"kind": "end", "step": 18, "steps": 14, "step_seconds": 70.0, "reason": ""},
    ):  # fmt: skip
        killed.append_timing(event)
    return folder


def test_page_says_what_the_leaderboard_says(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    spec = folder.read_spec()
    assert spec is not None
    page = sweep_page(read_sweep(folder))
    text = page.html()
    pages.assert_self_contained(text)
    shown = pages.Page.of(text)
    for row in Conductor(spec, folder).rows():
        assert row["trial"] in shown.text
        if row["val_acc1"] is not None:
            assert f"{100 * row['val_acc1']:.1f} %" in shown.text
    for words in ("8 trials of 2 backbones: 6 done, 1 failed, 1 with work left", "loss <not> finite", "2 step", "0:10",
                  "sports-ray tune --models 'a b'", "optim.lr = log:1e-4..1e-2"):  # fmt: skip
        assert words in shown.text, words
    assert write(page, folder.storage)[1:] == [f"plots/learning-{model}.png" for model in MODELS]


def test_each_scored_trial_is_a_line_over_all_axes_and_a_dot_on_each(tmp_path: Path) -> None:
    text = sweep_page(read_sweep(finished(tmp_path))).html()
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    (parallel,) = [chart for chart in charts if "settings and scores" in chart]
    lines = re.findall(r'<path d="M([^"]+)"', parallel) or re.findall(r'd="M([^"]+)"', parallel)
    assert len(lines) == 7 and all(len(one.split("L")) == 3 for one in lines)
    scatters = [chart for chart in charts if "score against" in chart]
    assert [len(re.findall("<circle", chart)) for chart in scatters] == [7, 7]


def test_values_lie_between_the_ends_of_their_axis() -> None:
    texts = ["optim.lr=log:1e-4..1e-2", "augment.mixup=0..0.8", "optim.name=adamw,sgd", "ema.enabled=true,false"]
    log, linear, words, flags = map(axis_of, parse_space(texts, ()))
    assert [log.at(value) for value in (1e-4, 1e-3, 1e-2)] == pytest.approx([0, 0.5, 1])
    assert [text for _, text in log.ticks] == ["0.0001", "0.001", "0.01"]
    assert (linear.at(0.2), linear.at(None), words.at("sgd"), words.at("adam")) == (0.25, None, 0.75, None)
    assert flags.ticks == [(0.25, "true"), (0.75, "false")]
