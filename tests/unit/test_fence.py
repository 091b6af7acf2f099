"""Claims about fencing: one line of attempts leads back to the start, whoever writes at whatever moment."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from sports_ray.errors import FencedError
from sports_ray.store.arrow import ArrowStorage
from sports_ray.store.attempt import begin_attempt
from sports_ray.store.commit import CommitId, list_commits, newest, write_commit
from sports_ray.store.fence import Fence, check, is_orphan, read_fences
from sports_ray.store.lease import Lease, Owner
from sports_ray.store.local import LocalStorage
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import Data, Storage, open_storage


def commit(storage: Storage, step: int, token: int) -> None:
    write_commit(storage, step, token, {"model": {"w": torch.tensor([float(step)])}}, {"step": step})


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    storage = open_storage(str(tmp_path / "run"))
    token = begin_attempt(storage, {}).token
    for step in (10, 20, 30):
        commit(storage, step, token)
    return storage


class Interrupted(LocalStorage):
    """The same files, and something else that happens just before the n-th write of a path that holds `where`."""

    def __init__(self, root: str, where: str, event: Callable[[], object], at: int = 1) -> None:
        super().__init__(root)
        self._where, self._event, self._left = where, event, at

    def write(self, path: str, data: Data) -> None:
        self._happen(path)
        super().write(path, data)

    def write_exclusive(self, path: str, data: Data) -> bool:
        self._happen(path)
        return super().write_exclusive(path, data)

    def _happen(self, path: str) -> None:
        if self._where in path:
            self._left -= 1
            if self._left == 0:
                self._event()


def test_a_commit_counts_if_it_is_on_the_line_of_the_newest_attempt() -> None:
    fences = [Fence(1, 0, 0), Fence(2, 10, 1), Fence(3, 0, 0), Fence(7, 20, 2), Fence(9, 40, 7)]
    on_the_line = [(41, 9), (40, 7), (21, 7), (20, 2), (11, 2), (10, 1), (1, 1), (99, 12)]
    off_it = [(41, 7), (21, 2), (11, 1), (30, 1), (5, 3), (40, 3), (39, 8), (1, 4)]
    assert not any(is_orphan(*found, fences) for found in on_the_line)
    assert all(is_orphan(*found, fences) for found in off_it)
    assert not is_orphan(99, 1, [])


def test_a_run_that_began_anew_has_no_earlier_commit() -> None:
    assert is_orphan(1, 1, [Fence(1, 0, 0), Fence(2, 0, 0)])


def test_unknown_attempts_are_judged_by_their_steps_alone() -> None:
    fences = [Fence(9, 40, 7)]  # the fence of 7 is lost
    assert not is_orphan(40, 7, fences) and not is_orphan(30, 2, fences)
    assert is_orphan(41, 7, fences) and is_orphan(41, 2, fences) and is_orphan(39, 8, fences)


def test_commit_that_lands_between_the_look_and_the_fence_is_gone_on_from(run: Storage) -> None:
    def late() -> None:
        commit(run, 40, 1)
        assert RunDir(run).prune(1, None) == [10, 20, 30], "what the new attempt has read is deleted"

    attempt = begin_attempt(Interrupted(run.uri, "fences/", late), {})
    assert attempt.commit is not None and attempt.commit.step == 40
    assert read_fences(run) == [Fence(1, 0, 0), Fence(2, 40, 1)]
    assert newest(run)[0].step == 40, "a death now loses all"  # type: ignore[union-attr]


def test_commit_that_lands_while_the_newest_is_read_is_found(run: Storage) -> None:
    class Slow(LocalStorage):
        def find(self, path: str) -> bytearray | None:
            if "step-00000030" in path and (CommitId(40, 1) not in list_commits(run)):
                commit(run, 40, 1)
                RunDir(run).prune(1, None)
            return super().find(path)

    found, passed_over = newest(Slow(run.uri))
    assert found is not None and found.step == 40 and "step 30" in passed_over[0]


def test_commit_whose_writer_is_replaced_before_its_record_is_not_told_as_saved(run: Storage) -> None:
    begun = []
    slow = Interrupted(run.uri, "COMMIT.json", lambda: begun.append(begin_attempt(run, {})))
    with pytest.raises(FencedError, match="attempt 1 .* replaced"):
        commit(slow, 40, 1)
    assert begun[0].commit.step == 30 and newest(run)[0].step == 30  # type: ignore[union-attr]


def test_what_a_newer_attempt_is_writing_is_not_swept_or_pruned(run: Storage, tmp_path: Path) -> None:
    second = begin_attempt(run, {})
    begin_attempt(run, {})
    run.write("checkpoints/step-00000031-a0003/model.safetensors", b"under way")
    run.write("checkpoints/step-00000032-a0002/model.safetensors", b"given up")
    # The second attempt has read the fences just before the third raised its own.
    behind = open_storage(str(tmp_path / "behind"))
    shutil.copytree(run.uri, behind.uri)
    behind.delete("fences/00000003.json")
    RunDir(behind).sweep()
    assert RunDir(behind).prune(1, None) == [10, 20]
    assert list_commits(behind) == [CommitId(30, 1), CommitId(31, 3)] and second.token == 2
    RunDir(run).sweep()
    assert CommitId(31, 3) not in list_commits(run), "its own leftovers stay"


def test_race_lost_to_a_higher_number_is_told_at_once_and_leaves_no_fence(run: Storage, tmp_path: Path) -> None:
    class Racing(LocalStorage):
        """Not exclusive; a rival raises a higher fence in the same moment."""

        @property
        def is_exclusive(self) -> bool:
            return False

        def write(self, path: str, data: Data) -> None:
            super().write(path, data)
            if path.startswith("fences/"):
                rival = f"fences/{int(Path(path).stem) + 1:08d}.json"
                run.write(rival, run.read("fences/00000001.json"))

    with pytest.raises(FencedError, match="replaced"):
        begin_attempt(Racing(run.uri), {})
    assert len(run.list("fences")) == 2


def test_driver_that_lost_its_lease_does_not_fence_off_the_new_one(run: Storage) -> None:
    with Lease.acquire(run) as lease:
        successor = Interrupted(run.uri, "fences/", lambda: run.write("lease.json", Owner.current().record()))
        with pytest.raises(FencedError, match="taken over"):
            begin_attempt(successor, {}, lease.id)
        check(run, 1)
        assert [fence.token for fence in read_fences(run)] == [1]


def test_numbers_are_far_apart_where_two_could_create_the_same(tmp_path: Path) -> None:
    storage = ArrowStorage(SubTreeFileSystem(str(tmp_path), LocalFileSystem()), "run", "test://run")
    tokens = [begin_attempt(storage, {}).token for _ in range(20)]
    strides = [after - before for before, after in zip(tokens, tokens[1:], strict=False)]
    assert min(strides) > 0 and len(set(strides)) == 19 and max(strides) > 100_000
    assert len(storage.list("fences")) == 8 and [fence.token for fence in read_fences(storage)] == tokens


def test_best_that_is_damaged_is_made_again_from_the_commit_before_it(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "run"))
    token = begin_attempt(storage, {}).token
    for step in (10, 20, 30):
        part = {"model": {"w": torch.tensor([float(step)])}}
        write_commit(storage, step, token, part, {"best_step": 20 if step > 10 else 10})
    path = f"checkpoints/step-00000020-a{token:04d}/model.safetensors"
    storage.write(path, b"damaged")
    attempt = begin_attempt(storage, {})
    assert attempt.commit is not None and attempt.commit.step == 10
    assert len(attempt.passed_over) == 1 and "its best" in attempt.passed_over[0]
    assert newest(storage)[0].step == 10, "what was passed over is not on the line"  # type: ignore[union-attr]


def test_best_that_cannot_be_made_again_costs_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = open_storage(str(tmp_path / "run"))
    token = begin_attempt(storage, {}).token
    for step in (20, 30):
        write_commit(storage, step, token, {"model": {"w": torch.tensor([1.0])}}, {"best_step": 20})
    storage.delete(f"checkpoints/step-00000020-a{token:04d}/model.safetensors")
    attempt = begin_attempt(storage, {})
    assert attempt.commit is not None and attempt.commit.step == 30
    assert "commit.best_lost step=20" in caplog.text
