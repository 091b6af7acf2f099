"""`sports-ray models` beyond a list: speeds that were measured here, and the table for a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sports_ray.bench.architectures import describe, markdown
from tests.support.shell import sports_ray as shell


def test_speeds_are_measured_here_and_shown_as_a_table(tmp_path: Path) -> None:
    words = ("models", "--measure", "test_resnet", "test_vit", "--seconds", "0.05", "--batch", "2")
    done = shell(tmp_path, *words, "--json")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0 and [row["name"] for row in rows] == ["test_resnet", "test_vit"]
    for row in rows:
        assert row["eval_images_per_second"] > 0 and row["train_images_per_second"] > 0
        assert (row["batch"], row["why_not"]) == (2, "") and row["device"].startswith(("CPU, ", "NVIDIA"))
    assert "test_vit: 2 images of 160 px at once" in done.err and "ray" not in done.imported


@pytest.mark.long
def test_the_markdown_table_says_what_is_left_out(tmp_path: Path) -> None:
    done = shell(tmp_path, "models", "test_resnet", "regnety_004.tv2_in1k", "--markdown")
    lines = done.out.splitlines()
    assert lines[0] == "| model | parameters | px | top-1 | for |" and lines[1] == "|---|---|---|---|---|"
    assert lines[3].startswith("| regnety_004.tv2_in1k | 4,344,144 | 224 | 75.80% | small and quick")
    assert "- top-1 of 1 left out: the installed packages do not tell it" in lines
    assert list(markdown([describe("test_resnet")]))[2].split(" | ")[3] == ""
