"""A run that was really killed, or asked to stop, ends with the bytes of the unbroken run.

Here some moments to die are drawn, others each day. All of them, for each precision and number of loader processes:

    pytest -m long tests/local/test_resume.py -s
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path
from random import Random

import pytest

from sports_ray.config import TrainConfig
from sports_ray.data.demo import draw_demo
from tests.support.killed import in_memory
from tests.support.moments import Moment
from tests.support.runs import (
    commit_record,
    left_half_written,
    moments_of,
    results,
    small_config,
    train_in_child,
    whole_run,
)

LANES_OF_DEATH = {
    "step": ("look", "forward", "backward", "update", "EMA"),
    "evaluation": ("evaluation",),
    "commit": ("commit ",),
    "start and end": ("MainThread ",),
}
"""Kinds of moments by the beginning of their names: calls on the disk are named after their thread."""


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


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as folder:
        yield folder


def lane_of(moment: Moment) -> str:
    return next(lane for lane, kinds in LANES_OF_DEATH.items() if moment.kind.startswith(kinds))


def prove(config: TrainConfig, moments: list[Moment], threads: int = 1) -> None:
    """Kills a run of `config` at each of the moments, lets it end, and compares all that it left with the unbroken run."""
    wanted = whole_run(config)

    def differs(moment: Moment) -> str:
        broken = replace(config, store=replace(config.store, run=str(moment).replace(" ", "-").replace("_", "")))
        code = train_in_child(broken, die=moment)
        if code != -9:
            return f"{moment}: not killed, exit code {code}"
        code = train_in_child(broken)
        if code:
            return f"{moment}: not resumed, exit code {code}"
        found = whole_run(broken)
        wrong = sorted(name for name in wanted.keys() | found if found.get(name) != wanted.get(name))
        wrong += [str(path) for path in left_half_written(broken)]
        shutil.rmtree(Path(broken.store.root) / broken.store.run)
        return f"{moment}: {', '.join(wrong)}" if wrong else ""

    with ThreadPoolExecutor(threads) as pool:
        failures = [failure for failure in pool.map(differs, moments) if failure]
    assert not failures, f"{len(failures)} of {len(moments)} differ:\n" + "\n".join(failures)


def drawn(dice: Random, moments: list[Moment]) -> Moment:
    """Each kind is as likely as any other: of the writes of single tensors there are over a thousand."""
    kind = dice.choice(sorted({moment.kind for moment in moments}))
    return dice.choice([moment for moment in moments if moment.kind == kind])


@pytest.mark.parametrize(
    ("precision", "processes"), [pytest.param("fp32", 0, marks=pytest.mark.long), ("bf16", 1), ("fp32", 2)]
)
def test_run_killed_at_any_moment_equals_the_unbroken_run(
    photos: Path, memory: Path, precision: str, processes: int
) -> None:
    config = small_config(photos, memory, loop__precision=precision, data__loader_processes=processes)
    moments = moments_of(config)
    dice = Random(f"{date.today()} {precision} {processes}")
    prove(config, [drawn(dice, [one for one in moments if lane_of(one) == lane]) for lane in LANES_OF_DEATH], threads=2)


@pytest.mark.parametrize("stops_early", [pytest.param(False, marks=pytest.mark.long), True])
def test_run_killed_in_its_last_moments_is_finished_only_when_all_is_there(
    photos: Path, memory: Path, stops_early: bool
) -> None:
    """After the last checkpoint come the scalars for TensorBoard, last and best weights: the same command does what is left."""
    still = {"optim__lr": 1e-9, "loop__early_stop": 1, "loop__epochs": 4}
    config = small_config(photos, memory, **(still if stops_early else {}))
    renames = [moment for moment in moments_of(config) if moment.kind.endswith(" replace")]
    moments = [one for one in renames if one.kind == "commit replace"][-3:]
    moments += [one for one in renames if one.kind == "MainThread replace"][-1:]
    newest = max((memory / "run" / "checkpoints").glob("step-*"))
    assert commit_record(newest)["state"]["stopped_early"] is stops_early
    prove(config, moments, threads=2)


def test_run_killed_again_and_again_equals_the_unbroken_run(
    photos: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    config = small_config(photos, tmp_path)
    # Later and later: a commit that is still being written at the kill is rightly not there afterwards.
    exits = [train_in_child(config, kill_at=look) for look in (3, 5, 7, 9, 11)]
    assert exits[:3] == [-9, -9, -9]
    assert train_in_child(config) == 0
    assert results(config) == unbroken


@pytest.mark.parametrize("look", [1, 5, *(pytest.param(look, marks=pytest.mark.long) for look in (4, 9, 11))])
def test_run_stopped_by_a_signal_pauses_and_equals_the_unbroken_run(
    photos: Path, unbroken: dict[str, bytes], tmp_path: Path, look: int
) -> None:
    config = small_config(photos, tmp_path)
    assert train_in_child(config, stop_at=look) == 75
    assert train_in_child(config) == 0
    assert results(config) == unbroken


def test_loader_processes_change_no_bit(photos: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    config = small_config(photos, tmp_path, data__loader_processes=2)
    assert train_in_child(config, kill_at=5) == -9
    assert train_in_child(replace(config, data=replace(config.data, loader_processes=1))) == 0
    assert results(config) == unbroken


def thinned(moments: list[Moment]) -> list[Moment]:
    """All but the writes of single tensors, of which there are over a thousand alike: every sixteenth of them."""
    return [moment for moment in moments if moment.kind != "commit write" or moment.number % 16 == 1]


def of_lane(config: TrainConfig, lane: str) -> list[Moment]:
    return [moment for moment in moments_of(config) if lane_of(moment) == lane]


def announce(config: TrainConfig, moments: list[Moment]) -> None:
    what = f"{config.model.name} {config.loop.precision}, {config.data.loader_processes} loader processes"
    print(f"\n{what}: {len(moments)} moments {dict(Counter(moment.kind for moment in moments))}", flush=True)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("lane", LANES_OF_DEATH)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("processes", [0, 1, 2])
def test_every_moment_of_two_epochs(photos: Path, memory: Path, precision: str, processes: int, lane: str) -> None:
    config = small_config(photos, memory, loop__precision=precision, data__loader_processes=processes)
    moments = thinned(of_lane(config, lane))
    announce(config, moments)
    prove(config, moments, threads=2)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(4))
def test_every_single_write_of_every_commit(photos: Path, memory: Path, part: int) -> None:
    config = small_config(photos, memory)
    moments = [moment for moment in of_lane(config, "commit") if moment.kind == "commit write"][part::4]
    announce(config, moments)
    prove(config, moments, threads=2)
