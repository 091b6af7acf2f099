"""Everything that learns in one process, and how it becomes a checkpoint and comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sports_ray.config import ImageSpec, TrainConfig
from sports_ray.data.order import generator
from sports_ray.engine.guard import LossScale
from sports_ray.engine.world import World
from sports_ray.model.build import frozen_norms, set_train_mode, trainable
from sports_ray.model.ema import Ema
from sports_ray.model.lone import lone_image
from sports_ray.model.loss import mixed_cross_entropy
from sports_ray.model.multilabel_loss import MultilabelLoss
from sports_ray.model.optim import create_optimizer, load_optimizer_tensors, optimizer_tensors

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DROPOUT_STREAM = 5
"""Domain of the generator that seeds dropout and drop path; the loader and mixing have their own."""


@dataclass(slots=True)
class Learner:
    """Model, optimiser, EMA and loss scale of one rank, on its device."""

    config: TrainConfig
    world: World
    precision: str
    spec: ImageSpec
    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    """The model as training calls it: compiled where that was asked for."""
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    scale: LossScale
    frozen: frozenset[str] = frozenset()
    still: frozenset[int] = frozenset()
    """Ids of the batch norms that are frozen whole: their statistics rest too."""
    eval_chunk: int = 0
    """Images evaluated at once; halved when memory ran out; 0: a whole batch."""
    class_weights: Tensor | None = None
    """float32 [K], on the learner's device: factors of the training loss; None: all 1."""
    multilabel: MultilabelLoss | None = None
    """The loss where a photograph shows several classes; None: cross-entropy."""
    mean: Tensor = field(default_factory=lambda: torch.empty(0))
    inverse_std: Tensor = field(default_factory=lambda: torch.empty(0))

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, S, S] on any device -> float32 [n, 3, S, S] on the learner's, (x / 255 - mean) / std."""
        return self.laid_out(self.planes(images))

    def planes(self, images: Tensor) -> Tensor:
        """As `normalise`, plane after plane: arithmetic along a last dimension of three is four times as slow."""
        moved = images.to(self.world.device, non_blocking=True)
        return moved.to(torch.float32).sub_(self.mean).mul_(self.inverse_std)

    def laid_out(self, images: Tensor) -> Tensor:
        """The same values as the model's memory format has them."""
        layout = torch.channels_last if self.config.model.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=layout)

    def autocast(self) -> AbstractContextManager[Any]:
        enabled = self.precision != "fp32"
        return torch.autocast(self.world.device.type, DTYPES[self.precision], enabled=enabled)

    def losses(self, logits: Tensor, labels: Tensor, partner_labels: Tensor, lam: Tensor) -> Tensor:
        """Loss of each sample as training counts it, float32 [n]; labels int64 [n], or [n, K] of multi-label data."""
        smoothing = self.config.augment.smoothing
        if self.multilabel is not None:
            return self.multilabel.losses(logits, labels, partner_labels, lam, smoothing)
        return mixed_cross_entropy(logits, labels, partner_labels, lam, smoothing, self.class_weights)

    def seed_dropout(self, step: int, position: int) -> None:
        """Dropout and drop path of a micro-batch depend on (seed, step, its first position) alone."""
        draw = generator(self.config.loop.seed, DROPOUT_STREAM, step, position)
        torch.manual_seed(int(draw.bit_generator.random_raw()) >> 1)

    def enter_phase(self, pattern: str | None) -> None:
        """Lets the parameters of a phase learn, all of them for None, and freezes the others."""
        names = trainable(self.model, pattern or "*")
        self.frozen = frozenset(name for name, _ in self.model.named_parameters()) - set(names)
        self.still = frozenset(id(norm) for norm in frozen_norms(self.model, self.frozen))
        self.optimizer.zero_grad(set_to_none=True)

    def train_mode(self) -> None:
        set_train_mode(self.model, self.frozen)

    def running_statistics(self) -> list[Tensor]:
        """Batch norm's running means and variances and its counters of batches (int64), in the model's order.

        Without those that are frozen: averaged over lanes or ranks, equal values would come back rounded otherwise."""
        norms = (one for one in self.model.modules() if isinstance(one, _NormBase) and id(one) not in self.still)
        return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]

    def gradients(self) -> list[Tensor]:
        """Gradients of all parameters that learn now, zeros where a rank had no image; the order is the model's."""
        result = []
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                result.append(parameter.grad)
        return result

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, by file: `model`, `optim` and, with EMA, `ema`; the live tensors, not copies."""
        result = {"model": dict(self.model.state_dict()), "optim": optimizer_tensors(self.optimizer, self.model)}
        return {**result, "ema": self.ema.tensors()} if self.ema is not None else result

    def load(self, read: Callable[[str], dict[str, Tensor]]) -> None:
        """Takes over a checkpoint's tensors; `read(name)` gives those of one file."""
        self.model.load_state_dict(read("model"))
        load_optimizer_tensors(self.optimizer, self.model, read("optim"))
        if self.ema is not None:
            self.ema.load(read("ema"))


