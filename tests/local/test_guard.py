"""What goes wrong in training: numbers that are not finite, memory that runs out, a process that stops moving."""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch

from sports_ray import processes
from sports_ray.data.demo import draw_demo
from sports_ray.engine import guard
from sports_ray.engine.guard import GROWTH_INTERVAL, LossScale, Watchdog, is_out_of_memory
from sports_ray.engine.learner import Progress
from sports_ray.engine.step import optimiser_step
from sports_ray.engine.world import World
from sports_ray.errors import NonFiniteError
from sports_ray.store.commit import list_commits, newest, read_commit
from sports_ray.store.storage import open_storage
from tests.support.learners import (
    assert_same_bits,
    batch_of,
    epoch_images,
    new_learner,
    snapshot,
    take_step,
)
from tests.support.ranks import on_ranks
from tests.support.shell import sports_ray

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "set"
    draw_demo(folder, classes=2, per_class=8, size=40, seed=2)
    return folder


def overflow(world: World, poisoned: int) -> dict[str, Any]:
    """A sound step, then one in which a single white image overflows float16 in the first layer; the others are grey."""
    settings: dict[str, Any] = {
        "model__name": "test_resnet",
        "optim__name": "adamw",
        "augment__mixup": 0.0,
        "augment__cutmix": 0.0,
    }
    learner, schedule = new_learner(world, precision="fp16", **settings)
    progress = Progress()
    first = take_step(learner, schedule, progress, lr=1e-3)
    pixels, labels = epoch_images(schedule.train_images)
    pixels[:] = 115
    pixels[poisoned] = 255
    with torch.no_grad():
        next(learner.model.parameters()).fill_(3000.0)
    before, scale = snapshot(learner), learner.scale.value
    batch = batch_of(schedule, progress.step, world, pixels, labels)
    logits = learner.model.eval()(learner.normalise(batch.images).half().float())
    result = optimiser_step(learner, schedule, progress, batch, 1e-3, False)
    return {
        "before": before,
        "after": snapshot(learner),
        "skipped": [first.skipped, result.skipped],
        "scales": [scale, learner.scale.value],
        "counts": [progress.nonfinite, progress.skipped],
        "here": poisoned in range(batch.request.start, batch.request.stop),
        "sound_in_fp32": bool(logits.isfinite().all()),
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_overflow_in_one_image_skips_the_step_on_all_ranks_and_leaves_no_trace(tmp_path: Path, ranks: int) -> None:
    found = on_ranks(tmp_path, ranks, overflow, 9)
    assert [f["here"] for f in found] == [False] * (ranks - 1) + [True]
    for rank in found:
        assert rank["sound_in_fp32"], "the overflow is meant to be float16's"
        assert rank["skipped"] == [False, True]
        assert any(name.startswith("optim/exp_avg") for name in rank["before"])
        assert_same_bits(rank["after"], rank["before"])
        assert rank["scales"] == [2.0**16, 2.0**15]
        assert rank["counts"] == [1, 1]


def test_scale_halves_at_an_overflow_doubles_after_a_quiet_while_and_keeps_its_bounds() -> None:
    scale = LossScale.for_precision("fp16")
    scale.update(False)
    assert (scale.value, scale.good_steps) == (2.0**15, 0)
    for _ in range(GROWTH_INTERVAL - 1):
        scale.update(True)
    assert scale.value == 2.0**15
    scale.update(True)
    assert (scale.value, scale.good_steps) == (2.0**16, 0)
    for _ in range(100):
        scale.update(False)
    assert scale.value == 2.0**-14
    for _ in range(60 * GROWTH_INTERVAL):
        scale.update(True)
    assert scale.value == 2.0**24


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_other_precisions_are_not_scaled(precision: str) -> None:
    scale = LossScale.for_precision(precision)
    scale.update(False)
    assert scale.value == 1.0


def test_scale_of_fp16_changes_no_gradient_that_it_need_not() -> None:
    changes = []
    for value in (2.0**8, 2.0**12):
        learner, schedule = new_learner(World(), precision="fp16")
        learner.scale.value = value
        take_step(learner, schedule, Progress())
        changes.append(snapshot(learner))
    for name, tensor in changes[0].items():
        torch.testing.assert_close(changes[1][name], tensor, rtol=0.02, atol=2e-3)


def test_too_many_steps_in_a_row_stop_with_the_step_and_the_cure_and_every_checkpoint_is_sound(
    photos: Path, tmp_path: Path
) -> None:
    words = [
        "train",
        "--data",
        str(photos),
        "--model",
        "test_resnet",
        "--weights",
        "none",
        "--workers",
        "0",
        "--run",
        "r",
    ]
    # Weight decay times rate = 1000: each step multiplies the weights by -999, and the second overflows float16.
    blow_up = {
        "optim.name": "sgd", "optim.lr": 100, "optim.weight_decay": 10, "optim.warmup_epochs": 0, "loop.precision": "fp16",
        "loop.max_nonfinite": 3, "loop.epochs": 5, "loop.global_batch": 4, "data.image_size": 32, "store.every_steps": 1,
        "store.keep": 100, "cluster.threads": 1, "data.loader_processes": 0,
    }  # fmt: skip
    words += [word for key, value in blow_up.items() for word in ("--set", f"{key}={value}")]
    first = sports_ray(tmp_path, *words)
    assert first.code == 3 and "Traceback" not in first.err
    storage = open_storage(str(tmp_path / "runs" / "r"))
    commits = list_commits(storage)
    commit, passed = newest(storage)
    assert commit is not None and not passed and len(commits) == commit.step
    last = commit.step
    states = [read_commit(storage, step).state for step in range(1, last + 1)]
    assert [state["nonfinite"] for state in states] == [0] * (last - 2) + [1, 2]
    assert [state["scale"] for state in states[-3:]] == [2.0**16, 2.0**15, 2.0**14]
    for step in range(1, last + 1):
        model = read_commit(storage, step).load("model")
        assert all(tensor.isfinite().all() for tensor in model.values())
    text = f"error: loss or gradients not finite for 3 steps in a row, up to step {last}; got loss "
    assert first.err.startswith(text) and first.err.count("\n") == 1
    assert "cure: a lower --set optim.lr, --precision bf16 or fp32" in first.err
    # The counter and the scale come back from the checkpoint: one more such step is the third.
    second = sports_ray(tmp_path, *words)
    assert (second.code, second.err) == (3, first.err)
    log = (tmp_path / "runs" / "r" / "logs" / "driver.log").read_text()
    assert [float(scale) for scale in re.findall(r"scale=(\d+)", log)] == [2.0**15, 2.0**14, 2.0**13, 2.0**13]


# --- memory


def test_only_a_failed_allocation_counts_as_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(RuntimeError("could not create a primitive")), "so says oneDNN under a memory limit"
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(NonFiniteError("can't allocate memory"))


# --- hangs


def test_watchdog_lets_a_process_that_moves_go_on_and_waits_longer_for_slow_steps() -> None:
    hung: list[float] = []
    with Watchdog(least=5, first=50, on_hang=hung.append) as watchdog:
        assert watchdog.patience == 50
        for _ in range(3):
            watchdog.beat("step")
        assert watchdog.patience == 5
        watchdog._gaps["step"].extend([1.0] * 50)
        assert watchdog.patience == 20
    assert hung == []


def test_watchdog_speaks_once_when_beats_stop() -> None:
    hung: list[float] = []
    with Watchdog(least=0.02, first=0.02, on_hang=hung.append) as watchdog:
        deadline = time.monotonic() + 20
        while not hung and time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError):
                watchdog._thread.join(0.01)
    assert len(hung) == 1 and hung[0] > 0.02


