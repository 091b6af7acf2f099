"""The table of architectures: size, published accuracy, speed on this machine, and what each is for.

Parameters are exact and need no weights. Published accuracies are those that the installed packages hold offline: of
weights that timm took from torchvision, by the address of the very file. All others are left out, never estimated.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sports_ray.config import ModelConfig, OptimConfig
from sports_ray.engine.guard import is_out_of_memory
from sports_ray.engine.memory import give_back, keep_freed_memory
from sports_ray.model.build import create, image_spec, parameter_count, pretrained_cfg, resolve_name
from sports_ray.model.convolution import speed_up
from sports_ray.model.eager_timm import timm
from sports_ray.model.optim import create_optimizer
from sports_ray.model.shapes import shapes_only

WARM_UP = 2
LEAST_STEPS = 3
BUSY = 0.5
"""Processes a core before the first measurement, from which on it is said."""
LONG = 10.0
"""Seconds of a step, from which on one is warm-up enough and one is measured."""
PURPOSES = {
    "test_*": "trials and tests: from scratch in minutes on a laptop, not for scores",
    "resnet18*": "a first baseline on a CPU or an old GPU",
    "resnet*": "the well-known baseline, quick on any GPU; export works everywhere",
    "regnety*": "small and quick, a good second member of an ensemble with another architecture",
    "*efficientnet*": "few parameters, for phones and CPUs; slower to train than its size says",
    "*mobilenet*": "phones and small CPUs",
    "inception*": "the backbone of older systems, to compare with",
    "convnext_[apfn]*": "small and modern: fine-tuning on a CPU or a small GPU",
    "convnext_tiny*": "fine-tuning on one GPU: the best start for a few thousand photographs",
    "convnext*": "the best scores with a large GPU and pretrained weights; learns badly from scratch on small sets",
    "vit_tiny*": "a small transformer; needs pretrained weights",
    "vit_*": "a transformer, an ensemble's partner for convolutions; needs pretrained weights and a GPU",
    "deit*": "a transformer, an ensemble's partner for convolutions; needs pretrained weights and a GPU",
    "swinv2_large*": "the best partner of convnext_large in an ensemble; needs a large GPU, and bf16",
    "swin*": "windows of attention, an ensemble's partner for convolutions; needs pretrained weights and a GPU",
}
"""By pattern over timm's names, the first that fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One line of the table."""

    name: str
    """timm's."""
    alias: str
    parameters: int
    """With the model's own number of classes."""
    size: int
    """Side of a training image, px."""
    top1: float | None
    """Published top-1 on ImageNet-1k, in [0, 1]; None: not in the installed packages."""
    top1_source: str
    purpose: str
    train_images_per_second: float | None = None
    eval_images_per_second: float | None = None
    batch: int = 0
    """Images of a step, where it was measured."""
    precision: str = ""
    device: str = ""
    load: float = 0.0
    """Processes that ran or waited for a core in the minute before, each core's share; near 1 and above it was busy."""
    why_not: str = ""
    """Why there is no speed."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def describe(typed: str) -> Architecture:
    """All but the speed; `typed`: a timm name or alias. WeightsError for an unknown one."""
    name = resolve_name(typed)
    with shapes_only():
        parameters = parameter_count(timm.create_model(name))
    top1, source = published_top1(name)
    return Architecture(
        name=name,
        alias=typed if typed != name else "",
        parameters=parameters,
        size=image_spec(name).train_size,
        top1=top1,
        top1_source=source,
        purpose=purpose_of(name),
    )


def purpose_of(name: str) -> str:
    """What a model of this timm name is for; "" where none of `PURPOSES` fits."""
    return next((words for pattern, words in PURPOSES.items() if fnmatchcase(name, pattern)), "")


def published_top1(name: str) -> tuple[float | None, str]:
    """(top-1 in [0, 1], where it is published) of a model's pretrained weights; (None, "") where no package tells."""
    url = pretrained_cfg(name).url
    return _of_torchvision().get(url, (None, "")) if isinstance(url, str) and url else (None, "")


@cache
def _of_torchvision() -> dict[str, tuple[float, str]]:
    """Address of a weights file -> (top-1, words): torchvision's record of its own weights."""
    from torchvision import models

    found = {}
    for name in models.list_models():
        for weights in models.get_model_weights(name):
            score = weights.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
            if score is not None:
                found[weights.url] = (score / 100, f"torchvision, {name} {weights.name}")
    return found


