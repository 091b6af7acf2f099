"""The constants of `scale`, measured on the real parts, with photographs that exist in tables only."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sports_ray.bench.figure import Figure, Say
from sports_ray.bench.scale import GB, Constants, Outcome, Setting, limits, simulate
from sports_ray.config import AugmentConfig, DataConfig, ImageSpec
from sports_ray.data.inspect import VERSION
from sports_ray.data.loader import Reader
from sports_ray.data.manifest import Manifest, manifest_of
from sports_ray.data.order import order
from sports_ray.data.pack import BATCH_ROWS, FileEntry, LocalPlace, Pack, PackRecord, index_schema
from sports_ray.data.pack_list import list_pack
from sports_ray.engine.ledger import Ledger
from sports_ray.engine.snapshot import host_copy
from sports_ray.store.attempt import begin_attempt
from sports_ray.store.commit import read_commit, write_commit
from sports_ray.store.storage import open_storage

RESTART_SECONDS = 6.4
"""After the death of a worker: `sports-ray bench recovery`, which takes minutes."""
_PART_BYTES = 64 << 20
_SPEC = ImageSpec(
    train_size=224, eval_size=224, crop_pct=1.0, crop_mode="center", interpolation="bilinear",
    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
)  # fmt: skip


def measure(images: int, megabytes: int, say: Say = lambda line: None) -> Constants:
    """Constants at so many images and so large a checkpoint."""
    say(f"order of {images:,} images")
    order_seconds = _seconds(lambda: order(0, 1, images))
    say(f"driver: listing, rules and fingerprint of {images:,} images")
    manifest, plan_seconds, plan_bytes = _plan(images)
    say("worker: manifest, ledger and loader")
    start_seconds, worker_bytes = _worker(manifest)
    say(f"commit of {megabytes:,} MB")
    write_gb_s, read_gb_s, copy_gb_s = _commit(megabytes)
    return Constants(
        restart_seconds=RESTART_SECONDS,
        write_gb_s=write_gb_s,
        read_gb_s=read_gb_s,
        copy_gb_s=copy_gb_s,
        order_seconds=order_seconds / images,
        start_seconds=start_seconds / images,
        worker_bytes=worker_bytes / images,
        plan_seconds=plan_seconds / images,
        plan_bytes=plan_bytes / images,
    )


def bench_scale(setting: Setting, measured: int, megabytes: int, say: Say = lambda line: None) -> list[Figure]:
    """Constants measured at `measured` images and `megabytes`, what gives out at which size, and a week at four sizes."""
    costs = measure(measured, megabytes, say)
    found = [
        Figure(name=name, words=words, value=factor * getattr(costs, name), unit=unit)
        for name, (words, factor, unit) in _WORDS.items()
    ]
    for limit in limits(setting, costs):
        words = f"{limit.words} (here {limit.now:.2g} of that), from"
        found.append(Figure(name=f"limit_{limit.name}", words=words, value=limit.value, unit=limit.unit))
    for workers in (setting.workers // 16, setting.workers // 4, setting.workers, 4 * setting.workers):
        for one in (True, False):
            there = replace(setting, workers=max(setting.per_node, workers), one_reader=one)
            found += _outcome(there, simulate(there, costs))
    return found


_WORDS = {
    "write_gb_s": ("a commit is written", 1.0, "GB/s"),
    "read_gb_s": ("a commit is read and verified", 1.0, "GB/s"),
    "copy_gb_s": ("the state is copied", 1.0, "GB/s"),
    "order_seconds": ("an epoch's order, for an image", 1e9, "ns"),
    "start_seconds": ("a worker's tables, for an image", 1e9, "ns"),
    "worker_bytes": ("a worker's memory, for an image", 1.0, "bytes"),
    "plan_seconds": ("the driver's plan, for an image", 1e6, "us"),
    "plan_bytes": ("the driver's memory, for an image", 1.0, "bytes"),
    "restart_seconds": ("a lost worker, small run", 1.0, "s"),
}


def _outcome(setting: Setting, found: Outcome) -> list[Figure]:
    who = "one reader" if setting.one_reader else "all read"
    name, words = f"{setting.workers}_{'one' if setting.one_reader else 'all'}", f"{setting.workers} workers, {who}"
    shares = {"useful": found.useful, "lost": found.lost, "down": found.down, "missing": found.missing}
    counts = f"{found.deaths} deaths, {found.resizes} resizes, {found.read_tb:,.0f} TB read"
    figures = [
        Figure(name=f"{key}_{name}", words=f"{words}: {key}", value=100 * share, unit="% of the time")
        for key, share in shares.items()
    ]
    longest = f"{words}: longest stop ({counts})"
    return [*figures, Figure(name=f"longest_{name}", words=longest, value=found.longest, unit="s")]


def synthetic_index(images: int, size: int) -> list[pa.RecordBatch]:
    """The index of photographs that do not exist: 100 classes of train, all different, 640 x 480, `size` bytes each."""
    dice = np.random.default_rng(0)
    batches, schema = [], index_schema()
    for start in range(0, images, BATCH_ROWS):
        count = min(BATCH_ROWS, images - start)
        numbers = np.arange(start, start + count)
        labels = numbers * 100 // images
        digests = dice.bytes(32 * count).hex()
        names = zip(labels.tolist(), numbers.tolist(), strict=True)
        columns: dict[str, Any] = {
            "id": [f"train/class {label:03d}/photograph {number:010d}.jpg" for label, number in names],
            "split": pa.repeat("train", count), "label": labels,
            "sha256": [digests[64 * row : 64 * row + 64] for row in range(count)],
            "width": np.full(count, 640), "height": np.full(count, 480),
            "phash": dice.integers(0, 2**63, count, np.uint64), "format": pa.repeat("jpeg", count),
            "fault": pa.repeat("", count), "error": pa.repeat("", count),
            "shard": np.zeros(count), "offset": numbers * size, "size": np.full(count, size),
        }  # fmt: skip
        batches.append(pa.record_batch([pa.array(columns[f.name]).cast(f.type) for f in schema], schema=schema))
    return batches


def synthetic_record(images: int, index: FileEntry, shards: list[FileEntry]) -> PackRecord:
    names = [f"class {label:03d}" for label in range(100)]
    return PackRecord(
        images=images, classes=names, splits={"train": images}, folders={"train": names}, csv="", short_side=0,
        version=VERSION, max_pixels=DataConfig().max_pixels, fingerprint="", refused="", inputs="", index=index,
        shards=shards,
    )  # fmt: skip


def _plan(images: int) -> tuple[Manifest, float, float]:
    """The manifest, and the driver's seconds and bytes at its peak."""
    record = synthetic_record(images, FileEntry("", 0, ""), [])
    pack = Pack("synthetic", record, LocalPlace("synthetic"), synthetic_index(images, 100_000))
    config = DataConfig(root="synthetic")
    gc.collect()
    _reset_peak()
    before, start = _memory("VmRSS"), time.perf_counter()
    manifest = manifest_of(list_pack(pack, config), config)
    manifest.fingerprint()
    return manifest, time.perf_counter() - start, _memory("VmHWM") - before


