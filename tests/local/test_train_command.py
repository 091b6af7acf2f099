"""`sports-ray train` and `resume` from a user's side: what is printed, what it means, and how one goes on."""

from __future__ import annotations

import json
import re
import shlex
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from sports_ray.cli.train_show import next_commands
from sports_ray.data.demo import draw_demo
from sports_ray.orchestrate.plan import Plan
from sports_ray.recipe import build_config, config_from_dict
from sports_ray.store.commit import read_commit
from sports_ray.store.storage import open_storage
from tests.support.running import Running
from tests.support.shell import Shown, sports_ray

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x9b]")
SETTINGS = {
    "data.image_size": 32,
    "data.loader_processes": 0,
    "loop.global_batch": 4,
    "cluster.threads": 1,
    "store.every_steps": 2,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    draw_demo(folder / "set", classes=2, per_class=6, size=40)
    return folder


def command(*words: str) -> tuple[str, ...]:
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    fixed = ("--data", "set", "--model", "test_resnet", "--weights", "none", "--workers", "0", "--precision", "fp32")
    return ("train", *fixed, *settings, *words)


def train(place: Path, *words: str) -> Shown:
    return sports_ray(place, *command(*words))


def test_dry_run_prints_settings_that_read_back_and_writes_nothing(place: Path) -> None:
    shown = train(place, "--dry-run", "--json", "--epochs", "7", "--store", "elsewhere", "--run", "dry")
    assert shown.code == 0 and not shown.err
    events = {event["event"]: event for event in shown.events}
    assert config_from_dict(events["config"]["config"]).loop.epochs == 7
    assert (events["photos"]["train"], events["photos"]["val"], events["photos"]["classes"]) == (12, 2, 2)
    assert (events["plan"]["steps_per_epoch"], events["plan"]["total_steps"]) == (3, 21)
    assert events["model"]["parameters"] > 300_000 and events["plan"]["checkpoint_bytes"] > 4 * 300_000
    assert events["run"]["status"] == "new"
    plain = train(place, "--dry-run", "--epochs", "7", "--store", "elsewhere", "--run", "dry").out
    toml, _, plan = plain.partition("photos      ")
    text = "\n".join(line[12:] for line in toml.splitlines())
    assert config_from_dict(tomllib.loads(text)) == config_from_dict(events["config"]["config"])
    assert "12 train · 2 validation" in plan and "7 epochs x 3 steps" in plan
    assert not (place / "elsewhere").exists() and not (place / "runs").exists()


def test_a_finished_run_says_so_and_a_changed_one_is_refused(place: Path) -> None:
    store = ("--store", "finished", "--run", "one", "--epochs", "2")
    first = train(place, *store, "--json")
    assert first.code == 0 and not first.err
    kinds = [event["event"] for event in first.events]
    assert kinds[:4] == ["photos", "model", "plan", "run"] and kinds[-4:] == ["best", "last", "done", "next"]
    scored = [event for event in first.events if event["event"] == "evaluated"]
    lines = [json.loads(line) for line in (place / "finished/one/metrics.jsonl").read_text().splitlines()]
    assert [{name: event[name] for name in lines[0]} for event in scored] == lines
    weights = place / "finished/one/weights/last.safetensors"
    assert [event["weights"] for event in first.events if event["event"] == "last"] == [str(weights)]

    bits, changed = weights.read_bytes(), weights.stat().st_mtime_ns
    again = train(place, *store)
    assert again.code == 0 and not again.err
    assert re.search(r"^run +\S+/finished/one +finished$", again.out, re.MULTILINE)
    assert not CONTROL.search(again.out)
    assert (weights.read_bytes(), weights.stat().st_mtime_ns) == (bits, changed)
    resumed = sports_ray(place, "resume", "one", "--store", "finished")
    assert resumed.code == 0 and "finished" in resumed.out

    for words, part in [
        (("--seed", "9"), "loop.seed: 0 -> 9"),
        (("--set", "optim.lr=0.5"), "optim.lr: 0.0 -> 0.5"),
        (("--set", "data.classes=*"), "data.classes: [] -> ['*']"),
        (("--epochs", "1"), "got --epochs 1; wanted at least its 2"),
    ]:
        shown = train(place, *store, *words)
        assert shown.code == 2 and shown.err.count("\n") == 1 and "Traceback" not in shown.err
        assert part in shown.err and "another --run NAME" in shown.err
    assert train(place, *store, "--set", "loop.eval_batch=3", "--set", "store.keep=1").code == 0


def test_default_name_is_model_and_digest_and_holds_no_clock(place: Path) -> None:
    names = [train(place, "--dry-run", "--json", *words).events for words in ((), (), ("--seed", "1"))]
    first, again, other = ([e["name"] for e in events if e["event"] == "run"][0] for events in names)
    assert re.fullmatch(r"test_resnet-[0-9a-f]{8}", first)
    assert first == again != other


def test_run_with_too_little_time_pauses_before_it_is_over_and_the_printed_command_finishes_it(
    place: Path, tmp_path: Path
) -> None:
    epochs, budget = ("--epochs", "30"), 3.0
    while True:
        words = ("--store", str(tmp_path), "--run", "short", *epochs, "--time-budget", f"{budget:.2f}s", "--json")
        with Running(place, *command(*words), steps=1) as run:
            assert run.step_until(lambda: run.code is not None, every=0.25)  # the 90 steps take longer than any budget
            assert time.monotonic() - run.begun < budget
            paused = run.end()
        assert paused.code == 75 and not paused.err
        (event,) = [event for event in paused.events if event["event"] == "paused"]
        if run.steps or budget > 40:
            break
        budget *= (
            2  # the machine is busy: the reserve of two seconds, and what it needs to get ready, were all there was
        )
    assert event["reason"] == "time budget" and 0 < event["step"] < event["total_steps"] == 90
    assert is_committed(tmp_path / "short", event["step"])
    # Again, with hardly more than the reserve that is kept for the last commit: a step or none, and people's words.
    paused = sports_ray(place, *shlex.split(event["command"])[1:], "--time-budget", "2.1s")
    assert paused.code == 75 and not paused.err and not CONTROL.search(paused.out)
    found = re.search(r"step (\d+) of 90 is safe \(time budget\). Go on with:\n +(sports-ray .*)", paused.out)
    assert found and event["step"] <= int(found[1]) and is_committed(tmp_path / "short", int(found[1]))

    assert sports_ray(place, *shlex.split(found[2])[1:]).code == 0
    assert train(place, "--store", str(tmp_path), "--run", "whole", *epochs).code == 0
    for file in ("weights/last.safetensors", "weights/best.safetensors", "metrics.jsonl"):
        assert (tmp_path / "short" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def is_committed(run: Path, step: int) -> bool:
    return read_commit(open_storage(str(run)), step).step == step


def test_budget_is_read_in_hours_minutes_and_seconds() -> None:
    from sports_ray.cli.train import parse_duration

    texts = {"11h30m": 41400, "45m": 2700, "90s": 90, "90": 90, "2h": 7200, "1h0m1.5s": 3601.5}
    assert {text: parse_duration(text) for text in texts} == texts


def test_flags_reach_their_settings(place: Path) -> None:
    shown = train(place, "--dry-run", "--json", "--seed", "3", "--time-budget", "1h", "--recipe", "quick", "--run", "x")
    (config,) = [config_from_dict(e["config"]) for e in shown.events if e["event"] == "config"]
    assert (config.loop.seed, config.cluster.time_budget, config.loop.precision) == (3, 3600.0, "fp32")
    assert config.model.weights == "none" and config.loop.global_batch == 4
    assert config.augment == build_config("quick").augment


def test_training_in_process_never_imports_ray(place: Path, tmp_path: Path) -> None:
    done = sports_ray(place, *command("--store", str(tmp_path), "--epochs", "1"))
    assert done.code == 0, done.err
    assert {"torch", "sports_ray"} <= done.imported and "ray" not in done.imported


@pytest.mark.parametrize(
    ("store", "where", "commands"),
    [
        (
            "/tmp/my runs",
            "/tmp/my runs/sp",
            ["sports-ray status '/tmp/my runs/sp'", "tensorboard --logdir '/tmp/my runs/sp/tensorboard'"],
        ),
        (
            "s3://key:secret@bucket/runs?endpoint_override=localhost:9000&scheme=http",
            "s3://bucket/runs/sp",
            ["sports-ray status 's3://bucket/runs/sp?endpoint_override=localhost:9000&scheme=http'"],
        ),
    ],
)
def test_commands_after_a_training_can_be_pasted(store: str, where: str, commands: list[str]) -> None:
    storage = SimpleNamespace(uri=where)
    plan = cast("Plan", SimpleNamespace(store=store, name="sp", run_dir=SimpleNamespace(storage=storage)))
    assert next_commands(plan) == commands
