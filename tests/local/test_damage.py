"""Every file of a real run is cut, flipped, deleted or made unreadable, in turn: damaged data is never loaded, the newest
commit that verifies is used, and a run that goes on from there ends with the bytes of the unbroken one.

The long form, over 1,000 cases: pytest -m long tests/local/test_damage.py
"""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sports_ray.cli.status import run_facts
from sports_ray.config import TrainConfig
from sports_ray.data.demo import draw_demo
from sports_ray.errors import RunError, SportsRayError, WeightsError
from sports_ray.store.attempt import begin_attempt
from sports_ray.store.codec import Encoded
from sports_ray.store.commit import list_commits, newest, read_commit, write_commit
from sports_ray.store.lease import Lease
from sports_ray.store.run_dir import MANIFEST, RunDir
from sports_ray.store.storage import open_storage
from tests.support.damage import Damage, copy_run, damages
from tests.support.killed import in_memory
from tests.support.runs import FORKS, results, small_config, train_in_child
from tests.support.shell import sports_ray

KEEP = 2
BEST, BEFORE, NEWEST = 8, 10, 11
"""Steps of the commits that the run is left with: the best, and the newest two."""


@dataclass(frozen=True)
class Original:
    """The undamaged run, and what is to be found in any copy of it."""

    config: TrainConfig
    run: Path
    files: list[Path]
    commits: dict[int, dict[str, bytes]]
    weights: dict[str, bytes]
    record: dict[str, Any]
    settled: dict[str, Any]
    manifest: bytes
    unbroken: dict[str, bytes]

    def cases(self, flips: int) -> list[Damage]:
        return [case for path in self.files for case in damages(self.run, path, flips)]


def _hold(root: str) -> None:
    import os

    Lease.acquire(open_storage(root))
    os._exit(9)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Original]:
    """A run that was done after one epoch, extended to three, paused before the last step, and left by a killed driver."""
    with in_memory(tmp_path_factory.mktemp("damage")) as folder:
        draw_demo(folder / "set", classes=4, per_class=12, size=40, seed=1)
        config = small_config(folder / "set", folder / "store", loop__epochs=3, store__keep=KEEP, optim__lr=4e-3)
        whole = replace(config, store=replace(config.store, run="whole"))
        first = {name: replace(c, loop=replace(c.loop, epochs=1)) for name, c in (("run", config), ("whole", whole))}
        assert train_in_child(first["run"]) == 0 and train_in_child(config, stop_at=9) == 75
        assert train_in_child(first["whole"]) == 0 and train_in_child(whole) == 0
        run = folder / "store/run"
        holder = FORKS.Process(target=_hold, args=(str(run),))
        holder.start()
        holder.join(60)
        run_dir = RunDir(open_storage(str(run)))
        commits = [read_commit(run_dir.storage, *found) for found in list_commits(run_dir.storage)]
        yield Original(
            config,
            run,
            sorted(path for path in run.rglob("*") if path.is_file() and "tensorboard" not in str(path)),
            {c.step: {name: b"".join(Encoded(c.load(name))) for name in c.files} for c in commits},
            {name: b"".join(Encoded(run_dir.read_weights(name)[0])) for name in ("best", "last")},
            run_dir.read_record() or {},
            run_dir.read_settled() or {},
            bytes(run_dir.read_manifest()),
            results(whole),
        )


def test_the_run_that_is_damaged_has_all_kinds_of_files(original: Original) -> None:
    assert sorted(original.commits) == [BEST, BEFORE, NEWEST]
    storage = open_storage(str(original.run))
    assert read_commit(storage, NEWEST).state["best_step"] == BEST, "the best is the newest: nothing to keep apart"
    kinds = {str(path.relative_to(original.run)).partition("-")[0] for path in original.files}
    expected = {"run.json", "run.copy.json", "settled.json", "settled.copy.json", MANIFEST, "metrics.jsonl"}
    expected |= {"timings.jsonl", "checkpoints/step", "checkpoints/begun", "lease.json", "weights/best.safetensors"}
    assert expected <= kinds, expected - kinds


def expected_step(path: str) -> int:
    """Where training must go on after a damage to one file."""
    return BEFORE if f"step-{NEWEST:08d}" in path else NEWEST


