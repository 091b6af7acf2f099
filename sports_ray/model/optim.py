"""Parameter groups, optimiser, learning rate as a function of the step, and the optimiser's state as named tensors."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sports_ray.config import ExtensionConfig, OptimConfig, PhaseConfig
from sports_ray.errors import RunError
from sports_ray.model.eager_timm import group_parameters

WARMUP_START = 0.01
"""Where the linear warm-up begins, as a fraction of the peak rate."""
ONECYCLE_RISE = 0.3
"""Share of the steps in which OneCycle rises (Smith & Topin 2018; torch's default)."""
ONECYCLE_START = 1 / 25
"""Where OneCycle begins, as a fraction of the peak rate (torch's default)."""


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Groups for a torch optimiser, each with `params`, `lr_scale` and `weight_decay`.

    `lr_scale` = layer_decay ** (layer groups up to the head), with timm's groups (BEiT, Bao et al. 2022). No weight
    decay on parameters of at most one dimension and on those that the model names in `no_weight_decay()`. Frozen
    parameters are in it too: an optimiser passes over what has no gradient, and groups stay the same when they thaw.
    """
    depth = _layer_depths(model) if optim.layer_decay != 1.0 else {}
    last = max(depth.values(), default=0)
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        plain = parameter.ndim <= 1 or any(fnmatch(name, pattern) for pattern in exempt)
        decay = 0.0 if plain else optim.weight_decay
        scale = optim.layer_decay ** (last - depth.get(name, last))
        group = groups.setdefault((scale, decay), {"params": [], "lr_scale": scale, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


def _layer_depths(model: nn.Module) -> dict[str, int]:
    """Layer group of each parameter, 0 at the input."""
    if hasattr(model, "group_matcher"):
        return group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # type: ignore[operator, return-value]
    from timm.optim import auto_group_layers  # and with it torch's compiler

    return auto_group_layers(model)


def create_optimizer(model: nn.Module, optim: OptimConfig, lr: float) -> Optimizer:
    """The configured optimiser at rate `lr` times each group's `lr_scale`.

    adam takes weight decay into the gradient (L2), adamw apart from it (Loshchilov & Hutter 2019), sgd is Nesterov's.
    """
    groups = parameter_groups(model, optim)
    optimizer: Optimizer
    if optim.name == "sgd":
        # Not fused: torch's fused SGD fails when a group holds parameters with and without momentum, as after a phase.
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=optim.momentum, nesterov=optim.momentum > 0, foreach=True)
    else:
        kind = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
        optimizer = kind(groups, lr=lr, betas=optim.betas, fused=_can_fuse(model))
    set_learning_rate(optimizer, lr)
    return optimizer


def _keep_compiler_out() -> None:
    """torch's optimisers load its compiler, 1.7 s, at the first call of these, to keep it out of them. Where it is not there
    it need not be kept out."""
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        plain = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if plain is not None and "torch._dynamo" not in sys.modules:
            plain.__dynamo_disable = plain  # where torch._compile looks for what it shall call


_keep_compiler_out()


def take_step(optimizer: Optimizer, lr: float) -> None:
    """Updates the parameters from their gradients, at rate `lr` times each group's `lr_scale`, as `optimizer.step()` does with
    its hooks; without the wrapper around it that loads torch's compiler to tell it that there is nothing to compile."""
    set_learning_rate(optimizer, lr)
    plain = inspect.unwrap(type(optimizer).step)
    with torch.no_grad():
        Optimizer.profile_hook_step(plain)(optimizer)


def _can_fuse(model: nn.Module) -> bool:
    return all(p.device.type in ("cpu", "cuda", "mps") and p.is_floating_point() for p in model.parameters())


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Sets each group's rate to `lr` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def default_lr(optim: OptimConfig, global_batch: int, from_scratch: bool) -> float:
    """`optim.lr`, or where that is 0 a rate that grows with the root of the batch; ten times as high for SGD."""
    if optim.lr:
        return optim.lr
    rate = 4e-3 * math.sqrt(global_batch / 32) if from_scratch else 1e-4 * math.sqrt(global_batch / 128)
    return 10 * rate if optim.name == "sgd" else rate


def learning_rate(
    step: int,
    lr: float,
    optim: OptimConfig,
    phases: Sequence[PhaseConfig],
    steps_per_epoch: int,
    epochs: int,
    extensions: Sequence[ExtensionConfig] = (),
) -> float:
    """Rate of optimiser step `step` (from 0) at peak rate `lr`; pure, so that a checkpoint needs no scheduler.

    Each phase has the constant rate lr * lr_scale. The steps after them warm up (linearly, for at most half of them),
    then follow `optim.schedule`; OneCycle brings its own warm-up. Steps past the end keep the last rate of the formula.
    A run that was extended has the rates that it had without the last extension up to there, then those of its schedule.
    """
    if not extensions:
        return _planned_rate(step, lr, optim, phases, steps_per_epoch, epochs)
    *before, last = extensions
    begun = last.after * steps_per_epoch
    if step >= begun and last.schedule == "stretch":
        return _planned_rate(step, lr, optim, phases, steps_per_epoch, epochs)
    if step >= begun and last.schedule == "restart":
        return _planned_rate(step - begun, lr, optim, (), steps_per_epoch, epochs - last.after)
    return learning_rate(min(step, begun - 1), lr, optim, phases, steps_per_epoch, last.after, before)


def _planned_rate(
    step: int, lr: float, optim: OptimConfig, phases: Sequence[PhaseConfig], steps_per_epoch: int, epochs: int
) -> float:
    for phase in phases:
        if step < phase.epochs * steps_per_epoch:
            return lr * phase.lr_scale
        step -= phase.epochs * steps_per_epoch
    steps = (epochs - sum(phase.epochs for phase in phases)) * steps_per_epoch
    step = min(step, steps)
    if optim.schedule == "onecycle":
        return lr * _onecycle(step, steps, optim.min_lr)
    warmup = min(round(optim.warmup_epochs * steps_per_epoch), steps // 2)
    if step < warmup:
        return lr * (WARMUP_START + (1 - WARMUP_START) * step / warmup)
    return lr * _decayed(step - warmup, steps - warmup, optim, steps_per_epoch)


def _decayed(step: int, steps: int, optim: OptimConfig, steps_per_epoch: int) -> float:
    """Fraction of the peak rate at `step` of `steps` after the warm-up."""
    if optim.schedule == "cosine":
        return _cosine(1.0, optim.min_lr, step / max(steps, 1))
    if optim.schedule == "step":
        drops = step // max(round(optim.step_epochs * steps_per_epoch), 1)
        return max(optim.step_gamma**drops, optim.min_lr)
    return 1.0


def _onecycle(step: int, steps: int, floor: float) -> float:
    """Fraction of the peak rate: 1/25 -> 1 -> floor in two half cosines, as torch's OneCycleLR; constant momentum."""
    peak, last = ONECYCLE_RISE * steps - 1, steps - 1
    if step <= peak:
        return _cosine(ONECYCLE_START, 1.0, step / peak)
    return _cosine(1.0, floor, min((step - peak) / (last - peak), 1.0))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state as flat names `<slot>.<parameter>`, such as `exp_avg.head.fc.weight`; live, not copied.

    Parameters that have not learned yet have no entries. Rates and weight decays are not state: the config gives them.
    """
    return {
        f"{slot}.{name}": value
        for name, parameter in _named(optimizer, model)
        for slot, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replaces the optimiser's state by what `optimizer_tensors` gave, bit for bit.

    Raises RunError, before anything is changed, for a name that the optimiser does not know, a parameter with only some
    of its slots, or another shape or dtype.
    """
    slots = _slots(optimizer)
    state: dict[Tensor, dict[str, Tensor]] = {}
    used: set[str] = set()
    for name, parameter in _named(optimizer, model):
        here = {slot: tensors[f"{slot}.{name}"] for slot in slots if f"{slot}.{name}" in tensors}
        if not here:
            continue
        if len(here) != len(slots):
            raise _mismatch(f"only {', '.join(sorted(here))} of {name}", f"all of {', '.join(slots)}")
        state[parameter] = {slot: _placed(f"{slot}.{name}", value, parameter) for slot, value in here.items()}
        used.update(f"{slot}.{name}" for slot in here)
    if unknown := sorted(tensors.keys() - used):
        raise _mismatch(f"{len(unknown)} unknown tensors such as {unknown[0]}", f"{', '.join(slots)} of this model")
    optimizer.state.clear()
    optimizer.state.update(state)


def _named(optimizer: Optimizer, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return ((name, parameter) for name, parameter in model.named_parameters() if id(parameter) in held)


def _slots(optimizer: Optimizer) -> tuple[str, ...]:
    """What the optimiser keeps for each parameter."""
    if isinstance(optimizer, torch.optim.SGD):
        return ("momentum_buffer",) if optimizer.defaults["momentum"] else ()
    return ("step", "exp_avg", "exp_avg_sq")


def _placed(name: str, value: Tensor, parameter: nn.Parameter) -> Tensor:
    """A copy of `value` with the device and memory layout that the optimiser itself would have chosen."""
    if name.startswith("step."):
        if value.ndim or value.dtype != torch.float32:
            raise _mismatch(f"{name} {_kind(value)}", "a float32 scalar")
        return value.to(parameter.device, copy=True)
    if value.shape != parameter.shape or value.dtype != parameter.dtype:
        raise _mismatch(f"{name} {_kind(value)}", _kind(parameter))
    return torch.empty_like(parameter, memory_format=torch.preserve_format, requires_grad=False).copy_(value)


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def _mismatch(got: str, want: str) -> RunError:
    cure = "resume with the settings it was made with"
    return RunError("optimiser state of the checkpoint", got=got, want=want, cure=cure)
