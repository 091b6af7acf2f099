"""A real sweep with Ray Tune: what dies is replaced, both backbones are under way, and the leaderboard keeps its bytes."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import ray

from sports_ray.data.demo_objects import draw_objects
from sports_ray.orchestrate.plan import make_plan
from sports_ray.processes import below, name_of
from sports_ray.store.commit import list_commits
from sports_ray.sweep.board import as_csv, as_json, ranked, result, row
from sports_ray.sweep.folder import SweepDir
from tests.support.nodes import named_below
from tests.support.running import Running, Started
from tests.support.runs import results, train_in_child
from tests.support.shell import sports_ray

MODELS = ("test_resnet", "test_efficientnet")
SETTINGS = {
    "data.image_size": 32,
    "data.loader_processes": 0,
    "loop.global_batch": 12,
    "loop.lanes": 2,
    "store.every_steps": 3,
}
SPACE = ("optim.lr=log:1e-3..1e-2", "augment.mixup=0,0.2")


def words(photos: Path, *more: str, samples: int = 2, epochs: int = 6) -> list[str]:
    fixed = [
        "tune",
        "--data",
        str(photos),
        "--models",
        ",".join(MODELS),
        "--sweep",
        "one",
        "--weights",
        "none",
        "--json",
    ]
    fixed += ["--precision", "fp32", "--epochs", str(epochs), "--samples", str(samples)]
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    space = [word for text in SPACE for word in ("--space", text)]
    return [*fixed, *settings, *space, *more]


def expected(folder: SweepDir, place: Path) -> dict[str, bytes]:
    """The leaderboard as its trials give it when each is trained alone, in one process, without Ray; compares the runs."""
    spec = folder.read_spec()
    assert spec is not None
    rows = []
    for trial in spec.trials():
        params = spec.drawn()[trial.name]
        config = spec.config(trial, params, str(place))
        assert train_in_child(config) == 0
        history = make_plan(config).run_dir.read_metrics()
        rows.append(row(trial, params, {"state": "done", "result": result(history, "acc1")}, spec.score_name))
        assert results(config) == results(spec.config(trial, params, folder.uri)), trial.name
    board = ranked(rows, "acc1")
    return {"leaderboard.json": as_json(spec, board), "leaderboard.csv": as_csv(spec, board)}


def boards(folder: SweepDir) -> dict[str, bytes]:
    return {name: bytes(folder.storage.read(name)) for name in ("leaderboard.json", "leaderboard.csv")}


def trial_processes(driver: int) -> list[int]:
    return named_below(driver, "ray::TrialProcess")


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def sessions(folder: SweepDir) -> dict[str, int]:
    """How often each trial's training was begun."""
    spec = folder.read_spec()
    assert spec is not None
    starts = {one.name: folder.run_dir(one.name).read_timings() for one in spec.trials()}
    return {name: sum(event["kind"] == "start" for event in events) for name, events in starts.items()}


def backbones_under_way(events: list[dict[str, Any]]) -> set[str]:
    """Those of which a step was done before any trial had ended."""
    before = takewhile(lambda event: event["event"] != "end", events)
    return {event["trial"].rpartition("-")[0] for event in before if event["event"] == "step"}


