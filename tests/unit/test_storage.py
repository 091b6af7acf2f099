"""Claims about storage, local and through pyarrow: whole writes, kept roots, and failures with their reason."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from sports_ray.cli.show import own_words
from sports_ray.errors import ConfigError, RunError, StorageError
from sports_ray.recipe import build_config, config_to_dict
from sports_ray.store.arrow import ArrowStorage
from sports_ray.store.attempt import begin_attempt
from sports_ray.store.commit import newest, write_commit
from sports_ray.store.lease import Lease, Owner
from sports_ray.store.local import LocalStorage
from sports_ray.store.run_dir import RunDir, list_runs, recorded
from sports_ray.store.storage import Entry, Storage, absolute, below, open_storage, parted, without_keys


@pytest.fixture(params=["local", "pyarrow"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Both kinds: what runs through pyarrow here is the code that runs on s3:// and gs://."""
    if request.param == "local":
        return open_storage(str(tmp_path / "store"))
    return ArrowStorage(SubTreeFileSystem(str(tmp_path), LocalFileSystem()), "store", "test://store")


def test_what_was_written_is_read_listed_and_deleted(storage: Storage) -> None:
    storage.write("a/b/one", b"1")
    storage.write("a/b/one", [b"2", memoryview(b"34"), bytearray(b"")])
    storage.write("a/two", memoryview(b"12345"))
    assert storage.read("a/b/one") == b"234" and storage.find("a/nothing") is None
    assert storage.list("a") == [Entry("b", True, 0), Entry("two", False, 5)]
    assert storage.list("nowhere") == []
    assert storage.exists("a/b") and storage.exists("a/two") and not storage.exists("a/three")
    assert storage.child("a").child("b").read("one") == b"234"
    for path in ("a/b", "a/b", "a/two", "a/two", "never/there"):
        storage.delete(path)
    assert storage.list("a") == []


def test_folder_that_is_not_there_yet_is_not_one_that_has_vanished(tmp_path: Path) -> None:
    """A run's folder, made from that of a sweep: new it has no files, while the sweep is away nobody knows."""
    root = tmp_path / "mount" / "sweep"
    root.mkdir(parents=True)
    sweep = LocalStorage(str(root))
    assert sweep.child("new").list() == [] and sweep.child("new").find("run.json") is None
    root.rename(tmp_path / "away")
    for look in (lambda: sweep.child("trial").list(), lambda: sweep.child("trial").child("deep").find("run.json")):
        with pytest.raises(StorageError, match="ENOENT"):
            look()
    with pytest.raises(StorageError, match="ENOENT"):
        sweep.child("trial").write("run.json", b"1")
    (tmp_path / "away").rename(root)
    sweep.child("trial").write("run.json", b"1")
    assert sweep.child("trial").find("run.json") == b"1"


def test_exclusive_write_succeeds_once(storage: Storage) -> None:
    assert storage.write_exclusive("x/1", b"first")
    assert not storage.write_exclusive("x/1", b"second")
    assert storage.read("x/1") == b"first"
    assert [entry.name for entry in storage.list("x")] == ["1"]


def test_lines_are_appended(storage: Storage) -> None:
    assert storage.appended("log") == b""
    storage.append("log", b"one")
    storage.append("log", b"two\n")
    assert storage.appended("log") == b"one\ntwo\n"


def test_missing_file_is_a_storage_error_with_its_reason(storage: Storage) -> None:
    with pytest.raises(StorageError, match="cannot read .*nothing.*ENOENT"):
        storage.read("nothing")


@pytest.mark.parametrize("path", ["", "..", "a/../b", "/etc/passwd", "a//b", "./a", "a/", "a\0b", "a\\b"])
def test_no_path_leaves_the_root(storage: Storage, path: str) -> None:
    for action in (storage.read, storage.find, storage.exists, storage.delete, storage.child):
        with pytest.raises(RunError, match="relative path"):
            action(path)
    with pytest.raises(RunError, match="relative path"):
        storage.write(path, b"")
    with pytest.raises(RunError, match="relative path"):
        storage.write_exclusive(path, b"")


def test_write_that_fails_on_the_way_leaves_the_old_file(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.write("file", b"old")

    def broken() -> Iterator[bytes]:
        yield b"new"
        raise OSError(5, "the source broke")

    with pytest.raises(StorageError, match="EIO"):
        storage.write("file", broken())
    assert storage.read("file") == b"old" and os.listdir(tmp_path) == ["file"]


def test_a_whole_run_lives_on_pyarrow(tmp_path: Path) -> None:
    store: Storage = ArrowStorage(SubTreeFileSystem(str(tmp_path), LocalFileSystem()), "", "test:/")
    run = RunDir.open(store, "run-1")
    weights = {"w": torch.arange(5.0)}
    with Lease.acquire(run.storage) as lease:
        run.create({"classes": ["rowing"]})
        with pytest.raises(RunError, match="in use"):
            Lease.acquire(run.storage)
        attempt = begin_attempt(run.storage, {}, lease.id)
        for step in (10, 20, 30):
            write_commit(run.storage, step, attempt.token, {"model": weights}, {"step": step})
        assert run.prune(1, 10) == [20]
        run.append_timing({"kind": "commit"})
        run.publish_weights("last", weights, {"epochs": 3})
    folder = f"checkpoints/step-00000030-a{attempt.token:04d}"
    (tmp_path / "run-1" / folder / "model.safetensors").write_bytes(b"short")
    again = begin_attempt(run.storage, {})
    assert again.token > attempt.token and again.commit is not None and again.commit.step == 10
    assert torch.equal(again.commit.load("model")["w"], weights["w"])
    assert run.sweep() == [folder]
    assert torch.equal(run.read_weights("last")[0]["w"], weights["w"])
    assert list_runs(store) == ["run-1"] and run.read_timings() == [{"kind": "commit"}]
    assert not (tmp_path / "run-1/lease.json").exists()


def test_of_many_exclusive_writers_one_wins(tmp_path: Path) -> None:
    storage, wins, start = open_storage(str(tmp_path)), [], threading.Barrier(8)

    def compete(number: int) -> None:
        start.wait()
        for round_ in range(20):
            if storage.write_exclusive(str(round_), str(number).encode()):
                wins.append((round_, number))

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(round_ for round_, _ in wins) == list(range(20))
    assert all(storage.read(str(round_)) == str(number).encode() for round_, number in wins)


def test_torn_last_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b'{"a":1}\n{"b"')
    storage = open_storage(str(tmp_path))
    storage.append("log", b'{"c":3}')
    assert storage.appended("log") == b'{"a":1}\n{"b"\n{"c":3}\n'


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative = open_storage("runs")
    assert relative.uri == str(tmp_path / "runs"), "a change of folder must not move the store"
    open_storage(f"file://{tmp_path}/a%20b").write("x", b"1")
    assert (tmp_path / "a b" / "x").read_bytes() == b"1"
    with pytest.raises(ConfigError, match="s3://"):
        open_storage("ftp://host/x")
    with pytest.raises(ConfigError, match="third slash"):
        open_storage("file://runs/x")


