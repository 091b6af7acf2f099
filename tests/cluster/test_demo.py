"""`sports-ray demo` as a new user meets it, to its end; and again, when all is there already."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sports_ray.cli.demo import MODELS


def demo(folder: Path) -> list[dict[str, Any]]:
    """Its events, in the order in which they were shown."""
    command = [sys.executable, "-m", "sports_ray", "demo", "here", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_demo_kills_a_worker_loses_nothing_and_ends_with_the_ensemble_and_its_page(tmp_path: Path) -> None:
    events = demo(tmp_path)
    by_name = {event["event"]: event for event in events}
    names = [event["event"] for event in events]
    assert names.count("killed") == 1 and names[-5:] == ["nothing lost", "result", "written", "report", "next"]
    assert by_name["nothing lost"]["equal"] is True
    assert [one["model"] for one in by_name["trained"]["models"]] == list(MODELS)
    result = by_name["result"]
    assert [one["name"] for one in result["candidates"]] == [*MODELS, *(f"{one}/none" for one in MODELS), "ensemble"]
    for one in result["candidates"]:
        low, high = one["acc1_interval"]
        assert one["images"] == 72 and low < one["acc1"] <= high and f"[{low:.4f}, {high:.4f}]" in result["text"]
    assert max(one["acc1"] for one in result["candidates"]) > 0.8
    page = tmp_path / by_name["report"]["path"]
    before = page.read_bytes()
    assert b"Training of test_resnet" in before and b"heat of " in before
    again = demo(tmp_path)
    assert not {"step", "block", "killed"} & {event["event"] for event in again}
    assert next(event for event in again if event["event"] == "result") == result and page.read_bytes() == before
