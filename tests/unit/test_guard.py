"""What goes wrong in training: numbers that are not finite, memory that runs out, a process that stops moving."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import re
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sports_ray.data.demo import draw_demo
from sports_ray.data.loader import Batch, Request
from sports_ray.engine.evaluate import add_batch, empty_sums
from sports_ray.engine.guard import GROWTH_INTERVAL, LossScale, Watchdog, is_out_of_memory
from sports_ray.engine.learner import Progress
from sports_ray.engine.step import optimiser_step
from sports_ray.engine.world import World
from sports_ray.errors import NonFiniteError, TrainingError
from sports_ray.recipe import config_from_dict, config_to_dict
from sports_ray.store.commit import list_commits, newest, read_commit
from sports_ray.store.storage import open_storage
from tests.support.learners import (
    assert_close,
    assert_same_bits,
    batch_of,
    epoch_images,
    new_learner,
    one_thread,  # noqa: F401
    snapshot,
    take_step,
)
from tests.support.ranks import on_ranks
from tests.support.runs import FORKS, small_config
from tests.support.shell import sports_ray

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""

pytestmark = pytest.mark.usefixtures("one_thread")


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


def limited_run(settings: dict[str, Any], room: int, report: Path) -> None:
    """Trains in this process; from the first step on it may have `room` more bytes of address space."""
    from sports_ray.engine.link import InProcessLink
    from sports_ray.engine.record import Speed
    from sports_ray.orchestrate.local import train_here
    from sports_ray.orchestrate.plan import make_plan

    look, count = InProcessLink.should_stop, Speed.step
    images: list[int] = []

    def should_stop(link: InProcessLink) -> str:
        if room and not images:
            limit_memory(room)
        return look(link)

    def step(speed: Speed, n: int) -> float:
        images.append(n)
        return count(speed, n)

    InProcessLink.should_stop = should_stop  # type: ignore[method-assign, assignment]
    Speed.step = step  # type: ignore[method-assign]
    train_here(make_plan(config_from_dict(settings)), lambda event: None)
    report.write_text(json.dumps(images))


def limit_memory(room: int) -> None:
    """Leaves `room` more bytes of address space; freed blocks go back to the system at once, as they do on a GPU."""
    # oneDNN never creates a primitive again in a thread in which the memory for one was missing once.
    torch.backends.mkldnn.set_flags(False)
    for threshold in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        ctypes.CDLL(None).mallopt(threshold, 1 << 16)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, resource.RLIM_INFINITY))


def call(function: Any, *arguments: Any) -> int:
    """Exit code of a child that ran `function`."""
    process = FORKS.Process(target=function, args=arguments)
    process.start()
    process.join(100)
    assert process.exitcode is not None, "the child hangs"
    return process.exitcode


OOM: dict[str, Any] = {
    # Without batch norm and drop path, the size of a micro-batch shows in rounding alone.
    "model__name": "test_convnext",
    "model__drop_path": 0.0,
    "data__image_size": 256,
    "data__cache_gb": 0.0,
    "augment__policy": "none",
    "optim__name": "sgd",
    "loop__epochs": 1,
    "loop__global_batch": 16,
    "loop__micro_batch": 0,
    "loop__eval_batch": 2,
    "store__every_steps": 1,
}
ROOM = 90 * 2**20
"""Measured: 16 images need more than 150 MiB, 4 less than 60."""


def test_memory_that_runs_out_halves_the_micro_batch_and_nothing_else(photos: Path, tmp_path: Path) -> None:
    cramped, free = (small_config(photos, tmp_path, name, **OOM) for name in ("cramped", "free"))
    for config, room in ((cramped, ROOM), (free, 0)):
        assert call(limited_run, config_to_dict(config), room, tmp_path / f"{config.store.run}.json") == 0
    # The same step on the same images.
    assert (tmp_path / "cramped.json").read_text() == (tmp_path / "free.json").read_text() == "[16]"
    commits = {name: read_commit(open_storage(str(tmp_path / name)), 1) for name in ("cramped", "free")}
    micro = commits["cramped"].state["micro_batch"]
    assert micro in (1, 2, 4, 8) and commits["free"].state["micro_batch"] == 0
    assert_close(commits["cramped"].load("model"), commits["free"].load("model"), 1e-4)
    # It is remembered: a session that goes on, with all the memory it wants, does not try the large size again.
    longer = small_config(photos, tmp_path, "cramped", **{**OOM, "loop__epochs": 2})
    assert call(limited_run, config_to_dict(longer), 0, tmp_path / "longer.json") == 0
    assert read_commit(open_storage(str(tmp_path / "cramped")), 2).state["micro_batch"] == micro


def cramped_rank(world: World) -> dict[str, Any]:
    learner, schedule = new_learner(world, images=32, **OOM | {"loop__global_batch": 32})
    pixels, labels = epoch_images(32, 256)
    progress, batch = Progress(), batch_of(schedule, 0, world, pixels, labels)
    if world.rank == 1:
        limit_memory(ROOM)
    optimiser_step(learner, schedule, progress, batch, 1.0, False)
    return {"micro_batch": progress.micro_batch, **snapshot(learner)}


def test_memory_that_runs_out_on_one_rank_halves_the_micro_batch_of_all(tmp_path: Path) -> None:
    """Dropout draws by micro-batch, and rank 0 alone commits its size: a resumed run would draw other numbers."""
    first, second = on_ranks(tmp_path, 2, cramped_rank)
    assert first.pop("micro_batch") == second.pop("micro_batch") in (1, 2, 4, 8)
    assert_same_bits(first, second)


def cramped_evaluation(room: int, report: Path) -> None:
    torch.set_num_threads(1)
    learner, _ = new_learner(World(), model__name="test_convnext", data__image_size=256)
    pixels, labels = epoch_images(16, 256)
    batch, free = Batch(Request("val", -1, 0, 16), pixels, labels, labels), empty_sums(learner)
    # First, so that there are no freed blocks which could be used again.
    limit_memory(room)
    cramped = empty_sums(learner)
    add_batch(learner, cramped, batch)
    report.write_text(str(learner.eval_chunk))
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    learner.eval_chunk = 0
    add_batch(learner, free, batch)
    assert torch.equal(cramped[:, :3], free[:, :3])


def test_memory_that_runs_out_in_evaluation_halves_its_batch(tmp_path: Path) -> None:
    # Measured: 16 images need more than 60 MiB, two less than 15.
    assert call(cramped_evaluation, 35 * 2**20, tmp_path / "report") == 0
    assert (tmp_path / "report").read_text() in ("1", "2", "4", "8")


def one_image(room: int, report: Path) -> None:
    torch.set_num_threads(1)
    size: dict[str, Any] = {"model__name": "test_convnext", "data__image_size": 512, "loop__global_batch": 4}
    learner, schedule = new_learner(World(), images=4, **size)
    pixels, labels = epoch_images(4, 512)
    progress, batch = Progress(), batch_of(schedule, 0, World(), pixels, labels)
    before = snapshot(learner)
    limit_memory(room)
    try:
        optimiser_step(learner, schedule, progress, batch, 1.0, False)
    except TrainingError as error:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert_same_bits(snapshot(learner), before)
        report.write_text(f"{progress.micro_batch} {error}")


def test_memory_too_small_for_a_single_image_is_a_clear_error(tmp_path: Path) -> None:
    report = tmp_path / "report"
    # Measured: a single image needs more than 25 MiB.
    assert call(one_image, 8 * 2**20, report) == 0
    text = report.read_text()
    assert text.startswith("1 out of memory with a single image; got ")
    assert text.endswith("; cure: a smaller model or --set data.image_size")
    assert "\n" not in text


def test_only_a_failed_allocation_counts_as_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(RuntimeError("could not create a primitive")), "so says oneDNN under a memory limit"
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(NonFiniteError("can't allocate memory"))


# --- hangs


def stuck_run(settings: dict[str, Any], stderr: Path) -> None:
    """Trains on photographs of which one is a pipe that nobody writes to, as on a share that does not answer."""
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
    from sports_ray.engine import run
    from sports_ray.orchestrate.local import train_here
    from sports_ray.orchestrate.plan import make_plan

    plan = make_plan(config_from_dict(settings))
    for path in Path(plan.manifest.root).glob("train/*/*"):
        path.unlink()
        os.mkfifo(path)
    run.Watchdog = functools.partial(Watchdog, first=0.3)  # type: ignore[assignment, misc]
    train_here(plan, lambda event: None)


def test_watchdog_ends_a_process_that_waits_for_ever_and_shows_where(tmp_path: Path) -> None:
    draw_demo(tmp_path / "set", classes=2, per_class=4, size=40)
    config = small_config(tmp_path / "set", tmp_path, loop__global_batch=4, cluster__hang_seconds=0.1)
    assert call(stuck_run, config_to_dict(config), tmp_path / "stderr") == 3
    text = (tmp_path / "stderr").read_text()
    assert "hang: no step for" in text and "Current thread" in text
    assert "loader.py" in text and "in _decoded" in text, "the stacks do not show what hangs"


def slow_store_run(settings: dict[str, Any]) -> None:
    """Trains with a store that takes a second and a half for each commit, and a watchdog that has less patience."""
    from sports_ray.engine import run, save
    from sports_ray.orchestrate.local import train_here
    from sports_ray.orchestrate.plan import make_plan

    write = save.write_commit

    def slow(*arguments: Any) -> Any:
        time.sleep(1.5)
        return write(*arguments)

    save.write_commit = slow  # type: ignore[assignment]
    run.Watchdog = functools.partial(Watchdog, first=1.0)  # type: ignore[assignment, misc]
    train_here(make_plan(config_from_dict(settings)), lambda event: None)


def test_watchdog_does_not_mistake_a_slow_last_commit_for_a_hang(photos: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "loop__epochs": 1,
        "loop__global_batch": 16,
        "store__every_steps": 0,
        "loop__eval_every": 2,
        "cluster__hang_seconds": 0.1,
    }
    config = small_config(photos, tmp_path, **settings)
    assert call(slow_store_run, config_to_dict(config)) == 0
    assert (tmp_path / "run" / "weights" / "last.safetensors").exists()


def test_watchdog_lets_a_process_that_moves_go_on_and_waits_longer_for_slow_steps() -> None:
    hung: list[float] = []
    with Watchdog(least=5, first=50, on_hang=hung.append) as watchdog:
        assert watchdog.patience == 50
        for _ in range(3):
            watchdog.beat()
        assert watchdog.patience == 5
        watchdog._gaps.extend([1.0] * 50)
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
