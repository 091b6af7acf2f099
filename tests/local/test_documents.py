"""The pages do what they say: their commands run, in order, on small drawn photographs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sports_ray.data.demo import draw_demo
from tests.support.documents import PAGES, README, ROOT, Walk, blocks
from tests.support.runs import small_config, train_in_child

WITH_COMMANDS = [page for page in PAGES if any(block.to_run for block in blocks(page))]
AT_ONCE = ("own-photographs.md",)
"""Pages that the default suite walks through; the others wait for the long form."""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "photos"
    draw_demo(folder, classes=3, per_class=10, size=40, seed=1)
    return folder


def walk(page: Path, drawn: Path, folder: Path, long: bool) -> Walk:
    if page.name != "first-run.md":  # which draws its own
        shutil.copytree(drawn, folder / "photos")
    if page == README:
        lay_out_readme(folder)
    walked = Walk(folder, long)
    for block in blocks(page):
        walked.block(block)
    return walked


def lay_out_readme(folder: Path) -> None:
    """What its words stand for: two finished runs A and B, photographs of a holiday, and one of them."""
    for name, model in (("A", "test_resnet"), ("B", "test_efficientnet")):
        assert train_in_child(small_config(folder / "photos", folder / "runs", name, model__name=model)) == 0
    shutil.copytree(folder / "photos" / "test", folder / "holiday")
    shutil.copy(next((folder / "holiday").rglob("*.jpg")), folder / "photo.jpg")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name in AT_ONCE], ids=lambda page: str(page.relative_to(ROOT))
)
def test_commands_of_a_page_run_from_top_to_bottom(page: Path, drawn: Path, tmp_path: Path) -> None:
    walked = walk(page, drawn, tmp_path, long=False)
    assert len(walked.ran) >= 5 and sum("--run" in line for line in walked.ran) >= 3


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_every_page_run_from_top_to_bottom_also_those_on_ray(
    page: Path, drawn: Path, tmp_path: Path
) -> None:
    walked = walk(page, drawn, tmp_path, long=True)
    assert len(walked.ran) == sum(len((*block.before, *block.to_run)) for block in blocks(page))
