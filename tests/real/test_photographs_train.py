"""The main job on real photographs: its score, on one and on two workers, and after three kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CLASSES = "air hockey,ampute football,archery,arm wrestling,axe throwing,balance beam,barell racing,baseball,basketball"


def command(photographs: Path, store: Path, run: str, *more: str) -> list[str]:
    train = [sys.executable, "-m", "sports_ray", "train", "--data", str(photographs), "--model", "test_resnet"]
    named = ["--recipe", "quick", "--store", str(store), "--run", run, "--set", f"data.classes={CLASSES}", "--json"]
    return [*train, *named, *more]


def events(output: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_nine_sports_from_scratch_reach_ninety_percent(photographs: Path, tmp_path: Path, workers: str) -> None:
    done = subprocess.run(
        command(photographs, tmp_path, "nine", "--workers", workers), check=True, stdout=subprocess.PIPE, text=True
    )
    last = next(event for event in events(done.stdout) if event["event"] == "last")
    assert last["scores"]["ema_val_acc1"] >= 0.90  # type: ignore[index]


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_driver_and_workers_killed_at_three_moments_equal_the_unbroken_run(photographs: Path, tmp_path: Path) -> None:
    # The precision is named: what `auto` measures may differ between two runs, and is kept by each for good.
    short = ("--epochs", "4", "--workers", "1", "--precision", "fp32", "--set", "store.every_seconds=3")
    subprocess.run(command(photographs, tmp_path, "whole", *short), check=True, stdout=subprocess.DEVNULL)
    seen = 0
    for _ in range(3):
        seen = _run_until(command(photographs, tmp_path, "broken", *short), more_than=seen + 20)
    subprocess.run(command(photographs, tmp_path, "broken", *short), check=True, stdout=subprocess.DEVNULL)
    for name in ("weights/last.safetensors", "weights/best.safetensors", "metrics.jsonl"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def _run_until(arguments: list[str], more_than: int) -> int:
    """Starts a run and kills its worker and its driver when it is past a step; the step."""
    driver = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    for line in driver.stdout:
        event = json.loads(line)
        if event["event"] == "step" and event["step"] > more_than:
            os.kill(event["pid"], signal.SIGKILL)
            driver.kill()
            driver.wait()
            time.sleep(1)  # the old local cluster lives some seconds more; the next driver must cope with it
            return int(event["step"])
    raise AssertionError("the run ended before it could be killed")
