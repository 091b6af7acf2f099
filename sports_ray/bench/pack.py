"""A pack against the files that it was made of, in turns: reading, the whole stream, and what it costs to have it open."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from sports_ray.bench.figure import Figure, Say, median, ratio, take_turns
from sports_ray.bench.loader import CASES, rate, stream_of
from sports_ray.bench.photos import listed, photographs
from sports_ray.bench.scale_measure import synthetic_index, synthetic_record
from sports_ray.data.files import open_files
from sports_ray.data.manifest import Manifest
from sports_ray.data.order import order
from sports_ray.data.pack import INDEX_NAME, NAME, FileEntry
from sports_ray.data.pack_shard import ipc_file
from sports_ray.data.pack_write import write_pack

OPEN_SECONDS = 0.2
READS = 4_000
_SIZE = 100
_OPEN = """
import json, sys, time
from sports_ray.data.pack import open_pack
def anonymous():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))
open_pack(sys.argv[1])
before, start = anonymous(), time.perf_counter()
pack = open_pack(sys.argv[2])
seconds = time.perf_counter() - start
for row in range(0, len(pack.ids), max(1, len(pack.ids) // 1000)):
    pack.read(pack.ids[row])
print(json.dumps([seconds, anonymous() - before]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    data: str = ""
    """Folder of photographs; empty: drawn."""
    size: int = 160
    images: int = 512
    """Images of one turn."""
    rows: int = 100_000
    """Photographs of the pack that is opened."""
    rounds: int = 3
    per_class: int = 48
    """Photographs a class, where they are drawn."""


def bench_pack(setting: Setting, say: Say = lambda line: None) -> list[Figure]:
    """Images per second of core time from files and from their pack, both in the page cache; a large pack's opening.

    Reading is the bytes alone, in the order of an epoch; the stream is crop and flip, the cheapest that there is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="sports-ray-bench-") as name:
            folder = Path(name)
            root = photographs(setting.data, folder, 224, setting.per_class, say)
            write_pack(str(root), str(folder / "pack"), cache_dir=folder / "facts")
            places = {"files": listed(root, folder), "pack": listed(folder / "pack", folder)}
            works: dict[str, Callable[[Manifest], float]] = {"read": _reading, "stream": partial(_streaming, setting)}
            turns = {
                f"{what} {where}": partial(work, manifest)
                for what, work in works.items()
                for where, manifest in places.items()
            }
            values = take_turns(setting.rounds, turns, say)
            found = []
            for what in works:
                ours, theirs = (
                    median(f"{what}_{where}", f"{what}: {where}", values[f"{what} {where}"], "images/s a core")
                    for where in ("pack", "files")
                )
                found += [ours, theirs, ratio(f"{what}_ratio", f"{what}: pack / files", ours, theirs, 1.0)]
            say(f"opening a pack of {setting.rows:,}")
            return [*found, *_opening(setting, folder)]
    finally:
        torch.set_num_threads(threads)


def _reading(manifest: Manifest) -> float:
    files, rows = open_files(manifest.root), manifest.rows("train")
    paths = rows.column("path").take(order(0, 0, rows.num_rows)).to_pylist()
    rounds = max(1, READS // len(paths))
    start = time.process_time()
    for path in paths * rounds:
        files.read(path)
    return rounds * len(paths) / (time.process_time() - start)


def _streaming(setting: Setting, manifest: Manifest) -> float:
    return rate(partial(stream_of, manifest, setting.size, CASES[0], 0.0), setting.images)


def _opening(setting: Setting, folder: Path) -> list[Figure]:
    write_synthetic(folder / "large", setting.rows)
    found = [opened(folder / "pack", folder / "large") for _ in range(setting.rounds)]
    words, memory = f"a pack of {setting.rows:,} opens in", [size / setting.rows for _, size in found]
    return [
        median("open", words, [seconds for seconds, _ in found], "s", most=OPEN_SECONDS),
        median("open_memory", "its memory beyond the map, for an image", memory, "bytes"),
    ]


def opened(other: Path, pack: Path) -> tuple[float, float]:
    """Seconds of opening a pack and bytes of memory that are no map, after a thousand reads, in a process of its own; that
    has opened another one before, so that its imports do not count."""
    words = [sys.executable, "-c", _OPEN, str(other), str(pack)]
    seconds, size = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return seconds, size


def write_synthetic(folder: Path, images: int) -> None:
    """A pack of so many photographs of 100 bytes, which are none."""
    (folder / "shards").mkdir(parents=True)
    content = ipc_file(synthetic_index(images, _SIZE), {})
    (folder / INDEX_NAME).write_bytes(content)
    shard = FileEntry("shards/00000.arrow", _SIZE * images, "")
    with open(folder / shard.name, "wb") as file:
        file.truncate(shard.size)
    index = FileEntry(INDEX_NAME, content.size, hashlib.sha256(content).hexdigest())
    (folder / NAME).write_bytes(synthetic_record(images, index, [shard]).to_bytes())
