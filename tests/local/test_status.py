"""`sports-ray status`: what is said of real runs that pause, train, are done, died or were damaged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sports_ray.config import TrainConfig
from sports_ray.data.demo import draw_demo
from sports_ray.recipe import config_to_dict
from tests.support.moments import Moment
from tests.support.runs import FORKS, _train, small_config, train_in_child
from tests.support.shell import Shown, sports_ray


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Of runs of two epochs of two steps, a commit each step."""
    folder = tmp_path_factory.mktemp("status")
    draw_demo(folder / "set", classes=2, per_class=12, size=40, seed=1)
    return small_config(folder / "set", folder / "runs", store__every_steps=1)


def named(config: TrainConfig, name: str, **store: Any) -> TrainConfig:
    return replace(config, store=replace(config.store, run=name, **store))


@pytest.fixture(scope="module")
def paused(config: TrainConfig) -> Path:
    mine = named(config, "paused")
    assert train_in_child(mine, stop_at=2) == 75
    return Path(mine.store.root) / "paused"


@pytest.fixture
def training(config: TrainConfig) -> Iterator[tuple[str, int]]:
    """(name, pid) of a run that trains until it is told to stop."""
    mine = named(replace(config, loop=replace(config.loop, epochs=100_000)), "training")
    process = FORKS.Process(target=_train, args=(config_to_dict(mine), None, -1))
    process.start()
    try:
        folder = Path(mine.store.root) / "training"
        end = time.monotonic() + 120
        while not list(folder.glob("checkpoints/step-*/COMMIT.json")):
            assert time.monotonic() < end and process.is_alive()
            time.sleep(0.01)
        assert process.pid is not None
        yield str(folder), process.pid
    finally:
        process.terminate()
        process.join(60)
        shutil.rmtree(folder, ignore_errors=True)


def show(place: Path, *words: str) -> Any:
    shown = sports_ray(place, "status", *words, "--json")
    assert shown.code == 0 and not shown.err, shown.err
    return json.loads(shown.out)


def words(place: Path, *arguments: str) -> str:
    shown = sports_ray(place, "status", *arguments)
    assert shown.code == 0 and not shown.err, shown.err
    return shown.out


def test_paused_run_says_how_far_it_is_and_how_to_go_on(paused: Path, tmp_path: Path) -> None:
    facts = show(tmp_path, str(paused))
    assert (facts["state"], facts["step"], facts["total_steps"], facts["sessions"]) == ("paused", 2, 4, 1)
    assert facts["by"] is None and facts["best"] is None and facts["steps_lost_at_least"] == 0
    assert facts["command"] == f"sports-ray resume {paused}"
    record = paused / "checkpoints/step-00000002-a0001/COMMIT.json"
    assert facts["commit_age"] == pytest.approx(time.time() - record.stat().st_mtime, abs=60)
    an_hour_ago = time.time() - 3600
    os.utime(record, (an_hour_ago, an_hour_ago))
    text = words(tmp_path, "paused", "--store", str(paused.parent))
    assert "2 of 4 (2 epochs) · committed 1:00:" in text and f"go on       sports-ray resume {paused}" in text


def test_running_one_names_its_driver_and_is_paused_when_that_is_dead(
    training: tuple[str, int], tmp_path: Path
) -> None:
    folder, pid = training
    facts = show(tmp_path, folder)
    assert facts["state"] == "training" and facts["command"] is None and facts["step"] >= 1
    by = facts["by"]
    assert (by["host"], by["pid"], by["seen"]) == (socket.gethostname(), pid, True)
    assert 0 <= time.time() - by["since"] < 600
    assert f"training by {socket.gethostname()}, pid {pid}, since 20" in words(tmp_path, folder)
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 60
    while (facts := show(tmp_path, folder))["state"] == "training":
        assert time.monotonic() < end
    assert facts["state"] == "paused" and facts["command"] == f"sports-ray resume {folder}"


def test_finished_run_is_done_and_lost_work_is_counted(config: TrainConfig, tmp_path: Path) -> None:
    mine = named(config, "done")
    # In the second evaluation: four steps were done, and each commit has waited for the one before.
    assert train_in_child(mine, die=Moment("look", 6)) == -9
    before = show(tmp_path, "done", "--store", mine.store.root)
    assert before["state"] == "paused" and before["step"] in (3, 4)
    assert train_in_child(mine) == 0
    facts = show(tmp_path, "done", "--store", mine.store.root)
    assert (facts["state"], facts["step"], facts["sessions"], facts["command"]) == ("done", 4, 2, None)
    assert facts["best"]["epoch"] in (1, 2)
    history = [json.loads(line) for line in (Path(facts["where"]) / "metrics.jsonl").read_text().splitlines()]
    assert facts["best"]["val_acc1"] == max(line["ema_val_acc1"] for line in history)
    timings = Path(facts["where"]) / "timings.jsonl"
    kept = timings.read_bytes()
    shutil.copytree(facts["where"], tmp_path / "runs/lost")
    lines = kept.splitlines(keepends=True)
    starts = [number for number, line in enumerate(lines) if b'"kind":"start"' in line]
    # The first session's start over again: as if all checkpoints of the finished run had been found damaged.
    (tmp_path / "runs/lost/timings.jsonl").write_bytes(kept + lines[starts[0]])
    assert facts["steps_lost_at_least"] == 0 and show(tmp_path, "lost")["steps_lost_at_least"] == 4


