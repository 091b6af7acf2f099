"""SIGTERM and Ctrl-C at random moments of a command's whole life: exit code 75, no step lost, and the way to go on."""

from __future__ import annotations

import json
import random
import shlex
import signal
import time
from pathlib import Path

import pytest

from sports_ray.data.demo import draw_demo
from sports_ray.store.commit import newest
from sports_ray.store.storage import open_storage
from tests.support.importing import modules_of, stopped_in
from tests.support.running import Running, Started
from tests.support.shell import sports_ray

TRIES, STARTS = 100, 20
"""Of the long form: moments of a whole life, and moments of a new interpreter's imports."""
FILES = ("weights/last.safetensors", "weights/best.safetensors", "metrics.jsonl")
SETTINGS = {
    "data.image_size": 32,
    "data.loader_processes": 1,
    "augment.policy": "rand-m7-n2",
    "augment.mixup": 0.2,
    "augment.cutmix": 1.0,
    "model.drop_path": 0.1,
    "loop.global_batch": 8,
    "loop.eval_batch": 2,
    "cluster.threads": 1,
    "store.every_steps": 2,
}
"""Evaluations of as many batches as an epoch has steps, and a commit in every second step: moments fall into all phases."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    draw_demo(folder / "set", classes=3, per_class=14, size=40)
    return folder


@pytest.fixture(scope="module")
def whole(place: Path) -> tuple[dict[str, bytes], float]:
    """Files of the unbroken run, and how many seconds the command lives once it listens."""
    with Running(place, *words("whole")) as run:
        run.wait_until(run.listens)
        begun = time.monotonic()
        assert run.end().code == 0
        return files(place / "runs/whole"), time.monotonic() - begun


def words(run: str, *more: str) -> tuple[str, ...]:
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    fixed = ("--data", "set", "--model", "test_resnet", "--weights", "none", "--workers", "0", "--precision", "fp32")
    return ("train", *fixed, *settings, "--epochs", "3", "--run", run, "--json", *more)


def files(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in FILES}


def committed(run: Path) -> int:
    """The newest step whose commit verifies, every byte of it."""
    commit = newest(open_storage(str(run)))[0] if run.exists() else None
    return commit.step if commit else 0


def moments(tries: int, seed: int) -> list[tuple[int, float, signal.Signals]]:
    """(number, share of the life, signal): one random moment in each of as many equal parts of it."""
    draw = random.Random(seed)
    signals = (signal.SIGTERM, signal.SIGINT)
    return [(index, (index + draw.random()) / tries, signals[index % 2]) for index in range(tries)]


def many(tries: int, sample: int, seed: int) -> list[object]:
    """A short sample for every day; the whole, with `-m long`."""
    every_day = [pytest.param(*moment, id=f"sample-{moment[0]}") for moment in moments(sample, seed)]
    whole = [pytest.param(*moment, id=str(moment[0]), marks=pytest.mark.long) for moment in moments(tries, seed + 1)]
    return every_day + whole


@pytest.mark.parametrize(("number", "share", "sent"), many(TRIES, 3, 11))
def test_stop_at_a_random_moment_loses_no_step_and_the_run_ends_as_if_there_had_been_none(
    place: Path, whole: tuple[dict[str, bytes], float], number: int, share: float, sent: signal.Signals
) -> None:
    unbroken, life = whole
    name = f"stopped-at-{share:.9f}"
    assert not (place / "runs" / name).exists()
    with Running(place, *words(name)) as run:
        assert run.wait_until(run.listens)
        time.sleep(share * life)
        run.send(sent)
        shown = run.end()
    assert shown.code in (0, 75) and not shown.err, f"exit code {shown.code}: {shown.err}"
    if shown.code == 75:
        (paused,) = run.events("paused")
        safe = committed(place / "runs" / name)
        assert paused["step"] == safe and paused["reason"] == sent.name
        assert run.steps - safe <= 1, f"{run.steps} steps done, {safe} safe"
        assert sports_ray(place, *shlex.split(paused["command"])[1:]).code == 0
    assert files(place / "runs" / name) == unbroken


@pytest.mark.parametrize(("number", "share", "sent"), many(STARTS, 2, 5))
def test_stop_while_python_still_imports_is_a_pause_with_the_command_that_works(
    place: Path, number: int, share: float, sent: signal.Signals
) -> None:
    """A new interpreter needs seconds for torch and timm: of these, the first one and a half."""
    name = f"importing-{share:.9f}"
    with Started(place, *words(name)) as run:
        # Torch is looked for first: what is found between the two looks proves nothing.
        while not (late := "libtorch" in Path(f"/proc/{run.pid}/maps").read_text()) and not run.listens():
            assert run.code is None
            time.sleep(0.002)
        assert not late or run.listens(), "listens only after torch was imported"
        time.sleep(1.5 * share)
        assert run.send(sent)
        shown = run.end()
    assert shown.code == 75 and not shown.err, f"exit code {shown.code}: {shown.err}"
    (paused,) = run.events("paused")
    assert (paused["step"], paused["reason"]) == (0, sent.name)
    assert shlex.split(paused["command"]) == ["sports-ray", *words(name)]


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("store/storage.py", words("in-an-import")),
        ("store/storage.py", ("folds", "--data", "set", "--model", "test_resnet", "--json")),
        ("store/storage.py", ("tune", "--data", "set", "--models", "test_resnet", "--json")),
        ("predict/plan.py", ("eval-ensemble", "--data", "set", "--run", "whole", "--json")),
    ],
    ids=["train", "folds", "tune", "eval-ensemble"],
)
def test_stop_in_the_midst_of_an_import_is_a_pause_with_the_command_that_works(
    place: Path, module: str, command: tuple[str, ...]
) -> None:
    """The keys in a command's words are left out by `storage`: they have to be known before."""
    assert shlex.split(paused_in(place, f"/sports_ray/{module}", *command)) == ["sports-ray", *command]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_stop_in_the_midst_of_any_import_is_a_pause(place: Path) -> None:
    modules = modules_of(place, *words("any-import"))
    assert len(modules) > 60
    for index, module in enumerate(modules):
        paused_in(place, module, *words(f"any-import-{index}"))


