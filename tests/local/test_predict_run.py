"""The in-process computation: the bytes of a block depend on its photographs and its member, and on nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sports_ray.errors import WeightsError
from sports_ray.predict.blocks import ROWS, Shelf
from sports_ray.predict.compute import Job, Predictor, decode_files, key_of, write_block
from sports_ray.predict.images import list_split
from sports_ray.predict.member import find_member, load_model
from sports_ray.predict.plan import plan_evaluation
from sports_ray.predict.run import OnProgress, compute_here
from sports_ray.predict.views import views_of
from sports_ray.predict.work import Work
from tests.support.members import CLASSES, make_member, photographs, tree

COUNT = ROWS + 60


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    photographs(folder / "set", COUNT)
    make_member(folder / "runs", "one", seed=5)
    return folder


def job_of(place: Path, store: Path, tta: str = "hflip", batch: int = 32) -> Job:
    member = find_member("one", str(place / "runs"))
    images, views = list_split(str(place / "set"), "test", CLASSES), views_of(tta, member.spec)
    shelf = Shelf.of(str(store), member.model, key_of(member, images, "cpu", batch), len(images), len(CLASSES))
    return Job(member, images, views, shelf, shelf.missing([view.name for view in views]), "cpu", batch)


def compute(job: Job, cores: int = 0) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    compute_here(job, lambda event: events.append(dict(event)), cores=cores)
    return events


@pytest.fixture(scope="module")
def expected(place: Path) -> dict[str, bytes]:
    compute(job_of(place, place / "expected"))
    return tree(place / "expected")


@pytest.mark.parametrize("cores", [1, 3])
def test_blocks_are_the_same_bytes_on_any_number_of_cores(
    place: Path, expected: dict[str, bytes], tmp_path: Path, cores: int
) -> None:
    events = compute(job_of(place, tmp_path), cores)
    assert tree(tmp_path) == expected and len(expected) == 4
    assert [(event["block"], event["images"], event["bad"]) for event in events] == [(0, ROWS, 0), (1, 60, 0)]


def test_whole_blocks_as_an_actor_computes_them_are_the_same_bytes(
    place: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    job = job_of(place, tmp_path)
    predictor = Predictor(job.member, "cpu", job.batch)
    for block in reversed(range(job.shelf.blocks)):
        sources = [job.views[0].source]
        pixels, errors = decode_files(job.files(*job.shelf.span(block)), sources, job.member.spec, 10**8)
        write_block(job.shelf, block, predictor.block(pixels, job.views), errors)
    assert tree(tmp_path) == expected


def test_logits_are_those_of_plain_torch(place: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    job = job_of(place, place / "expected")
    pixels, _ = decode_files(job.files(0, 32), [job.views[0].source], job.member.spec, 10**8)
    images = torch.from_numpy(pixels[job.views[0].source]).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (job.member.spec.mean, job.member.spec.std))
    model = load_model(job.member, torch.device("cpu"))
    for name, batch in (("plain", images), ("plain-flip", images.flip(3))):
        found = job.shelf.read(name, 0)
        assert found is not None
        np.testing.assert_allclose(found.logits[:32], model((batch - mean) / std).numpy(), rtol=2e-3, atol=2e-3)
    assert np.ptp(found.logits, axis=0).min() > 0.1, "the images cannot be told apart"


def test_another_view_computes_only_what_is_new(place: Path, tmp_path: Path) -> None:
    compute(job_of(place, tmp_path, "none"))
    before = {path: os.stat(path).st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    job = job_of(place, tmp_path, "10crop")
    assert all("plain" not in views for views in job.missing.values())
    compute(job)
    assert {path: os.stat(path).st_mtime_ns for path in before} == before
    assert not job_of(place, tmp_path, "10crop").missing and not job_of(place, tmp_path, "5crop").missing
    assert tree(tmp_path, "**/plain*/*.parquet").keys() == tree(place / "expected", "**/plain*/*.parquet").keys()


def test_a_bad_photograph_is_an_error_and_changes_no_other_row(
    place: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    for path in sorted((place / "set").rglob("*.jpg")):
        target = tmp_path / path.relative_to(place)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    runs = tmp_path / "runs"
    runs.symlink_to(place / "runs")
    paths = sorted((tmp_path / "set").rglob("*.jpg"))
    paths[3].write_bytes(paths[3].read_bytes()[:200])
    paths[ROWS + 7].write_bytes(b"\xff\xd8\xff no image")
    events = compute(job_of(tmp_path, tmp_path / "store"))
    assert [event["bad"] for event in events] == [1, 1]
    broken, sound = job_of(tmp_path, tmp_path / "store").shelf, job_of(place, place / "expected").shelf
    for block, bad in ((0, 3), (1, 7)):
        for view in ("plain", "plain-flip"):
            mine, other = broken.read(view, block), sound.read(view, block)
            assert mine is not None and other is not None
            assert [row for row, error in enumerate(mine.errors) if error] == [bad] and not mine.logits[bad].any()
            assert "0x" not in str(mine.errors[bad]), "an address in memory: the bytes would differ from run to run"
            others = np.arange(len(mine.errors)) != bad
            assert mine.logits[others].tobytes() == other.logits[others].tobytes()


def test_a_photograph_that_changes_under_way_is_an_error_of_its_row(place: Path, tmp_path: Path) -> None:
    job = job_of(place, tmp_path)
    files = job.files(0, 4)
    files = files._replace(sha256=["0" * 64, *files.sha256[1:]], paths=[*files.paths[:3], str(tmp_path / "gone.jpg")])
    _, errors = decode_files(files, [job.views[0].source], job.member.spec, 10**8)
    assert errors[0] == "cannot be read: it has changed since it was listed" and errors[1:3] == [None, None]
    assert errors[3] == "cannot be read: No such file or directory"


def test_what_fails_as_a_whole_is_raised(place: Path, tmp_path: Path) -> None:
    make_member(tmp_path, "one", seed=5)
    job = replace(job_of(place, tmp_path), member=find_member("one", str(tmp_path)))
    (tmp_path / "one" / "weights" / "best.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="other bytes than its .json describes"):
        compute(job)


def test_what_an_actor_leaves_half_written_when_it_is_killed_is_swept_at_the_end(place: Path, tmp_path: Path) -> None:
    plan = plan_evaluation(["one"], data=str(place / "set"), store=str(place / "runs"))

    def compute_and_leave(jobs: Sequence[Job], on_progress: OnProgress) -> None:
        for job in jobs:
            compute_here(job, on_progress)
            job.shelf.storage().write("plain/.00000.parquet.0123456789abcdef.tmp", b"half")

    work = Work.of(replace(plan, home=str(tmp_path)), plan.images, compute_and_leave, lambda event: None)
    work.complete()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "00000.parquet", "00001.parquet", "key.json",
    ]  # fmt: skip
