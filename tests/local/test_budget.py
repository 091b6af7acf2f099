"""`--time-budget`: no session overruns it, however tight it is, and what is cut into sessions ends as one piece."""

from __future__ import annotations

import os
import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest

from sports_ray.data.demo import draw_demo
from sports_ray.stops import PAUSED, Stops
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import open_storage
from tests.support.running import Running
from tests.support.runs import exit_code, results, small_config, train_in_child
from tests.support.shell import sports_ray

FILES = ("weights/last.safetensors", "weights/best.safetensors", "metrics.jsonl")
SETTINGS = {
    "data.image_size": 32,
    "data.loader_processes": 0,
    "augment.mixup": 0.2,
    "loop.global_batch": 4,
    "loop.eval_batch": 1,
    "loop.eval_every": 5,
    "cluster.threads": 1,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    draw_demo(folder / "set", classes=3, per_class=12, size=40)
    return folder


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, bytes]:
    assert sports_ray(place, *words("whole")).code == 0
    return files(place / "runs/whole")


def words(run: str, *more: str) -> tuple[str, ...]:
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    fixed = ("--data", "set", "--model", "test_resnet", "--weights", "none", "--workers", "0", "--precision", "fp32")
    return ("train", *fixed, *settings, "--epochs", "20", "--run", run, "--json", *more)


def files(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in FILES}


def start_up(place: Path) -> float:
    """Seconds until the first step is done, on this machine as busy as it is now."""
    with Running(place, *words("start", "--epochs", "4000")) as run:
        assert run.wait_until(lambda: run.steps)
        return time.monotonic() - run.begun


@pytest.mark.parametrize("rooms", [(2.6, 3.2), pytest.param((2.2, 2.4, 2.8, 3.6, 5.0) * 4, marks=pytest.mark.long)])
def test_no_session_overruns_its_budget_and_the_run_ends_with_the_bytes_of_the_unbroken_run(
    place: Path, whole: dict[str, bytes], rooms: tuple[float, ...]
) -> None:
    """Budgets a little longer than a start and the reserve: the stop falls into any phase."""
    name, ready, paused = f"tight-{len(rooms)}", start_up(place), 0
    for room in rooms:
        budget = ready + room
        with Running(place, *words(name, "--time-budget", f"{budget:.2f}s")) as run:
            shown = run.end()
            assert time.monotonic() - run.begun <= budget, f"{time.monotonic() - run.begun:.2f} s of {budget:.2f} s"
            paused += len(run.events("paused"))
        assert shown.code in (0, 75) and not shown.err, shown.err
    assert paused, "no session was cut: the test shows nothing"
    assert sports_ray(place, *words(name)).code == 0
    assert files(place / "runs" / name) == whole


def test_budget_ends_the_command_also_where_nothing_looks_at_the_clock(place: Path, tmp_path: Path) -> None:
    """A photograph that is never read to its end: the engine hangs, the watchdog is patient, the budget is not."""
    draw_demo(tmp_path / "set", classes=2, per_class=8, size=40)
    budget = 2 * start_up(place) + 4.0
    with Running(tmp_path, *words("stuck", "--time-budget", f"{budget:.2f}s", "--set", "data.cache_gb=0")) as run:
        assert run.wait_until(lambda: run.steps >= 3)
        for path in (tmp_path / "set").glob("train/*/*"):
            os.mkfifo(tmp_path / "pipe")
            os.replace(tmp_path / "pipe", path)  # in one step: a reader never finds it missing
        shown = run.end()
        lived = time.monotonic() - run.begun
    assert shown.code == 75 and not shown.err, shown.err
    assert budget - 2 < lived <= budget
    (paused,) = run.events("paused")
    assert paused["reason"] == "time budget" and shlex.split(paused["command"])[:2] == ["sports-ray", "resume"]


def speak_too_long(end: float) -> None:
    stops = Stops().install()
    stops.leave_with(lambda reason: time.sleep(60))
    stops.alarm(end)
    time.sleep(60)


def test_who_is_kept_from_saying_how_to_go_on_ends_in_time_too() -> None:
    """As by a store that does not answer."""
    end = time.time() + 2
    assert exit_code(speak_too_long, end) == PAUSED and time.time() < end + 5


def test_budget_that_leaves_no_room_for_a_step_says_so(place: Path, whole: dict[str, bytes]) -> None:
    with Running(place, *words("tight")) as run:
        assert run.wait_until(lambda: run.steps >= 6)
        run.send(15)
        assert run.end().code == 75
    slow = {"kind": "commit", "step": 6, "stall": 0.5, "seconds": 40.0}
    RunDir(open_storage(str(place / "runs/tight"))).append_timing(slow)
    shown = sports_ray(place, "resume", "runs/tight", "--time-budget", "30s")
    assert shown.code == 75 and not shown.err and "(time budget)" in shown.out
    # Twice the slowest step and commit, and the end, which takes longer on a busy machine.
    assert re.search(r"! no step fits into the time budget: of it 8\d s are kept .* commit \(40\.5 s\)", shown.out)
    assert sports_ray(place, "resume", "runs/tight").code == 0
    assert files(place / "runs/tight") == whole


def test_evaluation_that_no_session_has_time_for_goes_on_where_it_was_stopped(place: Path, tmp_path: Path) -> None:
    """Each session is asked to stop at its second look: an evaluation of six batches takes several of them."""
    settings: dict[str, Any] = {"loop__eval_batch": 1, "loop__epochs": 1, "loop__global_batch": 12}
    unbroken = small_config(place / "set", tmp_path, run="unbroken", **settings)
    assert train_in_child(unbroken) == 0
    cut = small_config(place / "set", tmp_path, run="cut", **settings)
    codes = []
    while not codes or codes[-1] == 75:
        codes.append(train_in_child(cut, stop_at=2))
        assert len(codes) < 12, "the run does not get past its evaluation"
    assert codes[-1] == 0 and len(codes) >= 4
    assert results(cut) == results(unbroken)
