"""One Ray for the tests of a file: starting it takes five seconds. It ends with them: it redirects the streams, and other
files have clusters of their own, which do not get on with one that this process is a part of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sports_ray.data.demo import draw_demo
from sports_ray.orchestrate.cluster import ray_cluster

# Runs here are over in seconds, so deaths are looked for more often than a real one needs.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with ray_cluster("auto", cpus=2):
        yield


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "set"
    draw_demo(folder, classes=4, per_class=12, size=40, seed=1)
    return folder
