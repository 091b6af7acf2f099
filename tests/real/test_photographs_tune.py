"""A sweep on real photographs that is killed on the way, and what follows from it: winners trained again and scored together."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.real.test_photographs_train import CLASSES, events

BOARDS = ("leaderboard.json", "leaderboard.csv")


def sweep(photographs: Path) -> list[str]:
    words = ["tune", "--data", str(photographs), "--models", "test_resnet,test_efficientnet", "--recipe", "quick"]
    words += ["--samples", "4", "--space", "optim.lr=log:1e-3..1e-2", "--epochs", "3", "--sweep", "nine"]
    words += ["--precision", "fp32"]  # two sweeps may measure two precisions
    return [*words, "--set", f"data.classes={CLASSES}", "--cpus-per-trial", "1", "--max-concurrent", "2", "--json"]


def started(folder: Path, words: list[str]) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, "-m", "sports_ray", *words], cwd=folder, stdout=subprocess.PIPE, text=True)


def finished(folder: Path, words: list[str]) -> list[dict[str, Any]]:
    process = started(folder, words)
    shown, _ = process.communicate()
    assert process.returncode == 0
    return events(shown)


def killed_at_an_end(folder: Path, words: list[str]) -> str:
    """Kills the sweep's driver as soon as it has told of the end of a trial, while another is under way; which it was."""
    with started(folder, words) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            event = json.loads(line)
            if event["event"] == "end":
                driver.kill()
                return str(event["trial"])
    raise AssertionError("the sweep ended before it could be killed")


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_killed_sweep_has_the_board_of_the_unbroken_one_and_its_winners_are_trained_again_and_scored(
    photographs: Path, tmp_path: Path
) -> None:
    command, broken, whole = sweep(photographs), tmp_path / "broken", tmp_path / "whole"
    ended = {killed_at_an_end(broken, command) for _ in range(3)}
    told = finished(broken, command)
    assert len(ended) == 3 and not ended & {event["trial"] for event in told if event["event"] == "begin"}
    finished(whole, command)
    for name in BOARDS:
        assert (broken / "runs/nine" / name).read_bytes() == (whole / "runs/nine" / name).read_bytes()

    (following,) = [event["commands"] for event in told if event["event"] == "next"]
    again, _, together, _ = ([*shlex.split(words)[1:], "--json"] for words in following)
    board = json.loads((broken / "runs/nine/leaderboard.json").read_text())["trials"]
    (best,) = [event["scores"] for event in finished(broken, again) if event["event"] == "best"]
    assert best["ema_val_acc1"] == board[0]["val_acc1"]
    (scored,) = [event["candidates"] for event in finished(broken, together) if event["event"] == "result"]
    names = {row["trial"] for row in board if row["backbone_rank"] == 1}
    assert len(names) == 2 and names | {"ensemble"} == {entry["name"].partition("/")[0] for entry in scored}
    assert {entry["images"] for entry in scored} == {45}
