"""A run that was really killed, or asked to stop, ends with the bytes of the unbroken run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sports_ray.data.demo import draw_demo
from tests.support.runs import results, small_config, train_in_child

LOOKS = 2 * (4 + 2)  # two epochs of four steps and two validation batches


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "set"
    draw_demo(folder, classes=4, per_class=12, size=40, seed=1)
    return folder


@pytest.fixture(scope="module")
def unbroken(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    config = small_config(photos, tmp_path_factory.mktemp("unbroken"))
    assert train_in_child(config) == 0
    return results(config)


@pytest.mark.parametrize("look", [1, 3, 4, 5, 6, 8, 11, 12])
def test_run_killed_at_any_look_equals_the_unbroken_run(
    photos: Path, unbroken: dict[str, bytes], tmp_path: Path, look: int
) -> None:
    config = small_config(photos, tmp_path)
    assert train_in_child(config, kill_at=look) == -9
    assert train_in_child(config) == 0
    assert results(config) == unbroken


def test_run_killed_again_and_again_equals_the_unbroken_run(
    photos: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    config = small_config(photos, tmp_path)
    # Later and later: a commit that is still being written at the kill is rightly not there afterwards.
    exits = [train_in_child(config, kill_at=look) for look in (3, 5, 7, 9, 11)]
    assert exits[:3] == [-9, -9, -9]
    assert train_in_child(config) == 0
    assert results(config) == unbroken


@pytest.mark.parametrize("look", [1, 4, 5, 9, 12])
def test_run_stopped_by_a_signal_pauses_and_equals_the_unbroken_run(
    photos: Path, unbroken: dict[str, bytes], tmp_path: Path, look: int
) -> None:
    config = small_config(photos, tmp_path)
    assert train_in_child(config, stop_at=look) == 75
    assert train_in_child(config) == 0
    assert results(config) == unbroken


@pytest.mark.parametrize("processes", [1, 2])
def test_loader_processes_change_no_bit(
    photos: Path, unbroken: dict[str, bytes], tmp_path: Path, processes: int
) -> None:
    config = small_config(photos, tmp_path, data__loader_processes=processes)
    assert train_in_child(config, kill_at=5) == -9
    assert train_in_child(config) == 0
    assert results(config) == unbroken


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("look", range(1, LOOKS + 1))
def test_every_look_of_two_epochs(photos: Path, tmp_path: Path, precision: str, look: int) -> None:
    config = small_config(photos, tmp_path, run="whole", loop__precision=precision)
    assert train_in_child(config) == 0
    broken = replace(config, store=replace(config.store, run="broken"))
    assert train_in_child(broken, kill_at=look) == -9
    assert train_in_child(broken) == 0
    assert results(broken) == results(config)