def paused_in(place: Path, module: str, *command: str) -> str:
    """What it says to go on with."""
    shown = stopped_in(place, module, *command)
    assert shown.returncode == 75 and not shown.stderr, f"{module}: exit code {shown.returncode}: {shown.stderr}"
    (paused,) = [event for event in map(json.loads, shown.stdout.splitlines()) if event["event"] == "paused"]
    assert paused["reason"] == "SIGINT", module
    return str(paused["command"])


def test_stop_of_a_resumed_run_before_its_first_step_names_the_step_that_is_safe(
    place: Path, whole: tuple[dict[str, bytes], float]
) -> None:
    with Running(place, *words("again"), steps=4) as run:
        assert run.wait_until(lambda: run.steps >= 4)
        run.send(signal.SIGTERM)
        run.release()
        assert run.end().code == 75
    safe = committed(place / "runs/again")
    with Running(place, *words("again"), steps=1) as run:
        assert run.wait_until(lambda: run.events("run"))  # planned, and a step is trained at most
        run.send(signal.SIGINT)
        run.release()
        shown = run.end()
    (paused,) = run.events("paused")
    assert shown.code == 75 and not shown.err
    assert paused["step"] >= safe and paused["step"] == committed(place / "runs/again")
    assert paused["command"] == f"sports-ray resume {place / 'runs/again'}"
    assert sports_ray(place, *shlex.split(paused["command"])[1:]).code == 0
    assert files(place / "runs/again") == whole[0]


def test_second_ctrl_c_ends_at_once_also_while_the_store_is_gone(
    place: Path, whole: tuple[dict[str, bytes], float]
) -> None:
    store, away = place / "elsewhere", place / "away"
    with Running(place, *words("twice", "--store", "elsewhere"), steps=3) as run:
        assert run.wait_until(lambda: run.steps >= 3)
        store.rename(away)
        assert run.step_until(lambda: run.events("store"), 0.05)
        run.send(signal.SIGINT)  # the last commit is tried for minutes
        run.release()
        time.sleep(0.5)
        assert run.code is None
        run.send(signal.SIGINT)
        begun = time.monotonic()
        shown = run.end()
        assert time.monotonic() - begun < 20, "it has gone on trying"
    assert (shown.code, shown.err.strip()) == (130, "interrupted")
    away.rename(store)
    assert sports_ray(place, *words("twice", "--store", "elsewhere")).code == 0
    assert files(store / "twice") == whole[0]
