"""The stream of images against timm's loader, per core: same photographs, crops and operations, in turns."""

from __future__ import annotations

import io
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sports_ray.bench.figure import Figure, Say, median, ratio, take_turns
from sports_ray.bench.photos import enlarged, listed, photographs
from sports_ray.config import AugmentConfig, DataConfig, ImageSpec
from sports_ray.data.files import open_files
from sports_ray.data.loader import stream
from sports_ray.data.manifest import Manifest
from sports_ray.data.order import Request, spans, steps_per_epoch

BATCH = 32
SCALE = (0.35, 1.0)
CACHE_GB = 4.0


class Case(NamedTuple):
    name: str
    words: str
    policy: str
    jitter: float
    large: bool
    """Whether the photographs are blown up."""
    least: float | None
    """Of the ratio without a cache."""


CASES = (
    Case("crop", "crop, flip", "none", 0.0, False, None),
    # timm's default without a policy jitters the colours.
    Case("plain", "crop, flip, colour jitter", "none", 0.4, False, 2.0),
    Case("rand", "crop, flip, rand-m7-n2", "rand-m7-n2", 0.0, False, 1.6),
    Case("large", "1024 x 768 px: crop, flip, colour jitter", "none", 0.4, True, 2.5),
    Case("large_rand", "1024 x 768 px: crop, flip, rand-m7-n2", "rand-m7-n2", 0.0, True, 2.5),
)


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

    The clock is the process's core time, so that waiting for other processes costs neither side anything. All work in
    this process, on one thread, and end with uint8 batches: normalising is the trainer's work on both sides.
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
            for case in CASES:
                source, images = (large, quarter) if case.large else (manifest, setting.images)
                say(case.words)
                turns = {
                    "ours": partial(rate, partial(stream_of, source, setting.size, case, 0.0), images),
                    "cached": partial(rate, partial(stream_of, source, setting.size, case, CACHE_GB), images, source),
                    "timm": partial(rate, partial(_timm, source, setting.size, case), images),
                }
                figures += _figures(case, take_turns(setting.rounds, turns, say))
            return figures
    finally:
        torch.set_num_threads(threads)


def _figures(case: Case, values: dict[str, list[float]]) -> list[Figure]:
    name, words = case.name, case.words
    ours = median(f"{name}_ours", f"{words}: ours, no cache", values["ours"], "images/s a core")
    cached = median(f"{name}_cached", f"{words}: ours, cached", values["cached"], "images/s a core")
    timm = median(f"{name}_timm", f"{words}: timm", values["timm"], "images/s a core")
    return [
        ours,
        cached,
        timm,
        ratio(f"{name}_ratio", f"{words}: ours, no cache / timm", ours, timm, case.least),
        ratio(f"{name}_cached_ratio", f"{words}: ours, cached / timm", cached, timm),
    ]


def rate(batches: Callable[[], Iterator[int]], images: int, warm: Manifest | None = None) -> float:
    """Images per second of core time; not of the first batch, or with `warm` the two epochs that fill its cache."""
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


def stream_of(manifest: Manifest, size: int, case: Case, cache_gb: float) -> Iterator[int]:
    """Sizes of the batches that were made, without end."""
    rows = manifest.rows("train").num_rows
    spec = ImageSpec(
        train_size=size,
        eval_size=size,
        crop_pct=1.0,
        crop_mode="center",
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    steps = steps_per_epoch(rows, BATCH)
    requests = (
        Request("train", epoch, *spans(rows, steps, step)) for epoch in itertools.count() for step in range(steps)
    )
    augment = AugmentConfig(policy=case.policy, color_jitter=case.jitter, crop_scale=SCALE)
    with stream(manifest, DataConfig(cache_gb=cache_gb), augment, spec, 0, requests, 0) as batches:
        for batch in batches:
            yield len(batch.rows)


def _timm(manifest: Manifest, size: int, case: Case) -> Iterator[int]:
    """The same of timm's loader as its training script makes it; its last stage, which normalises, is left out."""
    import timm.data

    create_loader: Any = timm.data.create_loader
    loader = create_loader(
        timm.data.ImageDataset(manifest.root, reader=_Reader(manifest)),
        (3, size, size),
        BATCH,
        is_training=True,
        scale=SCALE,
        hflip=0.5,
        color_jitter=case.jitter or None,
        auto_augment=None if case.policy == "none" else case.policy,
        interpolation="bilinear",
        num_workers=0,
        pin_memory=False,
        persistent_workers=False,
        device=torch.device("cpu"),
    ).loader
    while True:
        for images, _ in loader:
            yield len(images)


class _Reader:
    """The manifest's training photographs as timm's dataset reads them."""

    def __init__(self, manifest: Manifest) -> None:
        rows = manifest.rows("train")
        self._files, self._paths = open_files(manifest.root), rows.column("path").to_pylist()
        self._labels = rows.column("label").to_pylist()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return io.BytesIO(self._files.read(self._paths[index])), self._labels[index]
