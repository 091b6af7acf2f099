"""The claim that no death, at any system call of a commit, and no power cut loses a finished one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sports_ray.store.commit import begin_attempt, newest, read_commit, write_commit
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import Storage, open_storage
from tests.support.killed import in_memory, points_of, run_killed

from .test_commit import commit, copy_of, files_of, start_run, tensors


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


@pytest.mark.parametrize(
    "power", [p if p in ALWAYS else pytest.param(p, marks=pytest.mark.long) for p in (None, "torn", "lost", "mixed")]
)
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