def test_damaged_checkpoints_are_told_from_a_damaged_newest_one(paused: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs/damaged"
    shutil.copytree(paused, run)
    newest, older = run / "checkpoints/step-00000002-a0001", run / "checkpoints/step-00000001-a0001"
    os.truncate(newest / "model.safetensors", 100)
    facts = show(tmp_path, "damaged")
    assert (facts["state"], facts["step"]) == ("paused", 1)
    assert facts["reason"] == "checkpoint of step 2: model.safetensors missing or of another size"
    (older / "COMMIT.json").write_bytes(b"{}")
    facts = show(tmp_path, "damaged")
    assert facts["state"] == "damaged" and "checkpoint of step 1" in facts["reason"]
    assert facts["command"] == f"sports-ray verify {run}"
    shutil.rmtree(run / "checkpoints")
    for name in ("run.json", "run.copy.json"):
        (run / name).write_bytes(b"nothing")
    facts = show(tmp_path, str(run))
    assert facts["state"] == "damaged" and "run.json" in facts["reason"]
    assert "damaged" in words(tmp_path, str(run)) and "damaged" in words(tmp_path)


def test_no_file_damaged_in_any_way_and_no_half_made_run_ends_status_in_a_traceback(
    paused: Path, tmp_path: Path
) -> None:
    from sports_ray.cli.status import describe, facts_of, table

    run = tmp_path / "runs/run"
    shutil.copytree(paused, run)
    files, count = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}, 0
    assert len(files) > 10
    shape = b'{"kind": 7, "step": "x", "epoch": null, "val_acc1": "x", "files": 3}\n'
    for victim, content in files.items():
        for damage in (
            b"",
            content[: len(content) // 2],
            bytes([content[0] ^ 1]) + content[1:] if content else b"x",
            shape,
            None,
        ):
            victim.unlink() if damage is None else victim.write_bytes(damage)
            facts = facts_of("run", str(run.parent))
            assert isinstance(facts, dict) and facts["state"] in ("paused", "training", "damaged", "not started")
            assert describe(facts) and table([facts])
            victim.write_bytes(content)
            count += 1
    assert count == 5 * len(files)
    # Made step by step, as a death in start-up leaves it.
    shutil.rmtree(run)
    (run / "checkpoints").mkdir(parents=True)
    assert show(tmp_path, "run")["state"] == "not started" and "not started" in words(tmp_path)
    shutil.copy(paused / "run.copy.json", run)
    assert show(tmp_path, "run")["state"] == "not started"
    (run / "checkpoints/step-00000001-a0001").mkdir()
    assert show(tmp_path, "run")["command"] == f"sports-ray resume {run}"


def test_store_is_a_table_and_what_is_no_run_one_clear_line(paused: Path, tmp_path: Path) -> None:
    shutil.copytree(paused, tmp_path / "runs/a-run")
    (tmp_path / "runs/no-run").mkdir()
    lines = words(tmp_path).splitlines()
    assert lines[0].split() == ["run", "state", "steps", "commit", "best", "sessions", "lost"]
    assert len(lines) == 2 and lines[1].split()[:3] == ["a-run", "paused", "2/4"]
    assert words(tmp_path, "--store", "empty") == "no runs in empty; start one with `sports-ray train`\n"

    def refused(*words: str) -> str:
        shown: Shown = sports_ray(tmp_path, "status", *words)
        assert shown.code == 2 and shown.err.count("\n") == 1 and "Traceback" not in shown.err
        return shown.err

    assert refused("no-run") == (
        "error: run; got no-run; wanted a run in runs, or the path of one; cure: see `sports-ray status`\n"
    )
    assert "--watch; got 0; wanted more than 0 seconds" in refused("--watch", "0")


@pytest.mark.parametrize("as_json", [False, True])
def test_watch_goes_on_until_ctrl_c_and_a_pipe_sees_what_changed(paused: Path, tmp_path: Path, as_json: bool) -> None:
    shutil.copytree(paused, tmp_path / "run")
    command = [sys.executable, "-m", "sports_ray", "status", "--watch", "0.05", str(tmp_path / "run")]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background may ignore it
    with subprocess.Popen(
        command + ["--json"] * as_json, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watcher:
        signal.signal(signal.SIGINT, before)
        assert watcher.stdout is not None and watcher.stderr is not None
        seen = ""
        while "step 2" not in seen and '"step": 2' not in seen and "2 of 4" not in seen:
            seen += watcher.stdout.readline()
        # In one step: of a folder that is emptied file by file, more would be said.
        (tmp_path / "run/checkpoints/step-00000002-a0001").rename(tmp_path / "gone")
        while "1 of 4" not in seen and '"step": 1' not in seen:
            seen += watcher.stdout.readline()
        watcher.send_signal(signal.SIGINT)
        rest = seen + watcher.stdout.read()
        assert not watcher.stderr.read()
    assert watcher.returncode == 0 and "\x1b" not in rest
    if not as_json:
        assert rest.count("state       paused") == 2, "lines that say nothing new"
