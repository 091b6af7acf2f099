"""timm's own training script as a child process, with settings as near to ours as it can be given."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from sports_ray.errors import ConfigError, TrainingError

LOG_INTERVAL = 5
_LINE = re.compile(r"Train: (\d+) \[ *(\d+)/\d+ .*Time: .*\(([\d.]+)s, +[\d.]+/s\)")


def timm_images_per_second(
    script: Path,
    data: Path,
    *,
    model: str,
    classes: int,
    size: int,
    batch: int,
    epochs: int,
    precision: str,
    workers: int,
    environment: Mapping[str, str],
) -> float:
    """Its steady speed; `data` holds train/CLASS/FILE."""
    device = "cuda" if _has_cuda() else "cpu"
    command = f"""
        --data-dir {data} --train-split train --val-split= --experiment timm --checkpoint-hist 1
        --model {model} --num-classes {classes} --img-size {size} --batch-size {batch} --epochs {epochs}
        --opt adamw --lr 1e-3 --weight-decay 0.05 --clip-grad 1.0 --sched cosine --warmup-epochs 0
        --mixup 0.2 --smoothing 0.1 --aa rand-m7-n2 --scale 0.35 1.0 --train-interpolation bilinear
        --model-ema --channels-last --device {device} --workers {workers} --log-interval {LOG_INTERVAL}
        """.split()
    if precision != "fp32":
        command += ["--amp", "--amp-dtype", {"bf16": "bfloat16", "fp16": "float16"}[precision]]
    with tempfile.TemporaryDirectory(prefix="sports-ray-bench-") as folder:
        command += ["--output", folder]
        command = [sys.executable, str(script), *command]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        raise TrainingError("timm's training script failed", got=last, cure="one that fits the timm installed here")
    return steady(batch, (done.stdout + done.stderr).splitlines())


def steady(batch: int, lines: Iterable[str]) -> float:
    """Images per second between the second and the last line of each epoch.

    A line gives the mean time of the epoch's steps so far, so the time between two lines is known. What comes before
    the second line is left out: it waits for the loader's start, and in the first epoch for kernels made once.
    """
    epochs: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        if match := _LINE.search(line):
            done = int(match[2]) + 1
            epochs.setdefault(match[1], []).append((done, done * float(match[3])))
    seen = [(marks[1], marks[-1]) for marks in epochs.values() if len(marks) > 2]
    steps = sum(last[0] - first[0] for first, last in seen)
    if not steps:
        want = f"epochs of more than {2 * LOG_INTERVAL} steps"
        raise ConfigError("timm's steady speed", got="too few lines", want=want, cure="more photographs")
    return steps * batch / sum(last[1] - first[1] for first, last in seen)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
