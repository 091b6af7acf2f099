"""The page of an evaluation in a real browser: its script, hostile words, narrow screens, light and dark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sports_ray.report.page import evaluation_page, write
from sports_ray.report.read_evaluation import read_evaluation
from sports_ray.store.storage import open_storage
from tests.support import pages
from tests.support.evaluations import made_up
from tests.unit.test_report_page import HOSTILE

pytestmark = pytest.mark.skipif(not pages.browser(), reason="needs chromium on the PATH")


def test_in_a_browser_the_script_runs_hostile_names_do_not_and_nothing_is_wider_than_the_screen(tmp_path: Path) -> None:
    made_up(tmp_path / "e", classes=[*HOSTILE, *(f"class {n}" for n in range(60))], each=6)
    write(evaluation_page(read_evaluation(tmp_path / "e")), open_storage(str(tmp_path)))
    root = "document.documentElement"
    probe = (
        f"[{root}.dataset.ready, {root}.scrollWidth, document.querySelectorAll('.labels text').length, document.title]"
    )
    for width in (1280, 390):
        ready, wide, labels, title = pages.measured(tmp_path / "report.html", width, probe).split(",", 3)
        assert ready == "yes" and title == "Evaluation on test – sports-ray"
        assert int(wide) == width, f"{wide} px wide on a screen of {width}"
        assert int(labels) >= 2 * (68 if width == 1280 else 20)


@pytest.mark.long
def test_in_a_browser_the_page_is_light_or_dark_as_the_reader_is(tmp_path: Path) -> None:
    made_up(tmp_path / "e")
    write(evaluation_page(read_evaluation(tmp_path / "e")), open_storage(str(tmp_path)))
    light = {}
    for dark in (False, True):
        pages.screenshot(tmp_path / "report.html", 390, 800, tmp_path / "shown.png", dark)
        shown = np.asarray(Image.open(tmp_path / "shown.png").convert("L"))[:, :390]
        light[dark] = float(shown.mean())
        assert shown.std() > 10, "an empty page"
    assert light[False] > 200 and light[True] < 70