def assert_survives(original: Original, case: Damage, copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One session over a damaged copy: status, lease, record, attempt, sweep, load, commit, prune, publish."""
    case.inflict(copy / case.path)
    caplog.clear()
    run_dir = RunDir(open_storage(str(copy)))
    assert run_facts(run_dir, "run")["state"] in ("paused", "training")
    with Lease.acquire(run_dir.storage, watch_seconds=0.02) as lease:
        assert run_dir.read_record() == original.record and run_dir.read_settled() == original.settled
        run_dir.write_record(original.record)
        run_dir.write_manifest(original.manifest)
        assert run_dir.read_manifest() == original.manifest
        attempt = begin_attempt(run_dir.storage, {}, lease.id)
        commit = attempt.commit
        assert commit is not None and commit.step == expected_step(case.path)
        loaded = {name: b"".join(Encoded(commit.load(name))) for name in commit.files}
        assert loaded == original.commits[commit.step]
        assert_said(case, caplog.text)
        run_dir.sweep()
        tensors = {name: commit.load(name) for name in commit.files}
        write_commit(run_dir.storage, 12, attempt.token, tensors, commit.state)
        run_dir.write_metrics(commit.state["history"])
        run_dir.prune(KEEP, commit.state["best_step"])
    assert_retained(original, case, run_dir)
    assert_weights(original, run_dir)


def assert_said(case: Damage, log: str) -> None:
    """What was passed over, and only that, is in the log."""
    hit = f"step-{NEWEST:08d}" in case.path
    assert (f"commit.passed_over step={NEWEST}" in log) == hit, log
    assert ("commit.best_lost" in log) == (f"step-{BEST:08d}" in case.path), log
    if case.path in ("run.json", "settled.json"):
        assert f"run.mended file={case.path}" in log


def assert_retained(original: Original, case: Damage, run_dir: RunDir) -> None:
    """After a further commit: it, the one before it, and the best; what is whole of them has the original's bytes."""
    steps = [found.step for found in list_commits(run_dir.storage)]
    before = expected_step(case.path)
    gone = f"step-{BEST:08d}" in case.path and "COMMIT.json" in case.path and case.name == "deleted"
    assert steps == [step for step in (BEST, before, 12) if not (step == BEST and gone)]
    found, passed_over = newest(run_dir.storage)
    assert found is not None and found.step == 12 and not passed_over
    for step in (BEST, before):
        if f"step-{step:08d}" in case.path:
            with pytest.raises(SportsRayError):
                read_commit(run_dir.storage, step)
        else:
            kept = read_commit(run_dir.storage, step)
            assert {name: b"".join(Encoded(kept.load(name))) for name in kept.files} == original.commits[step]


def assert_weights(original: Original, run_dir: RunDir) -> None:
    """Weights are the original's or refused; they can be published again over any damage."""
    for name, content in original.weights.items():
        try:
            tensors, _ = run_dir.read_weights(name)
            assert b"".join(Encoded(tensors)) == content
        except WeightsError:
            run_dir.describe_weights(name)
        saved = read_commit(run_dir.storage, 12).load("ema")
        run_dir.publish_weights(name, saved, {"epochs": 3})
        assert run_dir.read_weights(name)[1]["epochs"] == 3


def survive_all(original: Original, cases: list[Damage], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    copies = original.run.parent / "copies"
    for case in cases:
        copy = copy_run(original.run, copies / "run")
        try:
            assert_survives(original, case, copy, caplog)
        except Exception as error:
            raise AssertionError(f"{case}: {error!r}") from error
        finally:
            shutil.rmtree(copies)


def test_sample_of_damages_to_every_file(original: Original, caplog: pytest.LogCaptureFixture) -> None:
    dice = random.Random(3)
    by_file = [list(damages(original.run, path, 2)) for path in original.files]
    survive_all(original, [case for found in by_file for case in dice.sample(found, 1)], caplog)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_over_a_thousand_damages_to_every_file(original: Original, caplog: pytest.LogCaptureFixture) -> None:
    cases = original.cases(flips=24)
    assert len(cases) > 1000
    survive_all(original, cases, caplog)
    print(f"{len(cases)} damages to {len(original.files)} files")


def assert_resumes(original: Original, case: Damage) -> None:
    """A damaged copy, trained to its end, has the results of the unbroken run."""
    folder = original.run.parent / "copies"
    try:
        copy = copy_run(original.run, folder / "run")
        case.inflict(copy / case.path)
        config = replace(original.config, store=replace(original.config.store, root=str(folder)))
        assert train_in_child(config) == 0, case
        assert results(config) == original.unbroken, case
    finally:
        shutil.rmtree(folder)


WHOLE = (
    f"step-{NEWEST:08d}",
    f"step-{BEFORE:08d}",
    "begun",
    "fences",
    "run.",
    "settled.",
    "weights",
    "metrics",
    MANIFEST,
)


def whole_cases(original: Original, many: int) -> list[Damage]:
    """For each kind of file but the lease (a damaged one is watched for 20 s) and the best commit, some damages."""
    dice, cases = random.Random(5), original.cases(flips=4)
    return [c for kind in WHOLE for c in dice.sample([case for case in cases if kind in case.path], many)]


def test_damaged_run_trained_to_its_end_equals_the_unbroken_one(original: Original) -> None:
    for case in random.Random(7).sample(whole_cases(original, 1), 2):
        assert_resumes(original, case)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_many_damaged_runs_trained_to_their_end_equal_the_unbroken_one(original: Original) -> None:
    for case in whole_cases(original, 6):
        assert_resumes(original, case)


def test_run_without_a_whole_commit_is_refused_and_left_as_it_is(original: Original) -> None:
    dice, copies, cases = random.Random(11), original.run.parent / "copies", original.cases(flips=1)
    folders = [f"checkpoints/{path.name}" for path in (original.run / "checkpoints").glob("step-*")]
    for number in range(8):
        copy = copy_run(original.run, copies / "run")
        for folder in folders:
            case = dice.choice([case for case in cases if folder in case.path])
            case.inflict(copy / case.path)
        before = sorted(str(path) for path in copy.rglob("*"))
        with pytest.raises(RunError, match="no checkpoint .* can be trusted.*start over: delete"):
            begin_attempt(open_storage(str(copy)), {})
        assert sorted(str(path) for path in copy.rglob("*")) == before, number
        if number == 0:
            shown = sports_ray(copies, "resume", str(copy))
            assert shown.code == 2 and "start over: delete" in shown.err and shown.err.count("\n") == 1, shown.err
            assert {str(path) for path in copy.rglob("*.safetensors")} <= set(before), "something was written anew"
        shutil.rmtree(copies)