def _worker(manifest: Manifest) -> tuple[float, float]:
    """Seconds and bytes of what a worker holds of its images."""
    with tempfile.TemporaryDirectory(prefix="sports-ray-bench-") as folder:
        path = Path(folder, "manifest.arrow")
        manifest.save(path)
        # In a process of its own: what this one has freed would be taken again, and not show.
        done = subprocess.run([sys.executable, "-c", _WORKER, str(path)], capture_output=True, text=True, check=True)
    seconds, size = json.loads(done.stdout)
    return seconds, size


_WORKER = """
import json, sys
from sports_ray.bench.scale_measure import hold_tables
print(json.dumps(hold_tables(sys.argv[1])))
"""


def hold_tables(path: str) -> tuple[float, float]:
    """Seconds and bytes of what a worker makes of the manifest in a file, and of two epochs' orders."""
    torch.get_num_threads()
    before, start = _memory("VmRSS"), time.perf_counter()
    content = Path(path).read_bytes()
    manifest = Manifest.from_bytes(content)
    ledger = Ledger(manifest.rows("train").column("sha256"))
    reader = Reader(manifest, DataConfig(cache_gb=0.0), AugmentConfig(), _SPEC, 0)
    seconds = time.perf_counter() - start
    orders = [order(0, epoch, manifest.table.num_rows).astype(np.int32) for epoch in (0, 1)]
    found = _memory("VmRSS") - before
    del ledger, reader, orders
    return seconds, found


def _commit(megabytes: int) -> tuple[float, float, float]:
    """GB/s of writing, of reading and of copying, each the best of three."""
    parts = max(1, megabytes * 1_000_000 // _PART_BYTES)
    tensors = {"model": {f"t{number}": torch.rand(_PART_BYTES // 4) for number in range(parts)}}
    size = parts * _PART_BYTES / GB
    with tempfile.TemporaryDirectory(prefix="sports-ray-bench-", dir=Path.cwd()) as folder:
        storage = open_storage(folder)
        token = begin_attempt(storage, {}).token
        copy = _seconds(lambda: host_copy(tensors["model"]), 3)
        steps = iter(range(1, 10))
        write = _seconds(lambda: write_commit(storage, next(steps), token, tensors, {}), 3)
        read = _seconds(lambda: read_commit(storage, 1, token).load("model"), 3)
    return size / write, size / read, size / copy


def _seconds(work: Callable[[], object], times: int = 1) -> float:
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def _memory(name: str) -> float:
    """VmRSS or VmHWM of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
