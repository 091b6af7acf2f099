"""How long until something happens: help, the first step without and with Ray, and listing a large folder again."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from sports_ray.bench.figure import Figure, Say, median, take_turns
from sports_ray.bench.photos import listed
from sports_ray.data.demo import draw_demo
from sports_ray.errors import TrainingError

HELP_SECONDS = 0.3
FIRST_STEP_SECONDS = 6.0
LISTING_SECONDS = 5.0 / 100_000
"""Seconds a file, of a listing that finds nothing changed."""
_CLASSES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    files: int = 20_000
    """Files of the folder that is listed twice; 0: none is."""
    model: str = "test_resnet"
    rounds: int = 3


def bench_start(setting: Setting, say: Say = lambda line: None) -> list[Figure]:
    """Seconds from a process's start, in turns; then of a folder of files, new and known."""
    with tempfile.TemporaryDirectory(prefix="sports-ray-bench-") as name:
        folder = Path(name)
        draw_demo(folder / "photographs", classes=2, per_class=16, size=48)
        turns: dict[str, Callable[[], float]] = {
            "help": _help_seconds,
            "alone": partial(_first_step_seconds, setting.model, "0", folder),
            "ray": partial(_first_step_seconds, setting.model, "1", folder),
        }
        values = take_turns(setting.rounds, turns, say)
        overhead = [ray - alone for ray, alone in zip(values["ray"], values["alone"], strict=True)]
        figures = [
            median("help", "sports-ray --help", values["help"], "s", most=HELP_SECONDS),
            median("alone", "--workers 0 to the first step", values["alone"], "s", most=FIRST_STEP_SECONDS),
            median("ray", "--workers 1 to the first step", values["ray"], "s"),
            median("ray_overhead", "what Ray adds to it", overhead, "s"),
        ]
        return figures + (_listing(setting.files, folder, say) if setting.files else [])


def _help_seconds() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sports_ray", "--help"], capture_output=True, check=True)
    return time.perf_counter() - start


def _first_step_seconds(model: str, workers: str, folder: Path) -> float:
    """Seconds from the start of `train` to its first word of a step; the run is a small one and goes to its end."""
    with tempfile.TemporaryDirectory(dir=folder) as store:
        data = ["--data", str(folder / "photographs"), "--model", model, "--weights", "none", "--store", store]
        size = ["--epochs", "1", "--set", "data.image_size=48", "--set", "loop.global_batch=8"]
        command = [sys.executable, "-m", "sports_ray", "train", *data, *size, "--workers", workers, "--json"]
        environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
        start, seconds = time.perf_counter(), 0.0
        with (
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
            ) as process,
            ExitStack() as stack,
        ):
            stack.callback(process.kill)  # interrupted; else it has ended
            assert process.stdout is not None and process.stderr is not None
            for line in process.stdout:
                if not seconds and line.startswith("{") and json.loads(line)["event"] == "step":
                    seconds = time.perf_counter() - start
            errors = process.stderr.read().strip().splitlines()
            process.wait()
    if process.returncode or not seconds:
        raise TrainingError(f"train --workers {workers} failed", got=errors[-1] if errors else process.returncode)
    return seconds


def _listing(files: int, folder: Path, say: Say) -> list[Figure]:
    """The manifest of `files` small JPEGs: the first time each is read, the second none is."""
    say(f"writing {files:,} files")
    _scatter(files, folder / "many")
    seconds = []
    for turn in ("first", "second"):
        start = time.perf_counter()
        listed(folder / "many", folder)
        seconds.append(time.perf_counter() - start)
        say(f"{turn} listing: {seconds[-1]:.2f} s")
    return [
        Figure(name="listing_first", words=f"manifest of {files:,} new files", value=seconds[0], unit="s"),
        Figure(
            name="listing_again",
            words=f"manifest of {files:,} known files",
            value=seconds[1],
            unit="s",
            most=LISTING_SECONDS * files,
        ),
    ]


def _scatter(files: int, root: Path) -> None:
    """JPEGs of 32 x 32 px, no two of them alike: a tenth in val/, the rest in train/."""
    for split in ("train", "val"):
        for label in range(_CLASSES):
            (root / split / f"{label:02d}").mkdir(parents=True)

    def write(start: int) -> None:
        draw = np.random.default_rng(start)
        for index in range(start, min(start + 1000, files)):
            blocks = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            content = io.BytesIO()
            blocks.resize((32, 32), Image.Resampling.BICUBIC).save(content, "JPEG")
            split = "train" if index // _CLASSES % 10 else "val"
            (root / split / f"{index % _CLASSES:02d}" / f"{index:06d}.jpg").write_bytes(content.getvalue())

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(write, range(0, files, 1000)))
