"""A pack on an object store: fetched once a machine, verified, kept within bounds, and the same run as from the folder."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sports_ray.data.demo import draw_demo
from tests.support import runs
from tests.support.packs import LIMIT, Opener, fetch
from tests.support.s3 import CREDENTIALS, FaultyProxy, address, s3_server
from tests.support.shell import sports_ray

SHARDS = 8


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch, s3_server() as port:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield port


@pytest.fixture
def proxy(server: int) -> Iterator[FaultyProxy]:
    with FaultyProxy(server, delay=0.05) as proxy:
        yield proxy


def noise(folder: Path, seed: int, count: int = 2 * SHARDS) -> Path:
    """Photographs of 0.4 MB each, two of which fill a shard of 1 MB."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        path = folder / ("golf", "judo")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (365, 365, 3), dtype=np.uint8)).save(path, compress_level=0)
    return folder


def pack(folder: Path, source: Path, uri: str) -> dict[str, object]:
    shown = sports_ray(folder, "data", "pack", str(source), uri, "--shard-mb", "1", "--json")
    assert shown.code == 0, shown.err
    return dict(json.loads(shown.out))


@pytest.fixture(scope="module")
def large(server: int, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """A pack of eight shards at "large"; the size of each photograph."""
    folder = tmp_path_factory.mktemp("large")
    source = noise(folder / "set", 0)
    assert pack(folder, source, address(server, "large"))["shards"] == SHARDS
    return {str(path.relative_to(source)): path.stat().st_size for path in source.rglob("*.png")}


def fetched(proxy: FaultyProxy) -> Counter[str]:
    """How often each shard was read."""
    asked = [one.path.partition("?")[0] for one in proxy.requests if one.method == "GET"]
    return Counter(path.rpartition("/")[2] for path in asked if "/shards/" in path)


def wait_until(cache: Path, count: int) -> None:
    end = time.monotonic() + LIMIT
    while len(list(cache.rglob("shards/0*.arrow"))) < count:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_processes_of_a_machine_fetch_a_pack_once_and_from_then_on_not_at_all(
    proxy: FaultyProxy, large: dict[str, int], tmp_path: Path
) -> None:
    uri, cache = address(proxy.port, "large"), tmp_path / "cache"
    proxy.choose = lambda method, path: "slow" if "shards" in path else None
    openers = [Opener(tmp_path / f"told {number}", uri, cache) for number in range(3)]
    assert [opener.wait()["images"] for opener in openers] == [large] * 3
    assert [opener.leave() for opener in openers] == [0] * 3
    assert fetched(proxy) == {f"{number:05d}.arrow": 1 for number in range(SHARDS)}
    assert fetch(tmp_path, uri, cache)["images"] == large
    assert fetched(proxy).total() == SHARDS


@pytest.mark.parametrize("there", [1, 4, pytest.param(7, marks=pytest.mark.long)])
def test_a_fetch_that_is_killed_goes_on_with_what_is_missing(
    proxy: FaultyProxy, large: dict[str, int], tmp_path: Path, there: int
) -> None:
    uri, cache = address(proxy.port, "large"), tmp_path / "cache"
    given: set[str] = set()

    def first_few(method: str, path: str) -> str | None:
        """All but the first shards that are asked for get no answer: the fetch cannot be done before the kill."""
        name = path.partition("?")[0]
        if "/shards/" in name and len(given) < there:
            given.add(name)
        return "silent" if "/shards/" in name and name not in given else None

    proxy.choose = first_few
    opener = Opener(tmp_path / "told", uri, cache)
    wait_until(cache, there)
    assert opener.process.pid is not None
    os.kill(opener.process.pid, signal.SIGKILL)
    opener.process.join(LIMIT)
    proxy.choose = lambda method, path: None
    kept = len(list(cache.rglob("shards/0*.arrow")))
    assert kept == there
    (cache / next(cache.glob("*/shards")) / ".00009.arrow.0123456789abcdef.tmp").write_bytes(b"left by a death")
    before = fetched(proxy)
    assert fetch(tmp_path, uri, cache)["images"] == large
    again = fetched(proxy) - before
    assert set(again.values()) <= {1} and again.total() in (SHARDS - kept, SHARDS - kept + 1)
    assert not list(cache.rglob("*.tmp"))


def test_a_damaged_shard_is_fetched_again_and_only_that(
    proxy: FaultyProxy, large: dict[str, int], tmp_path: Path
) -> None:
    uri, cache = address(proxy.port, "large"), tmp_path / "cache"
    assert fetch(tmp_path, uri, cache)["images"] == large
    shards = sorted(cache.rglob("shards/0*.arrow"))
    flipped, cut, gone = shards[1], shards[3], shards[6]
    content = bytearray(flipped.read_bytes())
    content[5_000] ^= 1
    flipped.write_bytes(content)
    os.truncate(cut, cut.stat().st_size - 1)
    gone.unlink()
    os.utime(shards[7])  # touched, but whole
    assert fetch(tmp_path, uri, cache)["images"] == large
    assert fetched(proxy) == {path.name: 1 + (path in (flipped, cut, gone)) for path in shards}


def test_a_pack_that_is_damaged_or_lacking_in_the_store_is_named(server: int, tmp_path: Path) -> None:
    from sports_ray.store.storage import open_storage

    uri = address(server, "spoilt")
    pack(tmp_path, noise(tmp_path / "set", 3, 4), uri)
    storage = open_storage(uri)
    content = storage.read("shards/00001.arrow")
    storage.write("shards/00001.arrow", content[:9_000] + b"!" + content[9_001:])
    found = fetch(tmp_path, uri, tmp_path / "cache")
    assert found["kind"] == "StorageError" and "shards/00001.arrow arrived damaged 3 times" in found["error"]
    storage.delete("shards/00001.arrow")
    found = fetch(tmp_path, uri, tmp_path / "cache")
    assert found["code"] == 2 and "shards/00001.arrow; got no such object" in found["error"]
    storage.write("shards/00001.arrow", content)
    assert len(fetch(tmp_path, uri, tmp_path / "cache")["images"]) == 4
    shown = sports_ray(tmp_path, "data", "scan", address(server, "nothing"))
    assert shown.code == 2 and "bucket/nothing: no pack; got no PACK.json" in shown.err and "Traceback" not in shown.err


def test_the_least_recently_used_pack_goes_but_never_one_in_use(
    server: int, large: dict[str, int], tmp_path: Path
) -> None:
    uris, cache = [], tmp_path / "cache"
    for seed in (1, 2, 3):
        uris.append(address(server, f"small-{seed}"))
        pack(tmp_path, noise(tmp_path / f"set {seed}", seed, 4), uris[-1])
    gb = 3.5e6 / 2**30  # two of 1.6 MB

    def kept() -> int:
        return len(list(cache.rglob("shards/00001.arrow")))

    first = fetch(tmp_path, uris[0], cache, gb)
    fetch(tmp_path, uris[1], cache, gb)
    assert kept() == 2
    assert fetch(tmp_path, uris[0], cache, gb) == first
    folders = {path.name for path in cache.iterdir() if path.is_dir()}
    with_third = Opener(tmp_path / "third", uris[2], cache, gb, stay=True)
    assert len(with_third.wait()["images"]) == 4
    assert kept() == 2 and len(folders & {path.name for path in cache.iterdir()}) == 1
    holder = Opener(tmp_path / "first", uris[0], cache, gb, stay=True)
    assert holder.wait() == first and kept() == 2
    refused = fetch(tmp_path, uris[1], cache, gb)
    assert refused["code"] == 2 and "has no room" in refused["error"] and "beside 2 packs in use" in refused["error"]
    assert "--set data.pack_cache_gb=N" in refused["error"]
    os.kill(with_third.process.pid, signal.SIGKILL)  # type: ignore[arg-type]
    with_third.process.join(LIMIT)
    assert len(fetch(tmp_path, uris[1], cache, gb)["images"]) == 4 and kept() == 2
    assert holder.leave() == 0


def test_a_disk_that_fills_up_is_one_clear_line_and_the_fetch_goes_on_later(
    server: int, large: dict[str, int], tmp_path: Path
) -> None:
    uri, cache = address(server, "large"), tmp_path / "cache"
    found = fetch(tmp_path, uri, cache, file_limit=300_000)
    assert found["code"] == 2 and "is full; got EFBIG" in found["error"]
    assert "another disk with --set data.pack_cache=DIR" in found["error"] and not list(cache.rglob("*.tmp"))
    assert fetch(tmp_path, uri, cache)["images"] == large


def test_a_run_goes_on_from_the_folder_with_its_pack_and_from_the_store_to_the_same_bits(
    server: int, tmp_path: Path
) -> None:
    photos, uri = tmp_path / "photos", address(server, "photos")
    draw_demo(photos, classes=4, per_class=12, size=40, seed=1)
    for place in ("packed", uri):
        pack(tmp_path, photos, place)
    settings = {"data__pack_cache": str(tmp_path / "cache"), "data__loader_processes": 1}
    unbroken = runs.small_config(photos, tmp_path / "unbroken")
    assert runs.train_in_child(unbroken) == 0
    wanted = runs.results(unbroken)
    broken = [runs.small_config(place, tmp_path / "broken", **settings) for place in (photos, tmp_path / "packed", uri)]  # type: ignore[arg-type]
    assert runs.train_in_child(broken[0], kill_at=4) == -9
    assert runs.train_in_child(broken[1], kill_at=5) == -9
    assert runs.train_in_child(broken[2]) == 0
    assert runs.results(broken[2]) == wanted
    assert sports_ray(tmp_path, "data", "pack", "photos", "smaller", "--short-side", "32").code == 0
    shown = sports_ray(
        tmp_path, "train", "--data", "smaller", "--model", "test_resnet", "--store", "broken", "--run", "run", "--workers", "0",
    )  # fmt: skip
    assert shown.code == 2 and "exists with other settings" in shown.err and "content differs" in shown.err
