"""The stream has the same bits whatever the processes, the cache, the workers and the place of resuming."""

from __future__ import annotations

import gc
import hashlib
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from sports_ray.config import AugmentConfig, DataConfig, ImageSpec
from sports_ray.data.augment import apply, evaluate, sample_params, shrink
from sports_ray.data.cache import PixelCache, budget_bytes
from sports_ray.data.decode import decode, open_image
from sports_ray.data.loader import Batch, stream
from sports_ray.data.manifest import Manifest
from sports_ray.data.order import Request, order
from sports_ray.errors import DataError, ProcessDied

TRAIN, VAL, SEED = 21, 5, 11
AUGMENT = AugmentConfig(policy="rand-m7-n2", color_jitter=0.3, erasing=0.3, crop_scale=(0.2, 1.0))
SPEC = ImageSpec(
    train_size=32,
    eval_size=40,
    crop_pct=0.875,
    crop_mode="center",
    interpolation="bicubic",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
NO_CACHE = DataConfig(cache_gb=0)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """JPEGs of many sizes, so that crops ask for all scales of decoding; one PNG."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(TRAIN + VAL):
        width, height = (int(side) for side in rng.integers(30, 330, 2))
        noise = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        name = f"{i:02d}.{'png' if i == 3 else 'jpg'}"
        noise.resize((width, height), Image.Resampling.BICUBIC).save(root / name)
        rows.append((name, name, i % 4, "train" if i < TRAIN else "val", "", width, height))
    return Manifest(str(root), ("a", "b", "c", "d"), table(rows))


def table(rows: Iterable[tuple[object, ...]]) -> pa.Table:
    names = ("id", "path", "label", "split", "sha256", "width", "height")
    types = (pa.string(), pa.string(), pa.int32(), pa.string(), pa.string(), pa.int32(), pa.int32())
    columns = zip(*rows, strict=True)
    return pa.table({n: pa.array(list(c), t) for n, c, t in zip(names, columns, types, strict=True)})


def requests(epochs: int = 2, batch: int = 4) -> list[Request]:
    """Train in batches and all of val after each epoch, as a run asks for them."""
    out: list[Request] = []
    for epoch in range(epochs):
        out += [Request("train", epoch, start, min(start + batch, TRAIN)) for start in range(0, TRAIN, batch)]
        out += [Request("val", -1, 0, 3), Request("val", -1, 3, VAL)]
    return out


def batches(
    manifest: Manifest, asked: Iterable[Request], data: DataConfig = NO_CACHE, processes: int = 0
) -> list[Batch]:
    with stream(manifest, data, AUGMENT, SPEC, SEED, asked, processes) as coming:
        return list(coming)


def digests(made: Iterable[Batch]) -> list[str]:
    """One for each image, with its label and row."""
    return [
        hashlib.sha256(image.numpy().tobytes() + bytes([label, row])).hexdigest()
        for batch in made
        for image, label, row in zip(batch.images, batch.labels.tolist(), batch.rows.tolist(), strict=True)
    ]


@pytest.fixture(scope="module")
def reference(manifest: Manifest) -> list[str]:
    return digests(batches(manifest, requests()))


def test_a_batch_is_order_decode_and_augment(manifest: Manifest) -> None:
    (batch,) = batches(manifest, [Request("train", 1, 6, 11)])
    rows = order(SEED, 1, TRAIN)[6:11]
    train = manifest.rows("train").to_pylist()
    assert batch.images.dtype == torch.uint8 and batch.images.shape == (5, 3, 32, 32)
    assert batch.rows.tolist() == rows.tolist()
    assert batch.labels.tolist() == [train[row]["label"] for row in rows]
    for position, row, image in zip(range(6, 11), rows, batch.images, strict=True):
        encoded = open_image((Path(manifest.root) / train[row]["path"]).read_bytes(), max_pixels=10**6)
        params = sample_params(AUGMENT, SEED, 1, position, encoded.width, encoded.height, 32)
        factor = shrink(params.box, 32)
        assert torch.equal(image, apply(encoded.pixels(factor), params, SPEC, factor))


def test_validation_is_the_evaluation_transform_in_table_order(manifest: Manifest) -> None:
    (batch,) = batches(manifest, [Request("val", -1, 1, 4)])
    assert batch.rows.tolist() == [1, 2, 3] and batch.images.shape == (3, 3, 40, 40)
    val = manifest.rows("val").to_pylist()
    for row, image in zip(batch.rows.tolist(), batch.images, strict=True):
        pixels = decode((Path(manifest.root) / val[row]["path"]).read_bytes(), max_pixels=10**6)
        assert torch.equal(image, evaluate(pixels, SPEC, 40))


@pytest.mark.parametrize("processes", [0, 3])
@pytest.mark.parametrize("cache_bytes", [0, 100_000, 400_000, 1 << 30])
def test_bits_do_not_depend_on_processes_or_cache(
    manifest: Manifest, reference: list[str], processes: int, cache_bytes: int
) -> None:
    data = DataConfig(cache_gb=cache_bytes / 2**30)
    made = batches(manifest, requests(epochs=2), data, processes)
    assert [batch.request for batch in made] == requests(epochs=2)
    assert digests(made) == reference


def test_every_scale_of_decoding_is_exercised(manifest: Manifest) -> None:
    sizes = [(row["width"], row["height"]) for row in manifest.rows("train").to_pylist()]
    shrinks = {
        shrink(sample_params(AUGMENT, SEED, epoch, position, sizes[row][0], sizes[row][1], 32).box, 32)
        for epoch in (0, 1)
        for position, row in enumerate(order(SEED, epoch, TRAIN))
    }
    assert shrinks >= {1, 2, 4}


@pytest.mark.parametrize("batch", [1, 7, TRAIN])
def test_bits_do_not_depend_on_the_size_of_requests(manifest: Manifest, reference: list[str], batch: int) -> None:
    assert digests(batches(manifest, requests(batch=batch), processes=2)) == reference


@pytest.mark.parametrize("position", [1, 10, TRAIN - 1])
def test_a_stream_resumed_anywhere_goes_on_with_the_same_bits(
    manifest: Manifest, reference: list[str], position: int
) -> None:
    rest = [Request("train", 0, position, TRAIN), *requests()[6:]]
    assert digests(batches(manifest, rest)) == reference[position:]


def test_workers_shares_joined_are_the_whole(manifest: Manifest, reference: list[str]) -> None:
    shares = [batches(manifest, [Request("train", 0, *span)], processes=1) for span in ((0, 8), (8, 9), (9, TRAIN))]
    assert [d for share in shares for d in digests(share)] == reference[:TRAIN]


@pytest.mark.parametrize("processes", [0, 2])
def test_requests_may_be_endless_and_are_drawn_lazily(manifest: Manifest, processes: int) -> None:
    drawn = 0

    def endless() -> Iterator[Request]:
        nonlocal drawn
        for epoch in itertools.count():
            drawn += 1
            yield Request("train", epoch, 0, 2)

    with stream(manifest, NO_CACHE, AUGMENT, SPEC, SEED, endless(), processes) as coming:
        assert [next(coming).request.epoch for _ in range(5)] == [0, 1, 2, 3, 4]
        assert drawn < 20


@pytest.mark.parametrize("processes", [0, 2])
def test_the_training_process_keeps_its_random_state_and_threads(manifest: Manifest, processes: int) -> None:
    torch.set_num_threads(2)  # the processes of the loader have one
    state = torch.get_rng_state()
    batches(manifest, requests(1), processes=processes)
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.equal(state, torch.get_rng_state()) and found == 2


def changed(manifest: Manifest, folder: Path, row: int, data: bytes | None) -> Manifest:
    """A copy of the photographs in which one of train is missing (None) or has other bytes."""
    for file in Path(manifest.root).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    path = folder / manifest.rows("train").column("path")[row].as_py()
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    return Manifest(str(folder), manifest.classes, manifest.table)


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize(
    "damage, said",
    [
        (None, "No such file"),
        (b"", "empty"),
        (b"\xff\xd8\xff\xe0 broken", "cannot be read"),
        ("cut", "cannot be decoded"),
    ],
)
def test_a_file_that_cannot_be_read_any_more_is_named(
    manifest: Manifest, tmp_path: Path, damage: bytes | str | None, said: str, processes: int
) -> None:
    data = damage if not isinstance(damage, str) else (Path(manifest.root) / "05.jpg").read_bytes()[:-60]
    broken = changed(manifest, tmp_path, 5, data)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=said) as caught:
        batches(broken, requests(), processes=processes)
    assert str(tmp_path / "05.jpg") in str(caught.value)


def test_a_file_of_another_size_than_the_manifest_says_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    other = Path(manifest.root) / "06.jpg"
    with pytest.raises(DataError, match="05.jpg: the photograph has changed"):
        batches(changed(manifest, tmp_path, 5, other.read_bytes()), requests())


def children(coming: object) -> list[int]:
    return [child.pid for child, _ in coming._pool._children]  # type: ignore[attr-defined]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: list[int]) -> bool:
    """Whether all end, within a minute."""
    deadline = time.monotonic() + 60
    while any(map(alive, pids)) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)  # polls for an effect that has a deadline
    return not any(map(alive, pids))


def test_a_killed_process_is_an_error_with_its_signal_that_another_try_may_mend(manifest: Manifest) -> None:
    endless = (Request("train", epoch, 0, 4) for epoch in itertools.count())
    with stream(manifest, NO_CACHE, AUGMENT, SPEC, SEED, endless, 2) as coming:
        next(coming)
        os.kill(children(coming)[1], signal.SIGKILL)
        with pytest.raises(ProcessDied, match=r"loader process \d+ died; got signal 9 \(SIGKILL\)") as caught:
            for _ in range(20):
                next(coming)
        assert caught.value.retryable, "Ray's workers begin again where memory ran out"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_processes_leave_signals_of_the_group_to_the_parent(manifest: Manifest, sent: signal.Signals) -> None:
    with stream(manifest, NO_CACHE, AUGMENT, SPEC, SEED, requests(4), 2) as coming:
        first = next(coming)
        for pid in children(coming):
            os.kill(pid, sent)
        assert len([first, *coming]) == len(requests(4))


def test_closing_ends_the_processes_and_so_does_forgetting_the_stream(manifest: Manifest) -> None:
    for close in (True, False):
        coming = stream(manifest, NO_CACHE, AUGMENT, SPEC, SEED, requests(), 2)
        next(coming)
        pids = children(coming)
        assert all(map(alive, pids))
        if close:
            coming.close()
            coming.close()
        del coming
        assert gone(pids)


def run_a_parent(manifest: Manifest, told: Connection, wait: bool) -> None:
    endless = (Request("train", epoch, 0, 4) for epoch in itertools.count())
    coming = stream(manifest, NO_CACHE, AUGMENT, SPEC, SEED, endless, 2)
    next(coming)
    told.send(children(coming))
    if wait:
        signal.pause()


@pytest.mark.parametrize("end", ["killed", "falls off its end"])
def test_processes_do_not_outlive_their_parent(manifest: Manifest, end: str) -> None:
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    parent = fork.Process(target=run_a_parent, args=(manifest, there, end == "killed"))
    parent.start()
    pids = here.recv()
    assert len(pids) == 2
    if end == "killed":
        parent.kill()
    parent.join(timeout=60)
    assert parent.exitcode == (-signal.SIGKILL if end == "killed" else 0)
    assert gone(pids)


def test_the_cache_keeps_a_prefix_within_its_budget() -> None:
    cache = PixelCache(np.array([12, 0, 24, 12, 12]), budget=50)
    assert cache.count == 4
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert cache.get(2) is None
    cache.put(2, image)
    assert np.array_equal(cache.get(2), image)  # type: ignore[arg-type]
    cache.put(3, image)  # not the size that was announced
    cache.put(4, image[:1])  # beyond the budget
    assert cache.get(3) is None and cache.get(4) is None


def test_cached_images_are_not_read_again(manifest: Manifest, tmp_path: Path) -> None:
    copy = changed(manifest, tmp_path, 5, (Path(manifest.root) / "05.jpg").read_bytes())
    asked = [Request("val", -1, 0, VAL)] * 12
    with stream(copy, DataConfig(cache_gb=1), AUGMENT, SPEC, SEED, asked, 0) as coming:
        first = next(coming)
        for file in tmp_path.iterdir():
            file.unlink()
        assert all(torch.equal(batch.images, first.images) for batch in coming)


def test_the_automatic_budget_is_a_tenth_of_what_is_free() -> None:
    assert budget_bytes(2) == 2 << 30
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < budget_bytes(-1) <= total / 10
