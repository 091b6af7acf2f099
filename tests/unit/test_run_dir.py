"""Claims about the folder of a run: names, records that mend themselves, retention, weights that match their description."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex

import pytest
import torch
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from sports_ray.errors import RunError, StorageError, WeightsError
from sports_ray.store.arrow import MERGED_FROM, ArrowStorage
from sports_ray.store.attempt import begin_attempt
from sports_ray.store.commit import list_commits, write_commit
from sports_ray.store.run_dir import RunDir, checked_run_name, list_runs, retained
from sports_ray.store.storage import Data, chunks_of, open_storage
from tests.support.killed import in_memory

OLD, NEW = {"w": torch.zeros(3)}, {"w": torch.ones(3)}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    with in_memory(tmp_path) as folder:
        yield RunDir(open_storage(str(folder / "run")))


def copy_of(run: RunDir, name: str) -> RunDir:
    copy = Path(run.storage.uri).with_name(name)
    shutil.copytree(run.storage.uri, copy)
    return RunDir(open_storage(str(copy)))


def damages(path: Path) -> Iterator[Callable[[], object]]:
    content = path.read_bytes()
    yield lambda: path.write_bytes(content[: len(content) // 2])
    yield lambda: path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    yield path.unlink


def test_steps_retained_are_the_newest_and_the_best() -> None:
    steps = range(10, 110, 10)
    assert retained(steps, 3, None) == {80, 90, 100}
    assert retained(steps, 3, 20) == {20, 80, 90, 100}
    assert retained(steps, 0, None) == {100}, "the newest is never deleted"
    assert retained(steps, 1, 55, also=(10, 30, 31)) == {10, 30, 100}
    assert retained([], 3, 10) == set()


@pytest.mark.parametrize("name", ["", ".hidden", "-x", "a/b", "..", "a b", "ü", "x" * 121, "a\n"])
def test_name_that_is_no_folder_name_everywhere_is_refused(name: str) -> None:
    with pytest.raises(RunError, match="letters, digits"):
        checked_run_name(name)


def test_runs_are_listed_and_other_folders_are_not(tmp_path: Path) -> None:
    store = open_storage(str(tmp_path))
    assert list_runs(store) == []
    for name in ("b-2", "a_1.x"):
        RunDir.open(store, name).create({})
    store.write("notes/readme", b"")
    store.write(".hidden/run.json", b"")
    assert list_runs(store) == ["a_1.x", "b-2"]


def test_run_is_created_once(run: RunDir) -> None:
    assert run.read_record() is None
    run.create({"classes": ["fencing", "Ski­ing"]})
    with pytest.raises(RunError, match="a run that exists"):
        run.create({"classes": []})
    assert run.read_record() == {"classes": ["fencing", "Ski­ing"]}


@pytest.mark.parametrize("name", ["run.json", "run.copy.json"])
def test_record_survives_any_damage_to_one_of_its_files(run: RunDir, name: str) -> None:
    run.create({"config": {"lr": 0.1}})
    for damage in damages(Path(run.storage.uri) / name):
        damage()
        assert run.read_record() == {"config": {"lr": 0.1}}
        run.write_record({"config": {"lr": 0.1}})


def test_record_damaged_twice_is_an_error(run: RunDir) -> None:
    run.create({"config": {}})
    for name in ("run.json", "run.copy.json"):
        (Path(run.storage.uri) / name).write_bytes(b'{"config": {"lr": 9}}')
    with pytest.raises(RunError, match="run.json.*damaged record"):
        run.read_record()


def test_checkpoints_without_a_record_are_not_a_new_run(run: RunDir) -> None:
    write_commit(run.storage, 10, begin_attempt(run.storage, {}).token, {"m": OLD}, {})
    with pytest.raises(RunError, match="checkpoints but no run.json.*start over"):
        run.read_record()


def test_equal_histories_have_equal_bytes(run: RunDir) -> None:
    path = Path(run.storage.uri) / "metrics.jsonl"
    run.write_metrics([{"epoch": 1, "acc1": 0.1 + 0.2, "loss": float("nan")}])
    first = path.read_bytes()
    run.write_metrics([{"loss": float("nan"), "acc1": 0.1 + 0.2, "epoch": 1}])
    assert path.read_bytes() == first == b'{"acc1":0.30000000000000004,"epoch":1,"loss":null}\n'
    assert run.read_metrics() == [{"acc1": 0.1 + 0.2, "epoch": 1, "loss": None}]


def test_timings_survive_a_torn_line_and_never_fail_a_run(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    run.append_timing({"kind": "start"})
    path = Path(run.storage.uri) / "timings.jsonl"
    path.write_bytes(path.read_bytes() + b'{"kind": "to')
    run.append_timing({"kind": "end"})
    assert run.read_timings() == [{"kind": "start"}, {"kind": "end"}]
    path.unlink()
    path.mkdir()
    run.append_timing({"kind": "lost"})
    assert "timing.lost" in caplog.text and "EISDIR" in caplog.text


class Objects(ArrowStorage):
    """What lies on an object store, with a count of the changes that it still takes before it fails for good."""

    def __init__(self, folder: Path) -> None:
        super().__init__(SubTreeFileSystem(str(folder), LocalFileSystem()), "run", "test://run")
        self.folder, self.left = folder, 1 << 30

    def write(self, path: str, data: Data) -> None:
        self._change()
        hidden = self.folder / token_hex(8)  # an object appears as a whole, and a file does not
        hidden.write_bytes(b"".join(chunks_of(data)))
        target = self.folder / "run" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        hidden.replace(target)

    def delete(self, path: str) -> None:
        self._change()
        super().delete(path)

    def _change(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise StorageError("cannot change", got="an outage")


def append(run: RunDir, *numbers: int) -> None:
    for number in numbers:
        run.append_timing({"n": number})


def numbers(run: RunDir) -> list[int]:
    return [event["n"] for event in run.read_timings()]


def objects(run: RunDir) -> int:
    return len(run.storage.list("timings.jsonl.d"))


def test_start_of_a_session_merges_the_timings_that_lie_in_an_object_each(tmp_path: Path) -> None:
    run, last = RunDir(Objects(tmp_path)), 0
    append(run, 0, 1, 2)
    run.sweep()
    assert objects(run) == 3, "a few are not worth it"
    for _ in range(3):
        append(run, *range(last + 3, last + 3 + MERGED_FROM))
        last += MERGED_FROM
        run.sweep()
        assert objects(run) == 1 and numbers(run) == list(range(last + 3))
    append(run, last + 3)
    assert numbers(run) == list(range(last + 4))


@pytest.mark.parametrize("changes", [0, 1, 2, MERGED_FROM // 2, MERGED_FROM])
def test_merge_that_breaks_off_loses_no_line_and_doubles_none(tmp_path: Path, changes: int) -> None:
    storage = Objects(tmp_path)
    run, expected = RunDir(storage), list(range(MERGED_FROM + 2))
    append(run, *expected)
    for _ in range(3):
        storage.left = changes
        run.sweep()
        assert numbers(run) == expected
    storage.left = 1 << 30
    append(run, *range(len(expected), len(expected) + MERGED_FROM))
    run.sweep()
    assert objects(run) == 1 and numbers(run) == list(range(len(expected) + MERGED_FROM))


def test_merged_object_that_does_not_read_back_costs_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(Objects(tmp_path))
    append(run, *range(MERGED_FROM))
    write = Objects.write
    monkeypatch.setattr(Objects, "write", lambda self, path, data: write(self, path, bytes(data)[:100]))
    run.sweep()
    assert objects(run) == MERGED_FROM + 1 and numbers(run) == list(range(MERGED_FROM))


def test_sessions_that_merge_append_and_read_at_the_same_time_lose_no_line_and_double_none(tmp_path: Path) -> None:
    run = RunDir(Objects(tmp_path))
    append(run, *range(MERGED_FROM))
    start, problems, seen = threading.Barrier(5), [], []

    def work(first: int) -> None:
        own = RunDir(Objects(tmp_path))
        try:
            start.wait()
            for number in range(first, first + 2 * MERGED_FROM):
                append(own, number)
                if number % 40 == 0:
                    own.sweep()
                    seen.append(numbers(own))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(1000 * index,)) for index in range(1, 5)]
    for thread in threads:
        thread.start()
    start.wait()
    for thread in threads:
        thread.join()
    assert not problems, problems
    written = {*range(MERGED_FROM), *(1000 * k + n for k in range(1, 5) for n in range(2 * MERGED_FROM))}
    assert sorted(numbers(run)) == sorted(written) and objects(run) < 4 * MERGED_FROM
    for found in seen:
        assert len(found) == len(set(found)) and set(range(MERGED_FROM)) <= set(found)


def test_stop_is_asked_for_and_withdrawn(run: RunDir) -> None:
    assert run.stop_requested() is None
    run.request_stop("budget")
    assert run.stop_requested() == "budget"
    (Path(run.storage.uri) / "stop.json").write_bytes(b"{")
    assert run.stop_requested() == "unreadable request", "a damaged wish to stop is still one"
    run.clear_stop()
    run.clear_stop()
    assert run.stop_requested() is None


def start_commits(run: RunDir, *steps: int) -> int:
    token = begin_attempt(run.storage, {}).token
    for step in steps:
        write_commit(run.storage, step, token, {"m": OLD}, {"step": step})
    return token


def test_prune_keeps_the_best_and_does_not_count_what_is_unfinished_or_fenced_off(run: RunDir) -> None:
    start_commits(run, 10, 20, 30)
    zombie = copy_of(run, "zombie")
    write_commit(zombie.storage, 99, 1, {"m": OLD}, {})
    token = start_commits(run, 40, 50)
    shutil.copytree(
        Path(zombie.storage.uri) / "checkpoints/step-00000099-a0001",
        Path(run.storage.uri) / "checkpoints/step-00000099-a0001",
    )
    run.storage.write("checkpoints/step-00000045-a0002/m.safetensors", b"given up")
    run.storage.write("checkpoints/step-00000060-a0002/m.safetensors", b"under way")
    write_commit(run.storage, 30, token, {"m": NEW}, {})
    assert run.prune(2, 30) == [10, 20, 30, 45]
    left = [(found.step, found.token) for found in list_commits(run.storage)]
    assert left == [(30, 2), (40, 2), (50, 2), (60, 2), (99, 1)]
    run.sweep()
    assert [found.step for found in list_commits(run.storage)] == [30, 40, 50]


def test_sweep_deletes_what_interrupted_writes_left_and_nothing_else(run: RunDir) -> None:
    run.create({})
    start_commits(run, 10)
    run.publish_weights("best", OLD, {})
    whole = sorted(path for path in Path(run.storage.uri).rglob("*"))
    for path in (
        ".run.json.ab12.tmp",
        "weights/.best.json.1.tmp",
        "checkpoints/step-00000010-a0001/.m.safetensors.2.tmp",
    ):
        run.storage.write(path, b"")
    run.storage.write("checkpoints/step-00000010-a0001/m-0123456789abcdef.safetensors", b"")
    run.storage.write("checkpoints/step-00000020-a0001/m.safetensors", b"")
    run.sweep()
    assert sorted(path for path in Path(run.storage.uri).rglob("*")) == whole


@pytest.mark.parametrize("name", ["best.safetensors", "best.json"])
def test_damaged_weights_are_never_loaded(run: RunDir, name: str) -> None:
    run.publish_weights("best", NEW, {"epochs": 2})
    for damage in damages(Path(run.storage.uri) / "weights" / name):
        damage()
        with pytest.raises(WeightsError, match="training command again"):
            run.read_weights("best")
        run.publish_weights("best", NEW, {"epochs": 2})
        assert torch.equal(run.read_weights("best")[0]["w"], NEW["w"])


def test_sidecar_holds_the_hash_and_equal_weights_have_equal_files(run: RunDir) -> None:
    digest = run.publish_weights("best", NEW, {"epochs": 2})
    folder = Path(run.storage.uri) / "weights"
    first = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
    assert json.loads(first[0][1])["weights_sha256"] == digest
    run.publish_weights("best", OLD, {"epochs": 1})
    run.publish_weights("best", NEW, {"epochs": 2})
    assert [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())] == first


@pytest.mark.parametrize("missing", ["best.safetensors", "best.json", "last.safetensors", "last.json"])
def test_run_is_finished_when_both_its_weights_are_there(run: RunDir, missing: str) -> None:
    assert run.finished_epochs() == 0
    run.publish_weights("last", OLD, {"epochs": 4})
    assert run.finished_epochs() == 0, "its best weights are still to come"
    run.publish_weights("best", NEW, {"epochs": 2})
    assert run.finished_epochs() == 2, "the best weights are of the time before the run was made longer"
    run.publish_weights("best", NEW, {"epochs": 4})
    assert run.finished_epochs() == 4
    run.storage.delete(f"weights/{missing}")
    assert run.finished_epochs() == 0