class Clock:
    """A watchdog's clock, and the event it waits for: the n-th of its waits takes as long as the n-th number says."""

    def __init__(self, *waits: float) -> None:
        self.now, self.waits = 1000.0, list(waits)

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        if not self.waits:
            return True
        self.now += self.waits.pop(0)
        return False


def watched(monkeypatch: pytest.MonkeyPatch, clock: Clock, hung: list[float]) -> Watchdog:
    """A watchdog that lives by that clock, its thread not started; it says in `hung` for how long nothing moved."""
    for module in (guard, processes):
        monkeypatch.setattr(module, "time", clock)
    watchdog = Watchdog(least=60, first=900, on_hang=hung.append)
    watchdog._stopped = clock  # type: ignore[assignment]
    return watchdog


def test_a_process_that_was_suspended_is_not_taken_for_one_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    hung: list[float] = []
    watched(monkeypatch, Clock(1.0, 1.0, 5000.0, 1.0, *[1.0] * 890), hung)._watch()
    assert hung == [], "after `fg` it was given no time to end its step"
    watched(monkeypatch, Clock(1.0, 1.0, 5000.0, 1.0, *[1.0] * 910), hung)._watch()
    assert hung == [901.0], "one that hangs after it was suspended is no longer found"


def test_time_that_no_step_took_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a step would count as one of an hour, and later sessions would leave room for it."""
    clock = Clock(1.0, 3601.0)
    watchdog = watched(monkeypatch, clock, [])
    watchdog._watch()
    assert watchdog.stood_still() == 3600 and watchdog.stood_still() == 0
    clock.now += 3601  # and the step ends before the watchdog looks again
    assert watchdog.stood_still() == 3600
    clock.now += 2
    assert watchdog.stood_still() == 0


def test_terminal_that_takes_nothing_is_no_hang_and_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, hung = Clock(*[1.0] * 3000), []
    watchdog = watched(monkeypatch, clock, hung)
    with watchdog.aside():
        watchdog._watch()
    assert not hung and watchdog.stood_still() == 3000
    clock.now += 10
    watchdog.beat("step")
    assert watchdog._gaps["step"] == deque([10.0])
    clock.waits = [1.0] * 1000
    watchdog._watch()
    assert hung == [901.0], "one that hangs afterwards is no longer found"


def test_a_watchdog_that_is_late_by_little_still_finds_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine its looks come late; only a gap of more than five seconds beyond its wait tells of a suspension."""
    hung: list[float] = []
    watched(monkeypatch, Clock(*[5.5] * 200), hung)._watch()
    assert hung == [164 * 5.5]


