"""The loop that a competent engineer writes when nothing else is asked of it, in a process of its own.

`python -m sports_ray.bench.bare MODEL SIZE BATCH STEPS PRECISION CLASSES FILE` writes its images per second into the file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.nn import functional

from sports_ray.engine.learner import DTYPES

WARM_UP = 2
BATCHES = 4
"""Different batches in memory."""


def bare_turn(
    model: str, size: int, batch: int, steps: int, precision: str, classes: int, environment: Mapping[str, str]
) -> float:
    """Images per second of `bare_images_per_second` in a new process: what speeds our training up must not reach it."""
    with tempfile.TemporaryDirectory(prefix="sports-ray-bare-") as folder:
        report = Path(folder, "images_per_second")
        words = [model, *map(str, (size, batch, steps)), precision, str(classes), str(report)]
        subprocess.run([sys.executable, "-m", "sports_ray.bench.bare", *words], check=True, env=environment)
        return float(report.read_text())


def bare_images_per_second(model: str, size: int, batch: int, steps: int, precision: str, classes: int) -> float:
    """Trains a timm model on random tensors that lie in memory ready for it, on all cores: no loader, EMA or commit."""
    import timm

    torch.set_num_threads(os.cpu_count() or 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = timm.create_model(model, num_classes=classes).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    images = torch.randn(BATCHES, batch, 3, size, size, device=device)
    labels = torch.randint(classes, (BATCHES, batch), device=device)
    inputs = [(part.to(memory_format=torch.channels_last), label) for part, label in zip(images, labels, strict=True)]
    start = 0.0
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            _finish(device)
            start = time.perf_counter()
        image, label = inputs[step % BATCHES]
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
            logits = network(image)
        functional.cross_entropy(logits.float(), label, label_smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _finish(device)
    return steps * batch / (time.perf_counter() - start)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    name, size, batch, steps, dtype, classes, file = sys.argv[1:]
    speed = bare_images_per_second(name, int(size), int(batch), int(steps), dtype, int(classes))
    Path(file).write_text(str(speed))
