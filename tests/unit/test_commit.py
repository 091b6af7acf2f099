"""Claims about commits: what verifies is used, what does not is passed over, and no death loses a finished one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from sports_ray.errors import ConfigError, FencedError, RunError, StorageError
from sports_ray.store import commit as commits
from sports_ray.store.attempt import begin_attempt
from sports_ray.store.codec import Encoded, canonical, parse, seal, unseal
from sports_ray.store.commit import CommitId, list_commits, newest, read_commit, write_commit
from sports_ray.store.fence import Fence, check, is_orphan, read_fences
from sports_ray.store.local import LocalStorage
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import Data, Storage, chunks_of, failures, open_storage, storage_error


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    weights = {"head.weight": torch.randn(7, 5, generator=generator), "count": torch.tensor(step)}
    return {"model": weights, "optim": {"exp_avg": torch.randn(7, 5, generator=generator).bfloat16()}}


def commit(storage: Storage, step: int, token: int) -> None:
    write_commit(storage, step, token, tensors(step), {"step": step, "history": [{"acc1": step / 7}]})


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run"))


@pytest.fixture
def run(storage: Storage) -> Storage:
    return start_run(storage)


def start_run(storage: Storage) -> Storage:
    """A run with commits at steps 10, 20 and 30 by its first attempt."""
    token = begin_attempt(storage, {"host": "a"}).token
    for step in (10, 20, 30):
        commit(storage, step, token)
    return storage


def copy_of(storage: Storage) -> Storage:
    copy = Path(storage.uri).with_name(f"copy-{secrets.token_hex(4)}")
    shutil.copytree(storage.uri, copy)
    return open_storage(str(copy))


def files_of(storage: Storage) -> list[Path]:
    return sorted(path for path in Path(storage.uri).rglob("*") if path.is_file())


def test_commit_comes_back_to_the_last_bit(run: Storage) -> None:
    found, passed_over = newest(run)
    assert found is not None and (found.step, found.token, passed_over) == (30, 1, [])
    assert found.state == {"step": 30, "history": [{"acc1": 30 / 7}]}
    for name, part in tensors(30).items():
        loaded = found.load(name)
        assert {key: (t.dtype, t.shape) for key, t in loaded.items()} == {
            k: (t.dtype, t.shape) for k, t in part.items()
        }
        assert all(torch.equal(loaded[key], tensor) for key, tensor in part.items())
        assert all(torch.equal(found.load(name)[key], tensor) for key, tensor in part.items()), "a second load"


def test_files_are_plain_safetensors_that_others_read(run: Storage) -> None:
    path = Path(run.uri) / "checkpoints/step-00000030-a0001/model.safetensors"
    assert torch.equal(load_file(path)["head.weight"], tensors(30)["model"]["head.weight"])


def test_bytes_equal_those_of_the_safetensors_library_for_every_dtype() -> None:
    names = ("float64", "float32", "bfloat16", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
    wide = [getattr(torch, name) for name in ("uint64", "uint32", "uint16")]
    every = {name: torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in names}
    every |= {str(dtype): torch.tensor([1, 2, 3], dtype=dtype) for dtype in wide}
    every |= {"scalar": torch.tensor(2.5), "none": torch.empty(0, 4), "één": torch.ones(3), "a": torch.ones(1)}
    assert b"".join(Encoded(every)) == save(every)
    assert Encoded(dict(reversed(every.items()))).sha256() == hashlib.sha256(save(every)).hexdigest()


def test_tensor_that_is_not_dense_is_stored_by_its_values(storage: Storage) -> None:
    strided = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    token = begin_attempt(storage, {}).token
    write_commit(storage, 1, token, {"m": {"w": strided, "t": torch.arange(6.0).reshape(2, 3).T}}, {})
    loaded = read_commit(storage, 1).load("m")
    assert torch.equal(loaded["w"], strided) and torch.equal(loaded["t"], torch.arange(6.0).reshape(2, 3).T)


def test_nan_and_infinity_become_null_and_key_order_does_not_matter() -> None:
    assert canonical({"b": float("nan"), "a": [float("-inf"), 1.5]}) == '{"a":[null,1.5],"b":null}'
    assert seal({"a": 1, "b": 2}) == seal({"b": 2, "a": 1})


def test_every_flipped_bit_of_a_record_is_seen() -> None:
    sealed = seal({"step": 10, "name": "zoë", "x": [0.1, None, True]})
    for bit in range(8 * len(sealed)):
        damaged = bytearray(sealed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RunError, match="damaged"):
            unseal(damaged, "a record")


@pytest.mark.parametrize("cut", [0, 7, 8, 60, -1])
def test_cut_safetensors_do_not_parse(cut: int) -> None:
    whole = b"".join(Encoded(tensors(1)["model"]))
    with pytest.raises(RunError, match="safetensors"):
        parse(whole[:cut])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def flip_first(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 0x80
    path.write_bytes(content)


def flip_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_last(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 4
    path.write_bytes(content)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def make_folder(path: Path) -> None:
    """Unreadable even for root."""
    path.unlink()
    path.mkdir()


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


DAMAGES = [truncate, empty, extend, flip_first, flip_middle, flip_last, zero, make_folder, dangle, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_any_damage_to_any_file_leads_to_the_newest_commit_that_verifies(
    run: Storage, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    for path in files_of(run):
        copy = copy_of(run)
        damage(Path(copy.uri) / path.relative_to(run.uri))
        caplog.clear()
        found, passed_over = newest(copy)
        hit = "step-00000030" in str(path)
        assert found is not None and found.step == (20 if hit else 30), path
        assert torch.equal(found.load("model")["head.weight"], tensors(found.step)["model"]["head.weight"])
        assert [line.split(":")[0] for line in passed_over] == (["step 30 (attempt 1)"] if hit else []), path
        assert ("commit.passed_over step=30" in caplog.text) == hit
        # The attempt that goes on from there has one history again.
        attempt = begin_attempt(copy, {})
        assert attempt.token == 2
        commit(copy, 40, attempt.token)
        assert newest(copy)[0].step == 40  # type: ignore[union-attr]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_run_whose_commits_are_all_damaged_says_so_and_never_starts_afresh(
    run: Storage, damage: Callable[[Path], None]
) -> None:
    for path in files_of(run):
        if path.name == "COMMIT.json":
            damage(path)
    with pytest.raises(RunError, match="no checkpoint .* can be trusted.*start over: delete"):
        begin_attempt(run, {})


def test_run_whose_only_record_was_deleted_does_not_start_afresh(storage: Storage) -> None:
    commit(storage, 10, begin_attempt(storage, {}).token)
    (Path(storage.uri) / "checkpoints/step-00000010-a0001/COMMIT.json").unlink()
    with pytest.raises(RunError, match="can be trusted"):
        newest(storage)


def test_run_that_died_in_its_first_commit_starts_afresh(storage: Storage) -> None:
    begin_attempt(storage, {})
    storage.write("checkpoints/step-00000010-a0001/model.safetensors", b"half")
    found, passed_over = newest(storage)
    assert found is None and "no COMMIT.json" in passed_over[0]


def test_damage_between_verification_and_loading_is_seen(run: Storage) -> None:
    found = read_commit(run, 30)
    found.load("model")
    flip_last(Path(run.uri) / "checkpoints/step-00000030-a0001/model.safetensors")
    with pytest.raises(RunError, match="other bytes"):
        found.load("model")


def test_record_of_another_step_is_not_believed(run: Storage) -> None:
    folder = Path(run.uri) / "checkpoints"
    shutil.copytree(folder / "step-00000010-a0001", folder / "step-00000099-a0001")
    found, passed_over = newest(run)
    assert found is not None and found.step == 30 and "record of step 10" in passed_over[0]


class Stumbling(LocalStorage):
    """The same files; the first `times` reads of a path that holds `where` fail with EIO."""

    def __init__(self, root: str, where: str, times: int, number: int = errno.EIO) -> None:
        super().__init__(root)
        self.where, self.times, self.number = where, times, number

    def read(self, path: str) -> bytearray:
        if self.where in path and self.times:
            self.times -= 1
            error = OSError(self.number, "a time limit of the network")
            raise storage_error("read", path, error) from error
        return super().read(path)


@pytest.mark.parametrize("where", ["step-00000030-a0001/COMMIT.json", "step-00000030-a0001/model.safetensors"])
def test_commit_that_cannot_be_read_for_a_moment_is_not_passed_over(
    run: Storage, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """An attempt would begin before it, and delete it."""
    pauses: list[float] = []
    monkeypatch.setattr(commits.time, "sleep", pauses.append)
    found, passed_over = newest(Stumbling(run.uri, where, 2))
    assert found is not None and found.step == 30 and not passed_over and len(pauses) == 2
    found, passed_over = newest(Stumbling(run.uri, where, 10**6))
    assert found is not None and found.step == 20 and "EIO" in passed_over[0] and 4 < sum(pauses) - pauses[0] < 10
    pauses.clear()
    found, _ = newest(Stumbling(run.uri, where, 10**6, errno.EACCES))
    assert found is not None and found.step == 20 and not pauses, "what cannot pass is not waited for"


def test_commit_of_a_newer_version_is_not_passed_over(run: Storage) -> None:
    path = "checkpoints/step-00000030-a0001/COMMIT.json"
    run.write(path, seal(unseal(run.read(path), path) | {"format": 2}))
    with pytest.raises(ConfigError, match="upgrade sports-ray"):
        newest(run)


def test_storage_that_went_away_is_an_error_and_not_a_new_run(run: Storage) -> None:
    Path(run.uri).rename(Path(run.uri).with_name("elsewhere"))
    with pytest.raises(StorageError, match="ENOENT"):
        newest(run)
    with pytest.raises(StorageError, match="ENOENT"):
        commit(run, 40, 1)
    assert not Path(run.uri).exists(), "a vanished storage was made anew"
    Path(run.uri).mkdir()  # a mount point without its mount
    with pytest.raises(StorageError, match="fence 1"):
        commit(run, 40, 1)
    assert not list(Path(run.uri).iterdir())


class Failing(LocalStorage):
    """The same files; writes of paths that hold `where` fail, or all that would fill more than `room` bytes."""

    def __init__(self, root: str, where: str = "", number: int = errno.ENOSPC, room: float = 1e9) -> None:
        super().__init__(root)
        self.where, self.number, self.room = where, number, room

    def write(self, path: str, data: Data) -> None:
        content = b"".join(chunks_of(data))
        full = len(content) > self.room - sum(found.stat().st_size for found in files_of(self))
        with failures("write", path):
            if full or (self.where and self.where in path):
                raise OSError(self.number, os.strerror(self.number))
        super().write(path, content)


@pytest.mark.parametrize("where", ["optim", "COMMIT.json"])
def test_try_that_finds_no_room_leaves_none_of_its_files(run: Storage, where: str) -> None:
    run.write("checkpoints/step-00000035-a0001/model.safetensors", b"left by an earlier try")
    run.write("checkpoints/step-00000036-a0002/model.safetensors", b"of another attempt")
    others = [path for path in files_of(run) if "00000035" not in str(path)]
    with pytest.raises(StorageError, match="ENOSPC"):
        commit(Failing(run.uri, where), 40, 1)
    assert files_of(run) == others
    assert list_commits(run) == [CommitId(10, 1), CommitId(20, 1), CommitId(30, 1), CommitId(36, 2)]


def test_newer_commit_needs_no_room_beside_one_that_found_none(run: Storage) -> None:
    disk = Failing(run.uri)
    sizes = {path: path.stat().st_size for path in files_of(run)}
    used, each = sum(sizes.values()), sum(size for path, size in sizes.items() if "step-00000030" in str(path))
    disk.room = used + 0.9 * each
    for step in (40, 50, 40):
        with pytest.raises(StorageError, match="ENOSPC"):
            commit(disk, step, 1)
    disk.room = used + 1.1 * each
    commit(disk, 60, 1)
    assert newest(disk)[0].step == 60  # type: ignore[union-attr]


@pytest.mark.parametrize("where", ["optim", "COMMIT.json"])
def test_commit_that_stands_survives_a_second_one_of_its_step_that_finds_no_room(run: Storage, where: str) -> None:
    with pytest.raises(StorageError, match="ENOSPC"):
        write_commit(Failing(run.uri, where), 30, 1, tensors(31), {"step": 31})
    found = read_commit(run, 30)
    assert found.state["step"] == 30 and torch.equal(found.load("model")["count"], torch.tensor(30))


def test_commit_whose_record_is_there_is_not_deleted_for_what_fails_after_it(storage: Storage) -> None:
    token = begin_attempt(storage, {}).token
    with pytest.raises(StorageError, match="ENOSPC"):
        commit(Failing(storage.uri, "begun"), 10, token)
    assert newest(storage)[0].step == 10  # type: ignore[union-attr]


def test_store_that_is_away_is_not_asked_to_delete(run: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a server is dead each request takes its time limit, and a pause waits for it."""
    asked: list[str] = []
    monkeypatch.setattr(Failing, "delete", lambda self, path: asked.append(path))
    with pytest.raises(StorageError, match="ETIMEDOUT"):
        commit(Failing(run.uri, "optim", errno.ETIMEDOUT), 40, 1)
    assert not asked


