"""Cross-validation on Ray: the same runs and the same table as in one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from sports_ray.data.demo import draw_demo
from tests.support.running import Started

WORDS = (
    "--data",
    "set",
    "--model",
    "test_resnet",
    "--weights",
    "none",
    "--precision",
    "fp32",
    "--json",
    "--folds",
    "2",
)
SET = (
    "data.image_size=32",
    "cluster.threads=1",
    "loop.global_batch=8",
    "store.every_steps=1",
    "cluster.cpus_per_worker=1",
)
FOLDS = ("folds", *WORDS, "--epochs", "2", "--run", "x", *(word for one in SET for word in ("--set", one)))


@pytest.mark.long
def test_on_ray_killed_in_the_second_fold_it_ends_as_in_one_process(tmp_path: Path) -> None:
    draw_demo(tmp_path / "a/set", classes=3, per_class=6, size=40)
    shutil.copytree(tmp_path / "a/set", tmp_path / "b/set")
    with Started(tmp_path / "a", *FOLDS, "--workers", "0") as here:
        assert here.end().code == 0
    with Started(tmp_path / "b", *FOLDS, "--workers", "1") as there:
        second = tmp_path / "b/runs/x-fold1/checkpoints"
        assert there.wait_until(lambda: list(second.glob("step-*/COMMIT.json")))
        os.kill(there.pid, signal.SIGKILL)
    with Started(tmp_path / "b", *FOLDS, "--workers", "1") as there:
        shown = there.end()
    assert shown.code == 0, shown.err
    found = [json.loads(line) for line in shown.out.splitlines()]
    assert [one["status"] for one in found if one["event"] == "fold"] == ["finished", "resume"]
    for name in (
        "runs/x-fold0/weights/last.safetensors",
        "runs/x-fold1/weights/last.safetensors",
        "runs/folds/x/folds.csv",
    ):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    scores = [json.loads((tmp_path / one / "runs/folds/x/scores.json").read_text()) for one in ("a", "b")]
    assert scores[0]["digest"] == scores[1]["digest"] and scores[0]["spread"] == scores[1]["spread"]