def measured(
    row: Architecture, seconds: float, batch: int = 0, say: Callable[[str], None] = lambda line: None
) -> Architecture:
    """The row with images per second of training and of evaluation, each measured for about `seconds` after a warm-up.

    On random images of the model's size that lie in memory, in the precision and memory order in which it would be
    trained here: a GPU with bf16, else float32 on all cores. batch: 0: 64 on a GPU, 8 on a CPU. Speeds are those of the
    median step. Where memory runs out the batch is halved."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    batch = batch or (64 if device.type == "cuda" else 8)
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        keep_freed_memory()
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    load = round(os.getloadavg()[0] / (os.cpu_count() or 1), 2) if hasattr(os, "getloadavg") else 0.0
    facts = {"precision": "bf16" if bf16 else "fp32", "device": _device_name(device), "load": load}
    while True:
        say(f"{row.alias or row.name}: {batch} images of {row.size} px at once")
        try:
            training, evaluation = _speeds(row.name, batch, row.size, device, bf16, seconds)
            speeds = {"train_images_per_second": training, "eval_images_per_second": evaluation}
            return Architecture(**asdict(row) | facts | speeds | {"batch": batch})
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        give_back()
        if batch == 1:
            return Architecture(**asdict(row) | facts | {"why_not": "not enough memory for one image"})
        batch //= 2


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def _speeds(name: str, batch: int, size: int, device: torch.device, bf16: bool, seconds: float) -> tuple[float, float]:
    """Images per second of training and of evaluation."""
    classes = pretrained_cfg(name).num_classes
    model = create(ModelConfig(name=name), classes)
    if device.type == "cpu":
        speed_up(model)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = create_optimizer(model, OptimConfig(), 1e-4)
    images = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(classes, (batch,), device=device)

    def forward() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            return model(images)

    def train() -> None:
        functional.cross_entropy(forward().float(), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    model.train()
    training = batch / statistics.median(_times(train, device, seconds))
    model.eval()
    with torch.inference_mode():
        return training, batch / statistics.median(_times(forward, device, seconds))


def _times(step: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Seconds of each step after the warm-up: at least LEAST_STEPS, and until `seconds` are over; one where steps are LONG."""
    found: list[float] = []
    for number in range(WARM_UP + 10_000):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - start
        if number < (WARM_UP if took < LONG else 1):
            continue
        found.append(took)
        if took >= LONG or (sum(found) >= seconds and len(found) >= LEAST_STEPS):
            break
    return found


def markdown(rows: list[Architecture]) -> Iterator[str]:
    """The table's lines; what is not known is left empty."""
    timed = any(row.device for row in rows)
    titles = ["model", "parameters", "px", "top-1", *(["training", "evaluation"] if timed else []), "for"]
    yield f"| {' | '.join(titles)} |"
    yield f"|{'---|' * len(titles)}"
    for row in rows:
        top1 = "" if row.top1 is None else f"{row.top1:.2%}"
        speeds = [_rate(row.train_images_per_second), _rate(row.eval_images_per_second)] if timed else []
        cells = [row.alias or row.name, f"{row.parameters:,}", str(row.size), top1, *speeds, row.purpose]
        yield f"| {' | '.join(cells)} |"


def footnotes(rows: list[Architecture]) -> Iterator[str]:
    """What has to be known of the table's figures."""
    devices = dict.fromkeys(f"{row.device}, {row.precision}" for row in rows if row.device)
    if devices:
        batches = sorted({row.batch for row in rows if row.batch})
        words = ", ".join(map(str, batches))
        yield f"training, evaluation: images per second on {'; '.join(devices)}, {words} images at once, after a warm-up"
    if rows and rows[0].load > BUSY:
        yield f"the machine was busy ({rows[0].load:.1f} processes a core): speeds are too low, measure again when it is not"
    known = [row for row in rows if row.top1 is not None]
    if known:
        yield "top-1: on ImageNet-1k, as torchvision publishes it for the same weights file"
    if missing := len(rows) - len(known):
        yield f"top-1 of {missing} left out: the installed packages do not tell it"
    for row in rows:
        if row.why_not:
            yield f"{row.alias or row.name}: {row.why_not}"


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"