def test_leftovers_that_cannot_be_deleted_do_not_hide_why_the_commit_failed(
    run: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Failing, path: str) -> None:
        raise StorageError("cannot delete", got="EROFS")

    monkeypatch.setattr(Failing, "delete", refuse)
    with pytest.raises(StorageError, match="ENOSPC"):
        commit(Failing(run.uri, "optim"), 40, 1)


def test_same_step_again_replaces_the_state_and_keeps_what_verifies(run: Storage) -> None:
    path = Path(run.uri) / "checkpoints/step-00000030-a0001/model.safetensors"
    before = path.stat()
    write_commit(run, 30, 1, tensors(30), {"best": 0.5})
    assert read_commit(run, 30).state == {"best": 0.5}
    assert path.stat().st_ino == before.st_ino, "equal tensors were written again"
    flip_last(path)
    write_commit(run, 30, 1, tensors(30), {"best": 0.6})
    assert torch.equal(read_commit(run, 30).load("model")["count"], torch.tensor(30))
    write_commit(run, 30, 1, tensors(31), {"best": 0.7})
    assert torch.equal(read_commit(run, 30).load("model")["count"], torch.tensor(31))
    assert len(list(path.parent.iterdir())) == 3, "the files that were replaced are left"


def test_tokens_rise_and_a_replaced_attempt_is_fenced(run: Storage) -> None:
    first, second = 1, begin_attempt(run, {"host": "b"})
    assert second.token == 2 and second.commit is not None and second.commit.step == 30
    with pytest.raises(FencedError, match="attempt 1 .* replaced.*attempt 2"):
        commit(run, 40, first)
    commit(run, 40, second.token)
    check(run, second.token)
    assert [found.step for found in list_commits(run)] == [10, 20, 30, 40]


