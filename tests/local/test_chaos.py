"""`sports-ray chaos`: it kills for real, finds nothing where nothing is lost, finds what differs, and tidies up.

On Ray, for a minute, and with a difference planted: `pytest -m long tests/local/test_chaos.py -s`. For longer:
`sports-ray chaos --workers 2 --minutes 15`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sports_ray.chaos.compare import differences
from sports_ray.data.demo import draw_demo
from tests.support.runs import small_config, train_in_child
from tests.support.shell import Shown, sports_ray

SHORT = ("--minutes", "0.01", "--epochs", "1")
"""One run, killed once."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def proved(place: Path) -> Shown:
    return sports_ray(place, "chaos", *SHORT, "--store", "kept", "--json", timeout=120)


def processes_naming(path: Path) -> list[str]:
    """Commands of living processes that name a path."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if str(path) in command:
            found.append(command)
    return found


def test_killed_run_is_found_equal_and_nothing_is_left_but_the_unbroken_one(place: Path, proved: Shown) -> None:
    assert proved.code == 0, proved.err
    events = {event["event"]: event for event in proved.events}
    assert events["killed"]["victim"] == "driver"
    went_on = events.get("went on")  # not told by a run that was killed after its last commit
    assert went_on is None or went_on["seconds"] is None or went_on["seconds"] > 0
    report = events["report"]
    assert report["holds"] and report["rounds"] == 1 and report["kills"] >= 1 and not report["different"]
    assert sum(report["kills_by_phase"]["driver"].values()) == report["kills"]
    assert {path.name for path in (place / "kept").iterdir()} == {"unbroken", "unbroken.err"}
    assert not processes_naming(place)


@pytest.mark.long
def test_a_single_bit_that_differs_is_found_and_kept_to_be_looked_at(place: Path, proved: Shown) -> None:
    weights = place / "kept/unbroken/weights/last.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    shown = sports_ray(place, "chaos", *SHORT, "--store", "kept", "--seed", "0", timeout=120)
    assert shown.code == 3, shown.err
    broken = place / "kept/round-001"
    assert f"DIFFERS: weights/last.safetensors · kept in {broken}" in shown.out
    assert f"differences  {broken}: weights/last.safetensors" in shown.out
    assert (broken / "weights/last.safetensors").is_file()


def test_differences_are_named_one_by_one(tmp_path: Path) -> None:
    draw_demo(tmp_path / "set", classes=2, per_class=8, size=40)
    config = small_config(tmp_path / "set", tmp_path, "one", loop__epochs=1)
    other = replace(config, store=replace(config.store, run="two"), loop=replace(config.loop, seed=1))
    assert train_in_child(config) == 0 and train_in_child(other) == 0
    one, copy = tmp_path / "one", tmp_path / "copy"
    shutil.copytree(one, copy)
    assert differences(one, copy) == []
    found = differences(one, tmp_path / "two")
    weights = ["weights/last.safetensors", "weights/last.json", "weights/best.safetensors", "weights/best.json"]
    assert found[:5] == [*weights, "metrics.jsonl"]
    assert {"checkpoint: state", "checkpoint: model", "checkpoint: optim", "checkpoint: ema"} <= set(found)
    for name in (*weights, "metrics.jsonl"):
        (copy / name).unlink()
        assert differences(one, copy) == [f"{copy / name}: No such file or directory"]
        shutil.copy(one / name, copy / name)
    (model,) = copy.glob("checkpoints/*/optim.safetensors")
    os.truncate(model, 100)
    (found,) = differences(one, copy)
    assert "can be trusted" in found and "optim.safetensors" in found


def test_chaos_that_is_told_to_end_takes_its_training_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sports_ray", "chaos", "--store", str(tmp_path / "kept"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as chaos:
        assert chaos.stdout is not None and chaos.stdout.readline().startswith('{"event": "drawn"')
        while not any(" train " in command for command in processes_naming(tmp_path)):
            assert chaos.poll() is None
            time.sleep(0.01)
        chaos.send_signal(signal.SIGTERM)
        _, errors = chaos.communicate(timeout=120)
    assert chaos.returncode == 130 and "Traceback" not in errors
    assert not processes_naming(tmp_path)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for words, part in [
        (("--minutes", "0"), "--minutes; got 0.0; wanted more than zero"),
        (("--workers", "9"), "--workers; got 9; wanted 0 to 4"),
        (("--data", "nowhere"), "--data; got nowhere; wanted a folder of photographs"),
        (("--store", "s3://bucket"), "--store; got s3://bucket; wanted a folder of this machine"),
    ]:
        shown = sports_ray(tmp_path, "chaos", *words)
        assert shown.code == 2 and shown.err.count("\n") == 1 and part in shown.err


@pytest.mark.long
@pytest.mark.parametrize("workers", ["1", "2"])
def test_workers_and_drivers_of_ray_die_for_a_minute_and_nothing_differs(tmp_path: Path, workers: str) -> None:
    shown = sports_ray(tmp_path, "chaos", "--workers", workers, "--minutes", "1", "--json", timeout=280)
    print(shown.out)
    report = shown.events[-1]
    assert shown.code == 0 and report["holds"] and report["kills"] >= 1, report
