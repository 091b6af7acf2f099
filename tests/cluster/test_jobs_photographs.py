"""The three jobs by their documented commands on real photographs: stopped, submitted again, a node lost in the middle."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sports_ray.config import TrainConfig
from sports_ray.orchestrate.plan import make_plan, write_record
from sports_ray.recipe import build_config, config_to_dict
from tests.cluster.test_nodes import assert_no_commit_is_lost, train_rank
from tests.support.head import RAY, Head, ray_head, wait_for
from tests.support.ranks import on_ranks
from tests.support.runs import results

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
SETTINGS = {
    "data.classes": "archery,baseball,basketball",
    "data.image_size": "64",
    "loop.global_batch": "32",
    "cluster.threads": "1",
    "cluster.max_failures": "0",
    "store.every_seconds": "2",
}
EPOCHS = 16


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head and a node, of one CPU each."""
    with ray_head(cpus=1) as found:
        found.add()
        yield found


class Job:
    """`ray job submit --working-dir . -- python jobs/NAME.py WORDS`, as docs/clusters.md has it."""

    def __init__(self, head: Head, name: str, *words: str) -> None:
        self.head, self.client = head, head.client()
        out = ray(head, "submit", "--no-wait", "--working-dir", ".", "--", sys.executable, f"jobs/{name}.py", *words)
        (self.id,) = {word.strip("'") for word in out.split() if word.startswith("'raysubmit_")}

    def told(self, kind: str) -> list[dict[str, Any]]:
        lines = self.client.get_job_logs(self.id).splitlines()
        events = [json.loads(line) for line in lines if line.startswith('{"event"') and line.endswith("}")]
        return [event for event in events if event["event"] == kind]

    def until(self, kind: str, step: int = 0) -> dict[str, Any]:
        found: list[dict[str, Any]] = wait_for(
            lambda: [event for event in self.told(kind) if event.get("step", 0) >= step] or self._over(), 120
        )
        assert found is not True, f"it ended without {kind}: {self.client.get_job_logs(self.id)[-2000:]}"
        return found[0]

    def end(self) -> int | None:
        wait_for(self._over, 240)
        code = self.client.get_job_info(self.id).driver_exit_code
        assert code in (0, None), self.client.get_job_logs(self.id)[-3000:]
        return code

    def _over(self) -> bool:
        return bool(self.client.get_job_status(self.id).is_terminal())


def ray(head: Head, *words: str) -> str:
    """`ray job WORDS`, with the cluster's address and token in the environment."""
    environment = {**os.environ, "RAY_API_SERVER_ADDRESS": head.address, "RAY_AUTH_MODE": "token"}
    environment["RAY_AUTH_TOKEN"] = head.token
    return subprocess.run(
        [str(RAY), "job", *words], cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def words_of(photographs: Path, store: Path) -> list[str]:
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    return ["--data", str(photographs), "--recipe", "quick", "--store", str(store), "--precision", "fp32", *settings]


def config_of(photographs: Path, store: Path) -> TrainConfig:
    named = {"data.root": str(photographs), "store.root": str(store), "store.run": "job", "loop.precision": "fp32"}
    named |= {"model.name": "test_resnet", "loop.epochs": EPOCHS, "cluster.workers": "2"}
    return build_config("quick", named, [f"{key}={value}" for key, value in SETTINGS.items()])


def test_three_jobs_through_a_stop_and_the_loss_of_a_node(head: Head, photographs: Path, tmp_path: Path) -> None:
    words = words_of(photographs, tmp_path)
    train = [*words, "--model", "test_resnet", "--epochs", str(EPOCHS), "--workers", "2", "--run", "job", "--json"]

    first = Job(head, "train", *train)
    first.until("step", step=30)
    assert "was stopped" in ray(head, "stop", first.id)
    wait_for(first._over)
    stopped = [
        line["step"]
        for line in make_plan(config_of(photographs, tmp_path)).run_dir.read_timings()
        if line["kind"] == "end"
    ]
    assert stopped and stopped[-1] >= 30, "no commit in time"

    second = Job(head, "train", *train)
    assert second.until("start")["step"] == stopped[-1], "not one step was lost"
    second.until("step", step=stopped[-1] + 20)
    head.kill(head.nodes[1])
    head.add()
    assert second.until("restart")["reason"].startswith("a node was lost")
    assert second.end() == 0

    config = config_of(photographs, tmp_path / "whole")
    write_record(make_plan(config))
    on_ranks(tmp_path / "ranks", 2, train_rank, config_to_dict(config))
    assert results(config_of(photographs, tmp_path)) == results(config), shlex.join(train)
    assert len(assert_no_commit_is_lost(config_of(photographs, tmp_path))) == 3

    sweep = ["--models", "test_resnet", "--search", "grid", "--space", "optim.lr=2e-3,4e-3", "--epochs", "2"]
    assert Job(head, "tune", *words, *sweep, "--sweep", "sweep", "--json").end() == 0

    evaluate = [
        "--data",
        str(photographs),
        "--split",
        "valid",
        "--run",
        str(tmp_path / "job"),
        "--tta",
        "hflip",
        "--json",
    ]
    scored = Job(head, "eval_ensemble", *evaluate)
    assert scored.end() == 0
    again = Job(head, "eval_ensemble", *evaluate)
    assert again.end() == 0 and again.told("finished")[0]["from_disk"]
    assert again.told("result") == scored.told("result")
    entry = scored.told("result")[0]["candidates"][-1]
    assert entry["images"] >= 15 and entry["acc1"] > 0.6, entry