def build_learner(
    config: TrainConfig, model: nn.Module, spec: ImageSpec, lr: float, ema_decay: float, precision: str, world: World
) -> Learner:
    """Moves a model with its weights in place to the rank's device and adds what it takes to train it.

    The EMA is made here, after the weights were loaded: made before, it would average towards the random start.
    """
    layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
    model = model.to(world.device, memory_format=layout)  # type: ignore[call-overload]
    return Learner(
        config=config,
        world=world,
        precision=precision,
        spec=spec,
        model=model,
        forward=torch.compile(model) if config.model.compile else model,
        optimizer=create_optimizer(model, config.optim, lr),
        ema=Ema(model, ema_decay, config.ema.warmup) if config.ema.enabled else None,
        scale=LossScale.for_precision(precision),
        mean=_channel_values(spec.mean, world.device),
        inverse_std=1.0 / _channel_values(spec.std, world.device),
    )


def _channel_values(values: tuple[float, float, float], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).mul_(255.0).view(1, 3, 1, 1)


@dataclass(slots=True)
class Progress:
    """Where a run stands: all of a checkpoint that is not a tensor. No clock in it, so that it too is reproduced."""

    step: int = 0
    """Optimiser steps done, skipped ones included."""
    evaluated: int = 0
    """Step of the newest evaluation."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One line an evaluation, as in metrics.jsonl."""
    best_step: int = 0
    best_score: float | None = None
    bad_evaluations: int = 0
    stopped_early: bool = False
    micro_batch: int = 0
    """Halved when memory ran out; 0: all that a rank has."""
    nonfinite: int = 0
    """Skipped steps in a row."""
    skipped: int = 0
    """Skipped steps in all."""
    consumed: str = ""
    """Digest of the images of all steps, see ledger.py."""
    eval_done: int = 0
    """Validation images scored so far by an evaluation that a stop interrupted; 0: none is open."""
    eval_sums: list[list[int]] = field(default_factory=list)
    """Its sums so far over all ranks, as `evaluate.empty_sums`: integers, so that the end does not depend on the cut."""
    loss_sum: float = 0.0
    loss_images: int = 0
    scale: float = 1.0
    scale_good_steps: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Progress:
        return cls(**state)


def choose_precision(config: TrainConfig, model: nn.Module, spec: ImageSpec, device: torch.device) -> str:
    """Settles `loop.precision = "auto"`: on a GPU by what it can do, on a CPU by timing small steps.

    Old GPUs without bf16 take fp16, except for SwinV2, whose attention logits overflow in it. What is timed is what a
    step takes of one core: by the clock, beside other processes, the choice would be another one each time.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
        return "fp32" if "swinv2" in config.model.name else "fp16"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = _core_seconds(model, config, spec, ("fp32", "bf16"))
    finally:
        torch.set_num_threads(threads)
    return "bf16" if seconds["bf16"] < 0.85 * seconds["fp32"] else "fp32"


def _core_seconds(
    model: nn.Module, config: TrainConfig, spec: ImageSpec, precisions: Sequence[str]
) -> dict[str, float]:
    """The shortest of four small steps in each precision; they take turns."""
    layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
    # No more at once than in training: memory that does for that has to do for this.
    batch = min(8, config.loop.global_batch, config.loop.micro_batch or 8)
    images = torch.zeros(batch, 3, spec.train_size, spec.train_size).to(memory_format=layout)
    statistics = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    found: dict[str, list[float]] = {name: [] for name in precisions}
    for name in 4 * list(precisions):
        start = time.thread_time()
        with torch.autocast("cpu", DTYPES[name], enabled=name != "fp32"), lone_image(model, batch):
            loss = model(images).float().square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)
        found[name].append(time.thread_time() - start)
    model.load_state_dict(statistics)
    return {name: min(seconds) for name, seconds in found.items()}
