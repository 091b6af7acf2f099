"""Early stopping on the validation loss: at the epoch that its history says, also after a kill."""

from __future__ import annotations

import json
from pathlib import Path

from sports_ray.config import TrainConfig
from sports_ray.data.demo import draw_demo
from sports_ray.orchestrate.plan import make_plan
from tests.support.runs import small_config, train_in_child

PATIENCE = 3


def history(config: TrainConfig) -> list[dict[str, float]]:
    text = (Path(config.store.root) / config.store.run / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def stop_by_hand(losses: list[float]) -> int:
    """The epoch after which the loss has not got better for PATIENCE evaluations; 0: there is none."""
    for epoch in range(1, len(losses) + 1):
        best = losses.index(min(losses[:epoch])) + 1
        if epoch - best == PATIENCE:
            return epoch
    return 0


def test_training_stops_when_the_loss_has_not_fallen_for_three_evaluations_also_after_a_kill(tmp_path: Path) -> None:
    draw_demo(tmp_path / "set", classes=2, per_class=12, size=40, seed=1)
    # The rate rises, and the loss falls and rises: its curve decides, which is that of the run without early stopping.
    settings = {
        "loop__epochs": 12,
        "optim__lr": 0.05,
        "optim__clip": 0.0,
        "ema__enabled": False,
        "augment__policy": "none",
    }
    settings |= {"loop__early_stop_metric": "loss", "optim__warmup_epochs": 6.0}
    whole = small_config(tmp_path / "set", tmp_path, "whole", **settings)
    stopped = small_config(tmp_path / "set", tmp_path, "stopped", **settings, loop__early_stop=PATIENCE)
    assert train_in_child(whole) == 0
    losses = [line["val_loss"] for line in history(whole)]
    last = stop_by_hand(losses)
    assert PATIENCE < last < 12 and len(losses) == 12, losses
    looks = 3 * (last - 1) + 1  # two steps and one batch of validation an epoch: in the epoch before the stop
    assert train_in_child(stopped, kill_at=looks) == -9
    assert train_in_child(stopped) == 0
    assert history(stopped) == history(whole)[:last]
    best = json.loads((tmp_path / "stopped" / "weights" / "best.json").read_text())
    assert best["step"] == history(whole)[last - PATIENCE - 1]["step"]
    assert make_plan(stopped).status == "finished"
