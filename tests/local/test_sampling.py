"""Balanced classes in real runs: killed and gone on with, one bit is as good as another; no copy is anywhere but in train."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sports_ray.data.demo import draw_demo
from sports_ray.data.manifest import Manifest
from tests.support.runs import results, small_config, train_in_child
from tests.support.shell import sports_ray

WAYS: dict[str, dict[str, Any]] = {
    "weighted": {
        "data__sampler": "weighted",
        "augment__crop": "squash",
        "data__crop_mode": "squash",
        "data__crop_pct": 1.0,
    },
    "copies": {"data__min_per_class": 11, "loop__class_weights": "balanced"},
}
POSITIONS = {"weighted": 24, "copies": 13 + 11 + 11}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 13, 7 and 4 photographs."""
    folder = tmp_path_factory.mktemp("place")
    draw_demo(folder / "set", classes=3, per_class=13, size=40, seed=1)
    for name, left in zip(sorted(path.name for path in (folder / "set/train").iterdir()), (13, 7, 4), strict=True):
        for photo in sorted((folder / "set/train" / name).iterdir())[left:]:
            photo.unlink()
    for way, settings in WAYS.items():
        assert train_in_child(small_config(folder / "set", folder / "runs", way, **settings)) == 0
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_killed_at_some_step_it_ends_with_the_same_bits(way: str, place: Path) -> None:
    config = small_config(place / "set", place / "runs", f"{way}-killed", **WAYS[way])
    kill_at = Random(f"{date.today()} {way}").randrange(2, 2 * -(-POSITIONS[way] // 12))
    assert train_in_child(config, kill_at=kill_at) == -9
    assert train_in_child(config) == 0
    assert results(config) == results(small_config(place / "set", place / "runs", way)), f"killed at look {kill_at}"


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_killed_at_any_step_it_ends_with_the_same_bits(way: str, place: Path) -> None:
    wanted = results(small_config(place / "set", place / "runs", way))
    for kill_at in range(1, 2 * -(-POSITIONS[way] // 12) + 1):
        config = small_config(
            place / "set", place / "runs", f"{way}-{kill_at}", data__loader_processes=kill_at % 3, **WAYS[way]
        )
        assert train_in_child(config, kill_at=kill_at) == -9
        assert train_in_child(config) == 0
        assert results(config) == wanted, f"killed at look {kill_at}"


@pytest.mark.parametrize("way", WAYS)
def test_verify_proves_what_was_drawn(way: str, place: Path) -> None:
    done = sports_ray(place, "verify", way, "--json")
    assert done.code == 0 and all(one.get("ok", True) for one in done.events)
    text = " ".join(one.get("text", "") for one in done.events)
    assert "every image as often as sampled for 2 epochs" in text


@pytest.mark.parametrize("way", WAYS)
def test_no_copy_crosses_the_split_and_the_run_says_how_many_there_are(way: str, place: Path) -> None:
    manifest = Manifest.load(place / "runs" / way / "manifest.arrow")
    assert [manifest.rows(split).num_rows for split in ("train", "val", "test")] == [24, 9, 9]
    digests = {split: set(manifest.rows(split).column("sha256").to_pylist()) for split in ("train", "val", "test")}
    assert not digests["train"] & digests["val"] and not digests["train"] & digests["test"]
    record = json.loads((place / "runs" / way / "run.json").read_text())
    assert record["data"]["train"] == 24 and record["data"]["positions"] == POSITIONS[way]
    lines = [json.loads(line) for line in (place / "runs" / way / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 2 * -(-POSITIONS[way] // 12) and lines[-1]["val_images"] == 9
    facts = json.loads(sports_ray(place, "status", way, "--json").out)
    assert facts["total_steps"] == lines[-1]["step"] == facts["step"]


def test_a_squashing_run_says_so_to_whoever_predicts_with_it(place: Path) -> None:
    for way, wanted in {"weighted": ("squash", 1.0), "copies": ("center", 0.95)}.items():
        sidecar = json.loads((place / "runs" / way / "weights/last.json").read_text())
        assert (sidecar["preprocessing"]["crop_mode"], sidecar["preprocessing"]["crop_pct"]) == wanted


def test_class_weights_change_what_is_learned_and_nothing_else(place: Path, tmp_path: Path) -> None:
    config = small_config(place / "set", tmp_path, data__min_per_class=11)
    assert train_in_child(config) == 0
    ours, theirs = results(config), results(small_config(place / "set", place / "runs", "copies"))
    assert ours["last.safetensors"] != theirs["last.safetensors"]
    consumed = [json.loads(one["newest/state"])["state"]["consumed"] for one in (ours, theirs)]
    assert consumed[0] == consumed[1]
