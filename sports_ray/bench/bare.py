"""The loop that a competent engineer writes when nothing else is asked of it: what any trainer can reach."""

from __future__ import annotations

import os
import time

import torch
from torch.nn import functional

from sports_ray.engine.learner import DTYPES

WARM_UP = 2
BATCHES = 4
"""Different batches in memory."""


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
