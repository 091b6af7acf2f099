"""The stream of images against timm's loader, per core: same photographs, crops and operations, in turns."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sports_ray.bench.figure import Figure, Say, median, ratio, take_turns
from sports_ray.bench.photos import enlarged, listed, photographs
from sports_ray.config import AugmentConfig, DataConfig, ImageSpec
from sports_ray.data.loader import Request, stream
from sports_ray.data.manifest import Manifest
from sports_ray.data.order import spans, steps_per_epoch

BATCH = 32
SCALE = (0.35, 1.0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RAND = "rand-m7-n2"
CASES = (
    ("plain", "photographs, crop and flip", "none", False, 2.0),
    ("rand", f"photographs, {RAND}", RAND, False, 1.6),
    ("large", "1024 x 768 px JPEGs, crop and flip", "none", True, 2.5),
    ("large_rand", f"1024 x 768 px JPEGs, {RAND}", RAND, True, 2.5),
)
"""Name, words, policy, whether the photographs are blown up, least ratio without a cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    data: str = ""
    """Folder of photographs; empty: drawn."""
    size: int = 160
    images: int = 512
    """Images of one turn; a quarter of them where they are large."""
    rounds: int = 3
    per_class: int = 48
    """Photographs a class, where they are drawn."""


def bench_loader(setting: Setting, say: Say = lambda line: None) -> list[Figure]:
    """Images per second of one core: ours without and with a cache, timm's, and the ratios.

    The clock is the process's core time, so other processes on the machine cost neither side anything. All sides work in
    this process, on one thread, and end with normalised float32 batches.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="sports-ray-bench-") as name:
            folder = Path(name)
            root = photographs(setting.data, folder, 224, setting.per_class, say)
            manifest = listed(root, folder)
            quarter = max(BATCH, setting.images // 4)
            large = enlarged(manifest, folder / "large", quarter)
            figures = []
            for name, words, policy, blown_up, least in CASES:
                source, images = (large, quarter) if blown_up else (manifest, setting.images)
                say(words)
                turns = {
                    "ours": partial(_rate, partial(_ours, source, setting.size, policy, 0.0), images),
                    "cached": partial(_rate, partial(_ours, source, setting.size, policy, 4.0), images, source),
                    "timm": partial(_rate, partial(_timm, source, setting.size, policy), images),
                }
                figures += _figures(name, words, take_turns(setting.rounds, turns, say), least)
            return figures
    finally:
        torch.set_num_threads(threads)


def _figures(name: str, words: str, values: dict[str, list[float]], least: float) -> list[Figure]:
    ours = median(f"{name}_ours", f"{words}: ours, no cache", values["ours"], "images/s a core")
    cached = median(f"{name}_cached", f"{words}: ours, cached", values["cached"], "images/s a core")
    timm = median(f"{name}_timm", f"{words}: timm", values["timm"], "images/s a core")
    return [
        ours,
        cached,
        timm,
        ratio(f"{name}_ratio", f"{words}: ours, no cache / timm", ours, timm, least),
        ratio(f"{name}_cached_ratio", f"{words}: ours, cached / timm", cached, timm),
    ]


def _rate(batches: Callable[[], Iterator[int]], images: int, warm: Manifest | None = None) -> float:
    """Images per second of core time; the first batch, or with `warm` the first two epochs, are left out."""
    sizes = batches()
    skipped = 2 * warm.rows("train").num_rows if warm else 1
    while skipped > 0:
        skipped -= next(sizes)
    start, done = time.process_time(), 0
    while done < images:
        done += next(sizes)
    seconds = time.process_time() - start
    sizes.close()  # type: ignore[attr-defined]
    return done / seconds


def _ours(manifest: Manifest, size: int, policy: str, cache_gb: float) -> Iterator[int]:
    """Sizes of the batches that were made, without end."""
    rows = manifest.rows("train").num_rows
    spec = ImageSpec(
        train_size=size, eval_size=size, crop_pct=0.875, crop_mode="center", interpolation="bilinear", mean=MEAN, std=STD
    )
    steps = steps_per_epoch(rows, BATCH)
    requests = (
        Request("train", epoch, *spans(rows, steps, step)) for epoch in itertools.count() for step in range(steps)
    )
    mean, std = (torch.tensor(values).mul_(255).view(1, 3, 1, 1) for values in (MEAN, STD))
    augment = AugmentConfig(policy=policy, crop_scale=SCALE)
    with stream(manifest, DataConfig(cache_gb=cache_gb), augment, spec, 0, requests, 0) as batches:
        for batch in batches:
            batch.images.to(torch.float32).sub_(mean).div_(std)
            yield len(batch.rows)


def _timm(manifest: Manifest, size: int, policy: str) -> Iterator[int]:
    """The same of timm's loader, with the settings of its training script on a CPU."""
    from timm.data import ImageDataset, create_loader

    loader: Any = create_loader(
        ImageDataset(manifest.root, reader=_Reader(manifest)),
        (3, size, size),
        BATCH,
        is_training=True,
        scale=SCALE,
        hflip=0.5,
        color_jitter=None,
        auto_augment=None if policy == "none" else policy,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=0,
        pin_memory=False,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    while True:
        for images, _ in loader:
            yield len(images)


class _Reader:
    """The manifest's training photographs as timm's dataset reads them."""

    def __init__(self, manifest: Manifest) -> None:
        rows = manifest.rows("train")
        self._paths = [Path(manifest.root) / path for path in rows.column("path").to_pylist()]
        self._labels = rows.column("label").to_pylist()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return open(self._paths[index], "rb"), self._labels[index]