def test_zombie_stopped_just_before_its_record_neither_wins_nor_harms(run: Storage, tmp_path: Path) -> None:
    # The zombie has passed its last check and is stopped; a new attempt goes on and commits the same step; it wakes.
    zombie = open_storage(str(tmp_path / "zombie"))
    shutil.copytree(run.uri, zombie.uri)
    commit(zombie, 40, 1)
    write_commit(run, 40, begin_attempt(run, {}).token, tensors(41), {"writer": "new"})
    woken = Path(zombie.uri) / "checkpoints/step-00000040-a0001"
    shutil.copytree(woken, Path(run.uri) / "checkpoints" / woken.name)
    found, passed_over = newest(run)
    assert found is not None and found.state == {"writer": "new"}
    assert torch.equal(found.load("model")["count"], torch.tensor(41))
    assert read_commit(run, 40).state == {"writer": "new"}
    shutil.rmtree(Path(run.uri) / "checkpoints/step-00000040-a0002")
    found, passed_over = newest(run)
    assert found is not None and found.step == 30 and "had been replaced" in passed_over[0]
    RunDir(run).sweep()
    assert [found.step for found in list_commits(run)] == [10, 20, 30]


def test_damaged_fence_is_known_from_the_later_ones(run: Storage) -> None:
    commit(run, 40, 1)
    for _ in range(3):
        begin_attempt(run, {})
    known = read_fences(run)
    assert known == [Fence(1, 0, 0), Fence(2, 40, 1), Fence(3, 40, 1), Fence(4, 40, 1)]
    flip_middle(Path(run.uri) / "fences/00000002.json")
    (Path(run.uri) / "fences/00000003.json").unlink()
    assert read_fences(run) == known
    assert is_orphan(41, 1, known) and not is_orphan(40, 1, known) and not is_orphan(41, 4, known)


def test_a_thousand_sessions_leave_few_fences(storage: Storage) -> None:
    for number in range(30):
        assert begin_attempt(storage, {}).token == number + 1
    assert len(storage.list("fences")) <= 8 and len(read_fences(storage)) == 30


def test_sweep_leaves_one_proof_that_there_were_commits(run: Storage) -> None:
    for step in (40, 50, 60):
        commit(run, step, begin_attempt(run, {}).token)
    RunDir(run).sweep()
    assert [entry.name for entry in run.list("checkpoints") if not entry.is_dir] == ["begun-a0004-00000060"]
    for path in files_of(run):
        if path.name == "COMMIT.json":
            path.unlink()
    with pytest.raises(RunError, match="can be trusted"):
        begin_attempt(run, {})


def test_record_says_what_the_design_promises(run: Storage) -> None:
    record = json.loads(run.read("checkpoints/step-00000030-a0001/COMMIT.json"))
    content = (Path(run.uri) / "checkpoints/step-00000030-a0001/optim.safetensors").read_bytes()
    assert (record["format"], record["step"], record["token"]) == (1, 30, 1)
    entry = {"path": "optim.safetensors", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert record["files"]["optim"] == entry
