"""timm's own scripts as child processes, with settings as near to ours as it can be given."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from sports_ray.errors import ConfigError, TrainingError
from sports_ray.predict.member import Member

LOG_INTERVAL = 5
_LINE = re.compile(r"Train: (\d+) \[ *(\d+)/\d+ .*Time: .*\(([\d.]+)s, +[\d.]+/s\)")
VALIDATION_LINE = re.compile(r"Test:() \[ *(\d+)/\d+\] +Time: .*?\(([\d.]+)s, +[\d.]+/s\)")


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
    command += _amp(precision)
    with tempfile.TemporaryDirectory(prefix="sports-ray-bench-") as folder:
        return steady(batch, _lines(script, [*command, "--output", folder], environment))


def timm_validate_per_second(
    script: Path, data: Path, member: Member, *, batch: int, workers: int, environment: Mapping[str, str]
) -> float:
    """The steady speed of validate.py on data/test/CLASS/FILE, with the member's weights and pixels."""
    spec, device = member.spec, "cuda" if _has_cuda() else "cpu"
    command = f"""
        --data-dir {data} --split test --checkpoint {member.storage().uri}/weights/{member.kind}.safetensors
        --model {member.model} --num-classes {len(member.classes)}
        --img-size {spec.eval_size} --crop-pct {spec.crop_pct} --interpolation {spec.interpolation}
        --batch-size {batch} --workers {workers} --channels-last --device {device} --log-freq {LOG_INTERVAL}
        """.split()
    return steady(batch, _lines(script, command + _amp(member.precision), environment), VALIDATION_LINE)


def _amp(precision: str) -> list[str]:
    return [] if precision == "fp32" else ["--amp", "--amp-dtype", {"bf16": "bfloat16", "fp16": "float16"}[precision]]


def _lines(script: Path, words: list[str], environment: Mapping[str, str]) -> list[str]:
    """All that the script has printed."""
    command = [sys.executable, str(script), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        raise TrainingError(f"timm's {script.name} failed", got=last, cure="one that fits the timm installed here")
    return (done.stdout + done.stderr).splitlines()


def steady(batch: int, lines: Iterable[str], pattern: re.Pattern[str] = _LINE) -> float:
    """Images per second between the second and the last line of each epoch.

    A line gives the mean time of the epoch's steps so far, so the time between two lines is known. What comes before
    the second line is left out: it waits for the loader's start, and in the first epoch for kernels made once.
    """
    epochs: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        if match := pattern.search(line):
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