@pytest.mark.parametrize("labels", ["one", pytest.param("several", marks=pytest.mark.long)])
def test_sweep_whose_driver_was_killed_has_the_leaderboard_of_trials_trained_alone(
    ray_session: None, photos: Path, tmp_path: Path, labels: str
) -> None:
    """Both drivers join one cluster, so that the dead one's trials are there when the other begins."""
    if labels == "several":
        draw_objects(tmp_path / "things", classes=4, per_class=12, size=40, seed=1)
        photos = tmp_path / "things" / "labels.csv"
    folder = SweepDir(str(tmp_path / "runs" / "one"))
    joined = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with Running(tmp_path, *words(photos), environment=joined) as driver:
        assert driver.wait_until(lambda: driver.events("end")), driver.end()
        assert driver.send(signal.SIGKILL) and driver.end().code == -signal.SIGKILL
        assert backbones_under_way(driver.events()) == set(MODELS), "one after the other"
    ended = {line["trial"] for line in folder.decisions() if line["kind"] == "end"}
    begun = sessions(folder)
    assert 0 < len(ended) < 4
    with Running(tmp_path, *words(photos), environment=joined) as driver:
        shown = driver.end()
    assert shown.code == 0 and not shown.err, shown.err
    starts = [event["trial"] for event in shown.events if event["event"] == "begin"]
    assert not ended & set(starts), "a finished trial was run again"
    assert all(sessions(folder)[name] == begun[name] for name in ended)
    assert boards(folder) == expected(folder, tmp_path / "alone")
    for trial in starts:
        assert len(list_commits(folder.run_dir(trial).storage)) <= 2, "the newest and the best"
    score = {"one": "val_acc1", "several": "val_map"}[labels]
    assert all(0 < one[score] <= 1 for one in json.loads(boards(folder)["leaderboard.json"])["trials"])
    (following,) = [event["commands"] for event in shown.events if event["event"] == "next"]
    assert [command.split()[1] for command in following] == ["train", "train", "eval-ensemble", "report"]
    for command in following[2:] if labels == "several" else ():
        assert sports_ray(tmp_path, *shlex.split(command)[1:]).code == 0, command


VICTIMS = ("driver", "trial", "raylet", "gcs", "everything")


def strike(driver: Started, victim: str) -> None:
    """Kills a part of a sweep's processes."""
    tree = below(driver.pid)
    names = {pid: name_of(pid) for pid in tree}
    parts = {"driver": [driver.pid], "everything": sorted(tree), "trial": trial_processes(driver.pid)[:1]}
    parts["raylet"] = [pid for pid, name in names.items() if "/raylet/raylet" in name]
    parts["gcs"] = [pid for pid, name in names.items() if "gcs_server" in name]
    for pid in parts[victim]:
        kill(pid)


def wait_for(driver: Started, seconds: float) -> None:
    """Waits until the driver has ended, at most so long."""
    end = time.monotonic() + seconds
    while driver.code is None and time.monotonic() < end:
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.timeout(700)  # twice as long beside other work on a slow machine
@pytest.mark.parametrize("seed", range(5))
def test_sweep_killed_at_random_moments_has_the_leaderboard_of_trials_trained_alone(
    photos: Path, tmp_path: Path, seed: int
) -> None:
    """Four kills a sweep: trial process, driver, node and cluster at random moments of their life."""
    dice, folder, kills = random.Random(seed), SweepDir(str(tmp_path / "runs" / "one")), 0
    command = words(photos, epochs=120)
    while kills < 4:
        with Started(tmp_path, *command) as driver:
            assert driver.wait_until(partial(driver.events, "begin")), f"finished after {kills} kills"
            victim = "trial"
            while victim == "trial" and kills < 4:
                victim, kills = dice.choice(VICTIMS), kills + 1
                time.sleep(dice.uniform(0, 10))  # the moment itself is what is random
                assert driver.code is None, f"ended before kill {kills}: {driver.end()}"
                strike(driver, victim)
            wait_for(
                driver, 15
            )  # without its head or node a driver gives up after a minute; who sits before it, earlier
    with Started(tmp_path, *command) as driver:
        wait_for(driver, 250)
        shown = driver.end()
    assert shown.code == 0, shown.err
    assert boards(folder) == expected(folder, tmp_path / "alone")
    ends = [line["trial"] for line in folder.decisions() if line["kind"] == "end"]
    assert len(ends) == len(set(ends)) == 4


@pytest.fixture(scope="module")
def halved(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SweepDir, list[dict[str, Any]]]]:
    """An optuna sweep with successive halving whose driver is killed once."""
    place = tmp_path_factory.mktemp("halved")
    command = words(photos, "--scheduler", "asha", "--search", "optuna", samples=5, epochs=9)
    with Started(place, *command) as driver:
        assert driver.wait_until(lambda: len(driver.events("end")) > 1), driver.end()
        driver.send(signal.SIGKILL)
    with Started(place, *command) as driver:
        shown = driver.end()
    assert shown.code == 0, shown.err
    yield SweepDir(str(place / "runs" / "one")), shown.events


