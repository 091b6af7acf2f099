"""Memory that runs out: smaller micro-batches, the same stream; measured with a real limit of the process."""

from __future__ import annotations

import ctypes
import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from sports_ray.data.demo import draw_demo
from sports_ray.data.loader import Batch
from sports_ray.data.order import Request
from sports_ray.engine.evaluate import add_batch, empty_sums
from sports_ray.engine.learner import Progress
from sports_ray.engine.step import optimiser_step
from sports_ray.engine.world import World
from sports_ray.errors import TrainingError
from sports_ray.recipe import config_from_dict, config_to_dict
from sports_ray.store.commit import read_commit
from sports_ray.store.storage import open_storage
from tests.support.learners import assert_close, assert_same_bits, batch_of, epoch_images, new_learner, snapshot
from tests.support.ranks import on_ranks
from tests.support.runs import exit_code, small_config

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "set"
    draw_demo(folder, classes=2, per_class=8, size=40, seed=2)
    return folder


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
        assert exit_code(limited_run, config_to_dict(config), room, tmp_path / f"{config.store.run}.json") == 0
    # The same step on the same images.
    assert (tmp_path / "cramped.json").read_text() == (tmp_path / "free.json").read_text() == "[16]"
    commits = {name: read_commit(open_storage(str(tmp_path / name)), 1) for name in ("cramped", "free")}
    micro = commits["cramped"].state["micro_batch"]
    assert micro in (1, 2, 4, 8) and commits["free"].state["micro_batch"] == 0
    assert_close(commits["cramped"].load("model"), commits["free"].load("model"), 1e-4)
    # It is remembered: a session that goes on, with all the memory it wants, does not try the large size again.
    longer = small_config(photos, tmp_path, "cramped", **{**OOM, "loop__epochs": 2})
    assert exit_code(limited_run, config_to_dict(longer), 0, tmp_path / "longer.json") == 0
    assert read_commit(open_storage(str(tmp_path / "cramped")), 2).state["micro_batch"] == micro


def cramped_rank(world: World) -> dict[str, Any]:
    learner, schedule = new_learner(world, images=32, **OOM | {"loop__global_batch": 32})
    pixels, labels = epoch_images(32, 256)
    progress, batch = Progress(), batch_of(schedule, 0, world, pixels, labels)
    if world.rank == 1:
        limit_memory(ROOM)
    optimiser_step(learner, schedule, progress, batch, 1.0, False)
    return {"micro_batch": progress.micro_batch, **snapshot(learner)}


@pytest.mark.long
def test_memory_that_runs_out_on_one_rank_halves_the_micro_batch_of_all(tmp_path: Path) -> None:
    """Dropout draws by micro-batch, and rank 0 alone commits its size: a resumed run would draw other numbers."""
    first, second = on_ranks(tmp_path, 2, cramped_rank)
    assert first.pop("micro_batch") == second.pop("micro_batch") in (1, 2, 4, 8)
    assert_same_bits(first, second)


def cramped_evaluation(room: int, report: Path) -> None:
    torch.set_num_threads(1)
    learner, _ = new_learner(World(), model__name="test_convnext", data__image_size=256)
    pixels, labels = epoch_images(24, 256)
    batch, free = Batch(Request("val", -1, 0, 24), pixels, labels, labels), empty_sums(learner)
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
    # Measured: 16 images need more than 60 MiB, two less than 15. What was freed before the limit may be used besides.
    assert exit_code(cramped_evaluation, 35 * 2**20, tmp_path / "report") == 0
    assert (tmp_path / "report").read_text() in ("1", "2", "3", "6", "12")


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
    assert exit_code(one_image, 8 * 2**20, report) == 0
    text = report.read_text()
    assert text.startswith("1 out of memory with a single image; got ")
    assert text.endswith("; cure: a smaller model or --set data.image_size")
    assert "\n" not in text
