"""`sports-ray tune` before it starts: what it would do, and what it refuses, in one line. No Ray here."""

from __future__ import annotations

from pathlib import Path

import pytest

from sports_ray.cli.show import JsonShow
from sports_ray.cli.tune import show_end
from sports_ray.data.demo import draw_demo
from sports_ray.sweep.conduct import Conductor
from tests.support.shell import Shown, sports_ray
from tests.support.sweeps import leave, line, made_up, sweep_dir


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    draw_demo(folder / "set", classes=2, per_class=6, size=40)
    (folder / "by-loss.toml").write_text('[loop]\nearly_stop_metric = "loss"\n')
    return folder


def tune(place: Path, *words: str, models: str = "test_resnet,test_vit") -> Shown:
    fixed = ("--data", "set", "--models", models, "--weights", "none", "--precision", "fp32", "--cpus-per-trial", "0.5")
    return sports_ray(place, "tune", *fixed, "--set", "data.image_size=32", "--dry-run", *words)


def test_dry_run_names_every_trial_and_writes_nothing(place: Path) -> None:
    words = (
        "--space",
        "optim.lr=log:1e-4..1e-2",
        "--space",
        "test_vit:model.drop_path=0,0.1",
        "--samples",
        "3",
        "--json",
    )
    shown = tune(place, *words, "--scheduler", "asha", "--epochs", "9")
    assert shown.code == 0 and not shown.err
    trials = {event["name"]: event["params"] for event in shown.events if event["event"] == "trial"}
    assert list(trials) == [f"{model}-{index:03d}" for model in ("test_resnet", "test_vit") for index in range(3)]
    assert [set(params) for params in trials.values()] == [{"optim.lr"}] * 3 + [{"optim.lr", "model.drop_path"}] * 3
    assert tune(place, *words, "--scheduler", "asha", "--epochs", "9").out == shown.out, "equal seeds, equal trials"
    other = {e["name"]: e["params"] for e in tune(place, *words, "--seed", "1").events if e["event"] == "trial"}
    assert not [name for name in trials if trials[name] == other[name]]
    assert not (place / "runs").exists() and "ray" not in shown.imported


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--space", "optim.lrr=1,2"), "did you mean optim.lr?"),
        (("--space", "optim.lr=1,2", "--max-concurrent", "1"), "at least one trial of each backbone at once"),
        (("--space", "optim.lr=1,2", "--cpus-per-trial", "5000"), "room for 0 trials"),
        (("--space", "optim.lr=1e-4..1e-2", "--search", "grid"), "cure: 1e-4..1e-2/5"),
        (
            ("--space", "optim.lr=1,2", "--workers-per-trial", "64", "--cpus-per-trial", "0.001"),
            "at most loop.lanes = 4",
        ),
        (("--samples", "3"), "nothing to search for test_resnet"),
        (("--space", "optim.lr=1,2", "--samples", "5"), "cure: --search grid"),
        (("--space", "optim.lr=1,2", "--recipe", "quick", "--recipe", "quick", "--recipe", "quick"), "one for each"),
        (
            ("--space", "optim.lr=1,2", "--recipe", "quick", "--recipe", "by-loss.toml"),
            "loop.early_stop_metric; got acc1 for test_resnet, loss for test_vit; wanted the same for all",
        ),
        (("--space", "loop.epochs=3,9", "--scheduler", "asha"), "trials of the same length"),
        (("--space", "optim.lr=1,2", "--sweep", "a/b"), "name of the run"),
        (("--space", "optim.lr=1,2", "--models", "test_resnet,test_rexnet"), "test_resnet"),
        (("--space", "optim.lr=1,2", "--models", "test_resnet,test_resnet"), "each model once"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_the_start(place: Path, words: tuple[str, ...], part: str) -> None:
    shown = tune(place, *words)
    assert shown.code == 2 and part in shown.err, shown.err
    assert shown.err.count("\n") == 1 and "Traceback" not in shown.err and not shown.out


@pytest.mark.parametrize("metric", ["acc1", "loss"])
def test_recipes_of_one_metric_go_together_whichever_it_is(place: Path, metric: str) -> None:
    words = ("--space", "optim.lr=1,2", "--samples", "2", "--recipe", "quick", "--recipe", "by-loss.toml")
    shown = tune(place, *words, "--set", f"loop.early_stop_metric={metric}")
    assert shown.code == 0, shown.err


def test_winner_without_a_score_is_shown_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conductor = Conductor(made_up(), folder := sweep_dir(tmp_path))
    leave(folder, "test_vit-000", [{**line(9, 0.5), "val_acc1": None, "ema_val_acc1": None}], finished=True)
    conductor.ended("test_vit-000", "done")
    assert show_end(conductor, JsonShow()) == 0
    assert '"val_acc1": null' in capsys.readouterr().out