@pytest.mark.long
def test_halved_trials_are_whole_paused_runs_and_no_trial_is_lost(
    halved: tuple[SweepDir, list[dict[str, Any]]],
) -> None:
    folder, _ = halved
    spec = folder.read_spec()
    assert spec is not None and spec.halving is not None
    rows = {one["trial"]: one for one in json.loads(folder.storage.read("leaderboard.json"))["trials"]}
    assert len(rows) == 10
    stopped = [one for one in rows.values() if one["state"] == "stopped"]
    assert stopped and {one["state"] for one in rows.values()} <= {"done", "stopped"}
    for one in stopped:
        assert one["epochs"] in spec.halving.rungs
        history = folder.history(one["trial"])
        assert [line["epoch"] for line in history] == list(range(1, one["epochs"] + 1)), "stopped right at the rung"
    suggested = [line for line in folder.decisions() if line["kind"] == "params"]
    assert {line["trial"] for line in suggested} == set(rows) and len(suggested) == 10
    assert all(rows[line["trial"]]["params"] == line["params"] for line in suggested)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_trials_of_two_workers_train_through_ray_train_without_deadlock(photos: Path, tmp_path: Path) -> None:
    more = ("--workers-per-trial", "2", "--cpus-per-trial", "0.5", "--samples", "1")
    with Started(tmp_path, *words(photos, *more)) as driver:
        wait_for(driver, 250)  # six processes start on two cores
        shown = driver.end()
    assert shown.code == 0, shown.err
    folder = SweepDir(str(tmp_path / "runs" / "one"))
    for name, count in sessions(folder).items():
        assert count == 1
        starts = [event for event in folder.run_dir(name).read_timings() if event["kind"] == "start"]
        assert starts[0]["world"] == 2


@pytest.mark.long
def test_killed_trial_process_is_replaced_and_ray_says_nothing(ray_session: None, photos: Path, tmp_path: Path) -> None:
    joined = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with Running(tmp_path, *words(photos), environment=joined) as driver:
        assert driver.wait_until(lambda: driver.events("evaluated")), driver.end()
        kill(trial_processes(os.getpid())[0])
        shown = driver.end()
    assert shown.code == 0 and not shown.err, shown.err
    assert [event["reason"] for event in shown.events if event["event"] == "restart"] == ["its process died"]
    folder = SweepDir(str(tmp_path / "runs" / "one"))
    assert boards(folder) == expected(folder, tmp_path / "alone")


@pytest.mark.long
def test_trial_that_fails_is_a_row_and_ctrl_c_pauses_with_the_command_to_go_on(photos: Path, tmp_path: Path) -> None:
    command = words(photos, "--set", "loop.max_nonfinite=2", samples=2, epochs=20)
    command[command.index("optim.lr=log:1e-3..1e-2")] = "optim.name=sgd"
    command[command.index("augment.mixup=0,0.2")] = "optim.lr=1e-3,100"
    command += ["--set", "optim.clip=0", "--set", "optim.warmup_epochs=0", "--search", "grid"]
    del command[command.index("--samples") : command.index("--samples") + 2]
    with Started(tmp_path, *command) as driver:
        assert driver.wait_until(lambda: driver.events("evaluated"))
        driver.send(signal.SIGINT)
        shown = driver.end()
    assert shown.code == 75, shown.err
    (paused,) = [event for event in shown.events if event["event"] == "paused"]
    assert paused["reason"] == "SIGINT" and "sports-ray tune --data" in paused["command"]
    with Started(tmp_path, *command) as driver:
        shown = driver.end()
    assert shown.code == 0, shown.err
    rows = json.loads(SweepDir(str(tmp_path / "runs" / "one")).storage.read("leaderboard.json"))["trials"]
    failed = [one for one in rows if one["state"] == "failed"]
    assert failed and all("finite" in one["reason"] and one["params"]["optim.lr"] == 100 for one in failed)
    assert [one["params"]["optim.lr"] for one in rows if one["state"] == "done"][:2] == [1e-3, 1e-3]
