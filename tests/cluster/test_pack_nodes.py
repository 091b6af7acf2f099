"""Two nodes train from a pack on an S3-protocol server: each fetches it once into a cache of its own, killed or not.

pytest -m long tests/cluster/test_pack_nodes.py
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from sports_ray.config import TrainConfig
from sports_ray.data.demo import draw_demo
from sports_ray.data.pack_write import write_pack
from sports_ray.orchestrate.plan import make_plan, write_record
from sports_ray.recipe import config_to_dict
from tests.support.driver import Driver
from tests.support.nodes import Nodes
from tests.support.ranks import on_ranks
from tests.support.runs import results, small_config
from tests.support.s3 import CREDENTIALS, FaultyProxy, address, s3_server

from .test_nodes import train_rank

SHARDS = 4


def two_workers(data: Path | str, store: Path) -> TrainConfig:
    settings = {"cluster__workers": "2", "cluster__max_failures": 0, "loop__epochs": 1, "data__loader_processes": 1}
    return small_config(data, store, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large photos") / "set"
    draw_demo(folder, classes=4, per_class=48, size=224, seed=1)
    return folder


@pytest.fixture(scope="module")
def unbroken(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The results of two workers on the folder, without Ray."""
    config = two_workers(photos, tmp_path_factory.mktemp("unbroken"))
    write_record(make_plan(config))
    on_ranks(tmp_path_factory.mktemp("ranks"), 2, train_rank, config_to_dict(config))
    return results(config)


@pytest.fixture
def proxy(photos: Path) -> Iterator[FaultyProxy]:
    with pytest.MonkeyPatch.context() as patch, s3_server() as port:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        report = write_pack(str(photos), address(port, "pack"), shard_mb=1)
        assert len(report.record.shards) == SHARDS
        with FaultyProxy(port, delay=1.0) as proxy:
            yield proxy


def fetched(proxy: FaultyProxy) -> Counter[str]:
    asked = [one.path.partition("?")[0] for one in proxy.requests if one.method == "GET" and "/shards/" in one.path]
    return Counter(path.rpartition("/")[2] for path in asked)


def shards(cache: Path) -> list[Path]:
    return list(cache.rglob("shards/0*.arrow"))


def start(nodes: Nodes, patch: pytest.MonkeyPatch, cache: Path) -> None:
    """A node whose processes keep their packs below `cache`."""
    patch.setenv("XDG_CACHE_HOME", str(cache))
    nodes.add()


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("killed", [False, True], ids=["", "killed while fetching"])
def test_each_node_fetches_the_pack_once_and_the_run_is_that_of_the_folder(
    proxy: FaultyProxy, unbroken: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    proxy.choose = lambda method, path: "slow" if killed and "/shards/" in path and "00000" not in path else None
    config = two_workers(address(proxy.port, "pack"), tmp_path / "runs")
    caches = [tmp_path / "one", tmp_path / "two"]
    with Nodes(0) as nodes:
        for cache in caches:
            start(nodes, monkeypatch, cache)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "driver"))
        with Driver(config, nodes.environment) as driver:
            if killed:
                end = time.monotonic() + 90
                while not shards(caches[0]):
                    assert time.monotonic() < end
                    time.sleep(0.005)
                nodes.kill(nodes.nodes[0])
                assert 0 < len(shards(caches[0])) < SHARDS
                start(nodes, monkeypatch, caches[0])
            assert driver.end() == 0, driver.errors
    assert results(config) == unbroken
    assert not shards(tmp_path / "driver"), "the driver needs the index alone"
    assert [len(shards(cache)) for cache in caches] == [SHARDS] * 2
    counts = fetched(proxy)
    assert counts["00000.arrow"] == 2
    # Whatever was on its way at the death is fetched again.
    assert counts.total() <= 2 * SHARDS + killed * (SHARDS - 1)