def test_object_store_address_is_shown_without_credentials() -> None:
    storage = open_storage("s3://key:secret@bucket/runs?endpoint_override=localhost:1&scheme=http&region=x")
    assert isinstance(storage, ArrowStorage) and storage.uri == "s3://bucket/runs"


def commit_of_2_mb(storage: Storage, step: int, token: int) -> None:
    write_commit(storage, step, token, {"model": {"w": torch.full((500_000,), float(step))}}, {})


def test_full_disk_is_named_and_the_last_commit_stays(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        storage = open_storage(str(folder))
        token = begin_attempt(storage, {}).token
        commit_of_2_mb(storage, 1, token)
        commit_of_2_mb(storage, 2, token)
        with pytest.raises(StorageError, match="cannot write .*ENOSPC.*free some space"):
            commit_of_2_mb(storage, 3, token)
        found, passed_over = newest(storage)
        assert found is not None and found.step == 2 and not passed_over, "what found no room takes none"
        assert not list(folder.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        with pytest.raises(StorageError, match="EROFS.*writable"):
            commit_of_2_mb(storage, 3, token)
        subprocess.run(["mount", "-o", "remount,rw,size=9m", folder], check=True)
        commit_of_2_mb(storage, 3, token)
        assert newest(storage)[0].step == 3  # type: ignore[union-attr]
    finally:
        subprocess.run(["umount", folder], check=True)


def test_limit_on_file_size_is_named_and_nothing_half_written_stays(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    token = begin_attempt(storage, {}).token
    large = {"model": {"w": torch.zeros(500_000)}}  # made here: a forked child has none of torch's threads
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
            write_commit(storage, 1, token, large, {})
        except StorageError as error:
            os._exit(0 if "EFBIG" in str(error) and "ulimit" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert newest(storage)[0] is None and not list(tmp_path.rglob("*.tmp"))


def test_without_hard_links_an_exclusive_write_still_succeeds_once(tmp_path: Path) -> None:
    # Not a mock of the storage but of the file system: vfat and some FUSE mounts answer link with EPERM.
    class NoLinks(LocalStorage):
        def write_exclusive(self, path: str, data: object) -> bool:
            real = os.link
            try:
                os.link = _refuse  # type: ignore[assignment]
                return super().write_exclusive(path, data)  # type: ignore[arg-type]
            finally:
                os.link = real

    storage = NoLinks(str(tmp_path))
    assert storage.write_exclusive("x", b"first") and not storage.write_exclusive("x", b"second")
    assert storage.read("x") == b"first" and os.listdir(tmp_path) == ["x"]


def _refuse(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize(
    ("store", "folder"),
    [
        ("/data/runs", "/data/runs/a"),
        ("/data/what?/runs", "/data/what?/runs/a"),
        ("s3://bucket/runs", "s3://bucket/runs/a"),
        ("s3://bucket/runs?scheme=http&endpoint_override=h:1", "s3://bucket/runs/a?scheme=http&endpoint_override=h:1"),
        ("s3://bucket?endpoint_override=http://h:1/", "s3://bucket/a?endpoint_override=http://h:1/"),
    ],
)
def test_options_of_an_address_stay_behind_the_names_of_folders(store: str, folder: str) -> None:
    assert below(store, "a") == folder and parted(folder) == (store, "a")
    assert parted("a") == ("", "a")


def test_place_is_the_same_for_processes_with_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/anna")
    assert absolute("photos") == str(tmp_path / "photos") and absolute("~/photos") == "/home/anna/photos"
    for address in ("s3://bucket/photos", "gs://bucket/a?retry_limit_seconds=3"):
        assert absolute(address) == address


def test_key_and_secret_of_an_address_are_neither_shown_nor_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "sports-ray train --data=s3://K:S%2F@photos/a --store 's3://K:S@bucket/runs?region=eu' --run me@home"
    bare = "sports-ray train --data=s3://photos/a --store 's3://bucket/runs?region=eu' --run me@home"
    assert without_keys(text) == bare
    monkeypatch.setattr("sys.argv", shlex.split(text))
    assert own_words() == shlex.split(bare) and Owner.current().command == shlex.join(shlex.split(bare))
    config = build_config(None, {"model.name": "test_resnet", "store.root": "s3://K:S@bucket/runs", "data.root": "/a"})
    assert recorded(config_to_dict(config))["store"]["root"] == "s3://bucket/runs"
