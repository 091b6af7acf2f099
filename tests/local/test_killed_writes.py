"""No death, at any system call of a write, and no power cut loses what was finished or leaves what is half.

The long form also tears or loses all that was not synced, and dies at every call of a packing: pytest -m long
tests/local/test_killed_writes.py
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sports_ray.config import DataConfig
from sports_ray.data.manifest import build_manifest
from sports_ray.data.pack_write import PackReport
from sports_ray.errors import DataError
from sports_ray.predict.blocks import ROWS
from sports_ray.store.attempt import begin_attempt
from sports_ray.store.commit import list_commits, newest, read_commit, write_commit
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import Storage, open_storage
from tests.support.killed import in_memory, points_of, run_killed
from tests.support.members import tree
from tests.unit.test_commit import commit, copy_of, files_of, start_run, tensors
from tests.unit.test_pack import content, packed
from tests.unit.test_predict_blocks import rows, shelf_of
from tests.unit.test_run_dir import NEW, OLD


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as folder:
        yield folder


def extend_run(storage: Storage) -> None:
    commit(storage, 40, 1)
    RunDir(storage).prune(1, 20)


JOBS: dict[str, tuple[Callable[[Storage], object], Callable[[Storage], object]]] = {
    # A job, and the part of it after which the new state is promised, whatever happens.
    "commit, then prune": (extend_run, lambda storage: commit(storage, 40, 1)),
    "same step again": (*[lambda storage: write_commit(storage, 30, 1, tensors(31), {"step": 31})] * 2,),  # type: ignore
    "new attempt": (*[lambda storage: begin_attempt(storage, {})] * 2,),  # type: ignore[dict-item]
    "sweep": (*[lambda storage: RunDir(storage).sweep()] * 2,),  # type: ignore[dict-item]
}


ALWAYS = {None, "mixed"}  # of unsynced files each is lost, torn or whole; the long form has also all lost and all torn
with_and_without_power = pytest.mark.parametrize(
    "power", [p if p in ALWAYS else pytest.param(p, marks=pytest.mark.long) for p in (None, "torn", "lost", "mixed")]
)


@with_and_without_power
@pytest.mark.parametrize("name", JOBS)
def test_killed_at_every_call_the_newest_is_the_old_or_the_new_one(memory: Path, name: str, power: str | None) -> None:
    run = start_run(open_storage(str(memory / "run")))
    run.write("checkpoints/step-00000025-a0001/model.safetensors", b"left by an earlier death")
    job, promise = JOBS[name]
    before = read_commit(run, 30).state
    first, rehearsal = copy_of(run), copy_of(run)
    promised = points_of(lambda: promise(first))
    points = points_of(lambda: job(rehearsal))
    after = newest(rehearsal)[0].state  # type: ignore[union-attr]
    seen = set()
    for point in range(points):
        storage = copy_of(run)
        run_killed(lambda storage=storage: job(storage), point, power)  # type: ignore[misc]
        attempt = begin_attempt(storage, {})
        allowed = [before, after] if point < promised else [after]
        assert attempt.commit is not None and attempt.commit.state in allowed, (point, attempt.passed_over)
        assert torch.equal(attempt.commit.load("model")["count"], torch.tensor(attempt.commit.state["step"]))
        seen.add(attempt.commit.state["step"])
        RunDir(storage).sweep()
        assert not [path for path in files_of(storage) if path.suffix == ".tmp" or "00000025" in str(path)]
        commit(storage, 50, attempt.token)
        assert newest(storage)[0].step == 50  # type: ignore[union-attr]
    assert before["step"] in seen and (after["step"] in seen or promised == points)


@pytest.fixture
def run(memory: Path) -> RunDir:
    return RunDir(open_storage(str(memory / "run")))


def test_prune_killed_anywhere_leaves_no_record_without_its_files(run: RunDir) -> None:
    start_run(run.storage)
    rehearsal = RunDir(copy_of(run.storage))
    points = points_of(lambda: rehearsal.prune(1, None))
    for point in range(points):
        copy = RunDir(copy_of(run.storage))
        run_killed(lambda copy=copy: copy.prune(1, None), point)  # type: ignore[misc]
        for found in list_commits(copy.storage):
            names = {entry.name for entry in copy.storage.list(found.folder)}
            assert "COMMIT.json" not in names or len(names) == 1 + len(tensors(found.step)), point


@with_and_without_power
def test_weights_published_under_a_kill_match_their_description(run: RunDir, power: str | None) -> None:
    run.publish_weights("best", OLD, {"epochs": 1})
    rehearsal = RunDir(copy_of(run.storage))
    points = points_of(lambda: rehearsal.publish_weights("best", NEW, {"epochs": 2}))
    seen = set()
    for point in range(points):
        copy = RunDir(copy_of(run.storage))
        run_killed(lambda copy=copy: copy.publish_weights("best", NEW, {"epochs": 2}), point, power)  # type: ignore[misc]
        weights, sidecar = copy.read_weights("best")
        assert torch.equal(weights["w"], (OLD if sidecar["epochs"] == 1 else NEW)["w"]), point
        assert copy.describe_weights("best") == sidecar and "previous" not in sidecar
        seen.add(sidecar["epochs"])
        copy.publish_weights("best", NEW, {"epochs": 2})
        assert copy.read_weights("best")[1]["epochs"] == 2
    assert seen == {1, 2}


def test_first_weights_under_a_kill_are_whole_or_not_there(run: RunDir) -> None:
    run.create({})
    rehearsal = RunDir(copy_of(run.storage))
    points = points_of(lambda: rehearsal.publish_weights("last", NEW, {"epochs": 2}))
    for point in range(points):
        copy = RunDir(copy_of(run.storage))
        run_killed(lambda copy=copy: copy.publish_weights("last", NEW, {"epochs": 2}), point)  # type: ignore[misc]
        described = copy.describe_weights("last")
        assert described is None or torch.equal(copy.read_weights("last")[0]["w"], NEW["w"])


@with_and_without_power
def test_a_death_at_any_call_leaves_no_block_or_a_whole_one(memory: Path, power: str | None) -> None:
    logits = rows(ROWS)

    def job(store: Path) -> Callable[[], None]:
        return lambda: shelf_of(store).write("plain", 0, logits, [None] * ROWS)

    job(memory / "warm")()  # imports are none of the calls that count
    points = points_of(job(memory / "count"))
    expected = tree(memory / "count")
    left = set()
    for point in range(points):
        store = memory / str(point)
        run_killed(job(store), point, power)
        shelf = shelf_of(store)
        shelf.sweep(["plain"])
        lacking = shelf.missing(["plain"])
        found = shelf.read("plain", 0)
        left.add(found is not None)
        assert found is None or (0 not in lacking and found.logits.tobytes() == logits.tobytes())
        job(store)()
        assert tree(store) == expected, "the next one's bytes differ, or a temporary file is left"
    assert left == {True, False}


@pytest.fixture
def heavy(memory: Path) -> Path:
    """Photographs of 3.6 MB, which make four shards of 1 MB."""
    rng = np.random.default_rng(0)
    for name in ("golf", "judo"):
        for number in range(6):
            path = memory / "set" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (320, 320, 3), dtype=np.uint8)).save(path)
    return memory / "set"


@pytest.mark.parametrize("share", [pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(900)]), 9])
def test_killed_at_any_call_the_same_packing_goes_on_to_the_same_bytes(memory: Path, heavy: Path, share: int) -> None:
    short_side = 300 if share == 1 else 0
    packed(heavy, memory / "whole", memory, shard_mb=1, short_side=short_side)
    whole = content(memory / "whole")
    shards = sum(name.startswith("shards/") for name in whole)
    assert shards == (2 if short_side else 4)

    def job(out: Path) -> PackReport:
        return packed(heavy, out, memory, shard_mb=1, short_side=short_side)

    points = points_of(lambda: job(memory / "counted"))
    spared = set()
    for point in range(0, points, share):
        out = memory / f"killed {point}"
        run_killed(lambda out=out: job(out), point)  # type: ignore[misc]
        finished = (out / "PACK.json").exists()
        if (out / "parts" / "00000.arrow").exists() and not finished:
            with pytest.raises(DataError, match="a pack that is not finished"):
                build_manifest(DataConfig(root=str(out)))
        spared.add(shards - job(out).made)
        assert content(out) == whole, point
        shutil.rmtree(out)
    assert spared == set(range(shards + 1))
