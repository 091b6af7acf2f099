"""`bench recovery` runs on both sides and leaves nothing behind. How fast anything is, is not asked here."""

from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner

from sports_ray.bench.recovery import WORDS
from sports_ray.cli.bench import bench
from sports_ray.processes import below


@pytest.mark.long
@pytest.mark.timeout(280)
def test_bench_recovery_kills_both_sides_and_waits_for_their_next_steps() -> None:
    before = below(os.getpid())
    result = CliRunner().invoke(bench, ["recovery", "--rounds", "1", "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    found = {line["name"]: line for line in map(json.loads, result.stdout.splitlines())}
    for name in WORDS:
        mine, theirs = found[f"{name}_ours"]["value"], found[f"{name}_plain"]["value"]
        assert 0 < mine < 120 and 0 < theirs < 120
        assert found[f"{name}_ratio"]["value"] == pytest.approx(mine / theirs)
        assert found[f"{name}_ratio"]["most"] == 1.1
    assert set(below(os.getpid())) <= set(before)