def beat_after(watchdog: Watchdog, clock: Clock, kind: guard.Kind, *gaps: float) -> None:
    for gap in gaps:
        clock.now += gap
        watchdog.beat(kind)


def test_quick_evaluation_batches_do_not_make_the_slow_step_after_them_look_hung(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    watchdog = watched(monkeypatch, clock, [])
    beat_after(watchdog, clock, "step", *[100.0] * 60)
    assert watchdog.patience == 2000
    beat_after(watchdog, clock, "evaluation", *[2.0] * 300)
    assert watchdog.patience == 2000
    beat_after(watchdog, clock, "evaluation", *[200.0] * 300)
    assert watchdog.patience == 4000, "slow evaluation batches"


def test_first_steps_have_the_long_patience_even_after_an_evaluation_that_a_stop_had_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    watchdog = watched(monkeypatch, clock, [])
    beat_after(watchdog, clock, "evaluation", *[2.0] * 50)
    assert watchdog.patience == 900
    beat_after(watchdog, clock, "step", 800.0, 1.0, 1.0)
    assert watchdog.patience == 60


def test_a_wait_on_purpose_may_take_as_long_as_it_says_and_the_time_after_it_counts_from_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, hung = Clock(), list[float]()
    watchdog = watched(monkeypatch, clock, hung)
    beat_after(watchdog, clock, "step", *[1.0] * 10)
    with watchdog.waiting(600):
        clock.waits = [1.0] * 599
        watchdog._watch()
    assert hung == []
    clock.waits = [1.0] * 59
    watchdog._watch()
    assert hung == [] and watchdog.patience == 60
    with watchdog.waiting(600):
        clock.waits = [1.0] * 700
        watchdog._watch()
    assert hung == [601.0], "a store that never answers"
