"""Real runs that get more epochs: the same bits whenever they were asked for, and nothing is reset in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sports_ray.cli.show import choose_show
from sports_ray.cli.train_show import show_plan
from sports_ray.config import TrainConfig
from sports_ray.data.demo import draw_demo
from sports_ray.orchestrate.plan import make_plan
from tests.support.runs import results, small_config, train_in_child
from tests.support.shell import sports_ray

SETTINGS: dict[str, Any] = {
    "loop__epochs": 2,
    "loop__eval_every": 3,
    "loop__phases": [{"epochs": 1, "train": "head", "lr_scale": 0.5}],
    "augment__mix_off_epochs": 1,
    "augment__policy": "none",
    "optim__lr": 2e-3,
    "store__every_steps": 1,
}
"""Two steps an epoch. The second one is evaluated as the last, and not mixed; so is the fourth."""
LONGER: dict[str, Any] = {"loop__epochs": 4, "loop__extensions": [{"after": 2, "schedule": "restart"}]}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "set"
    draw_demo(folder, classes=4, per_class=6, size=40, seed=3)
    return folder


@pytest.fixture(scope="module")
def planned(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Two epochs and two more, planned so from the start."""
    config = small_config(photos, tmp_path_factory.mktemp("planned"), **{**SETTINGS, **LONGER})
    assert train_in_child(config) == 0
    return config


def test_rates_of_the_extension_begin_anew_and_the_old_end_stays_one(planned: TrainConfig) -> None:
    lines = [json.loads(line) for line in (Path(planned.store.root) / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [2, 3, 4]
    # An epoch of the schedule: a step of warm-up, then of the cosine. Two epochs of it: two of warm-up, then two.
    cosine = 2e-3 * (0.01 + 0.99 / 2)
    assert [line["lr"] for line in lines] == pytest.approx([2e-3, 2e-3 * 0.505, cosine])


@pytest.mark.parametrize(("stop_at", "kill_at"), [(2, 4), pytest.param(0, 3, marks=pytest.mark.long)])
def test_extended_in_the_middle_or_at_the_end_and_killed_it_equals_the_run_planned_so(
    photos: Path, planned: TrainConfig, tmp_path: Path, stop_at: int, kill_at: int
) -> None:
    config = small_config(photos, tmp_path, **SETTINGS)
    assert train_in_child(config, stop_at=stop_at) == (75 if stop_at else 0)
    longer = small_config(photos, tmp_path, **{**SETTINGS, **LONGER})
    assert train_in_child(longer, kill_at=kill_at) == -9
    again = ("resume", str(tmp_path / "run"), "--epochs", "4", "--extend", "restart", "--json")
    done = sports_ray(tmp_path, *again)
    assert done.code == 0, done.err
    assert not [event for event in done.events if event["event"] == "extended"]  # it was before
    assert results(config) == results(planned)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["extensions"] == [{"from_epochs": 2, "to_epochs": 4, "schedule": "restart"}]
    assert record["config"]["loop"]["extensions"] == [{"after": 2, "schedule": "restart"}]
    verified = sports_ray(tmp_path, "verify", str(tmp_path / "run"), "--json")
    assert verified.code == 0, [finding for finding in verified.events if not finding["ok"]]
    refused = sports_ray(tmp_path, *again[:2], "--extend", "hold")
    assert refused.code == 2 and "wanted --extend restart, as it was extended" in refused.err


def test_new_epochs_are_told_with_their_schedule_before_anything_is_done(
    photos: Path, planned: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(photos, Path(planned.store.root), **{**SETTINGS, "loop__epochs": 5})
    show_plan(make_plan(config, extend="hold"), choose_show(as_json=True))
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()][-1]
    assert (told["event"], told["from_epochs"], told["to_epochs"], told["schedule"]) == ("extended", 4, 5, "hold")
    assert make_plan(planned).status == "finished"
