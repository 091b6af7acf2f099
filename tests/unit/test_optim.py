"""Parameter groups, optimisers, learning-rate curves and the optimiser's state as tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import lr_scheduler

from sports_ray.config import ExtensionConfig, ModelConfig, OptimConfig, PhaseConfig
from sports_ray.errors import RunError
from sports_ray.model.build import create, trainable
from sports_ray.model.optim import (
    create_optimizer,
    default_lr,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_groups,
    set_learning_rate,
)
from sports_ray.model.shapes import shapes_only

OPTIMISERS = ["adamw", "adam", "sgd"]


def _model(seed: int = 0, name: str = "test_resnet") -> nn.Module:
    torch.manual_seed(seed)
    return create(ModelConfig(name=name), 5).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _give_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient.to(memory_format=torch.channels_last) if gradient.ndim == 4 else gradient
        if not parameter.requires_grad:
            parameter.grad = None


def _bits(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "name", ["test_vit", "test_convnext", "test_resnet", "test_efficientnet", "convnext_large", "swinv2_large"]
)
def test_layer_decay_gives_each_parameter_timms_scale_and_weight_decay(name: str) -> None:
    from timm.optim import param_groups_layer_decay  # 1.7 s that the other processes of the suite need not spend

    with shapes_only():
        model = create(ModelConfig(name=name), 5)
    optim = OptimConfig(layer_decay=0.8, weight_decay=0.05)
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    wanted = param_groups_layer_decay(model, 0.05, exempt, layer_decay=0.8)
    ours = _by_parameter(parameter_groups(model, optim))
    assert ours == _by_parameter(wanted)
    assert len(ours) == len(list(model.parameters()))


def _by_parameter(groups: list[dict[str, Any]]) -> dict[int, tuple[float, float]]:
    facts = [(id(p), round(group["lr_scale"], 12), group["weight_decay"]) for group in groups for p in group["params"]]
    return {key: (scale, decay) for key, scale, decay in facts}


def test_head_has_the_full_rate_and_the_stem_the_smallest() -> None:
    model = _model(name="test_vit")
    scales = {
        id(p): group["lr_scale"]
        for group in parameter_groups(model, OptimConfig(layer_decay=0.5))
        for p in group["params"]
    }
    assert scales[id(model.head.weight)] == 1.0  # type: ignore[union-attr]
    assert scales[id(model.patch_embed.proj.weight)] == min(scales.values()) < 0.1  # type: ignore[union-attr]


def test_one_dimensional_and_named_parameters_have_no_weight_decay() -> None:
    model = _model(name="test_vit")
    decays = {id(p): group["weight_decay"] for group in parameter_groups(model, OptimConfig()) for p in group["params"]}
    for name, parameter in model.named_parameters():
        plain = parameter.ndim <= 1 or name in ("pos_embed", "cls_token")
        assert decays[id(parameter)] == (0.0 if plain else 0.05), name


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimiser_takes_the_step_of_torchs_plain_one(name: str) -> None:
    ours, theirs = _model(), _model()
    optim = OptimConfig(name=name, weight_decay=0.1, layer_decay=0.7)  # type: ignore[arg-type]
    fast = create_optimizer(ours, optim, 0.01)
    groups = [{**group, "lr": 0.01 * group["lr_scale"]} for group in parameter_groups(theirs, optim)]
    slow: torch.optim.Optimizer
    if name == "sgd":
        slow = torch.optim.SGD(groups, momentum=0.9, nesterov=True, foreach=False)
    else:
        slow = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](groups, betas=(0.9, 0.999), foreach=False)
    for step in range(3):
        _give_gradients(ours, step)
        _give_gradients(theirs, step)
        fast.step()
        slow.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_adams_weight_decay_is_l2_and_adamws_is_not() -> None:
    moved = {}
    for name in ("adam", "adamw"):
        layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(layer.weight, 1.0)
        optimizer = create_optimizer(layer, OptimConfig(name=name, weight_decay=0.5), 0.1)  # type: ignore[arg-type]
        layer.weight.grad = torch.zeros(1, 1)
        optimizer.step()
        moved[name] = layer.weight.item()
    # L2 makes a gradient, of which Adam takes the sign; decoupled decay shrinks the weight by lr * decay.
    assert moved == pytest.approx({"adam": 0.9, "adamw": 0.95})


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimiser_is_bit_reproducible(name: str) -> None:
    results = []
    for _ in range(2):
        model = _model()
        optimizer = create_optimizer(model, OptimConfig(name=name), 0.01)  # type: ignore[arg-type]
        for step in range(3):
            _give_gradients(model, step)
            optimizer.step()
        results.append(_bits(model))
    assert _equal(*results)


def test_set_learning_rate_keeps_the_groups_ratios() -> None:
    optimizer = create_optimizer(_model(), OptimConfig(layer_decay=0.5), 1.0)
    set_learning_rate(optimizer, 0.2)
    assert all(group["lr"] == 0.2 * group["lr_scale"] for group in optimizer.param_groups)
    assert len({group["lr"] for group in optimizer.param_groups}) > 2


def test_default_rate_grows_with_the_root_of_the_batch() -> None:
    assert default_lr(OptimConfig(), 32, True) == 4e-3
    assert default_lr(OptimConfig(), 128, True) == 8e-3
    assert default_lr(OptimConfig(), 512, False) == 2e-4
    assert default_lr(OptimConfig(name="sgd"), 128, False) == 1e-3
    assert default_lr(OptimConfig(lr=0.3), 512, False) == 0.3


def _ours(optim: OptimConfig, steps: int, lr: float, phases: tuple[PhaseConfig, ...] = ()) -> list[float]:
    return [learning_rate(step, lr, optim, phases, 10, steps // 10) for step in range(steps)]


def _torchs(scheduler: Any, steps: int, lr: float, **settings: Any) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    curve = scheduler(optimizer, **settings)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        curve.step()
    return rates


def test_cosine_equals_torchs_step_for_step() -> None:
    wanted = _torchs(lr_scheduler.CosineAnnealingLR, 60, 0.3, T_max=60, eta_min=0.3 * 0.02)
    optim = OptimConfig(schedule="cosine", warmup_epochs=0.0, min_lr=0.02)
    assert _ours(optim, 60, 0.3) == pytest.approx(wanted, rel=1e-9)


def test_step_schedule_equals_torchs_step_for_step() -> None:
    wanted = _torchs(lr_scheduler.StepLR, 60, 0.3, step_size=25, gamma=0.1)
    optim = OptimConfig(schedule="step", warmup_epochs=0.0, step_epochs=2.5, step_gamma=0.1, min_lr=0.0)
    assert _ours(optim, 60, 0.3) == pytest.approx(wanted, rel=1e-9)


def test_onecycle_equals_torchs_step_for_step() -> None:
    wanted = _torchs(lr_scheduler.OneCycleLR, 60, 0.01, max_lr=0.3, total_steps=60, final_div_factor=1 / (25 * 0.02))
    assert _ours(OptimConfig(schedule="onecycle", min_lr=0.02), 60, 0.3) == pytest.approx(wanted, rel=1e-9)


def test_floor_holds_in_every_schedule() -> None:
    for schedule in ("cosine", "step", "onecycle"):
        optim = OptimConfig(schedule=schedule, step_epochs=1.0, min_lr=0.2, warmup_epochs=0.0)  # type: ignore[arg-type]
        assert min(_ours(optim, 100, 1.0)[50:]) >= 0.2
        assert learning_rate(100, 1.0, optim, (), 10, 10) == pytest.approx(0.2)


def test_warm_up_rises_evenly_from_a_hundredth() -> None:
    rates = _ours(OptimConfig(schedule="constant", warmup_epochs=2.0), 60, 0.5)
    assert rates[0] == pytest.approx(0.005)
    assert rates[10] == pytest.approx(0.5 * (0.01 + 0.99 / 2))
    assert rates[20:] == [0.5] * 40


def test_warm_up_takes_at_most_half_of_a_short_run() -> None:
    assert _ours(OptimConfig(warmup_epochs=1.0), 10, 1.0)[5] == 1.0


def test_phases_come_first_at_constant_rates_and_the_rest_is_the_curve_of_a_shorter_run() -> None:
    optim = OptimConfig(schedule="cosine", warmup_epochs=1.0)
    phases = (PhaseConfig(epochs=1, lr_scale=3.0), PhaseConfig(epochs=2, train="layer4*", lr_scale=0.5))
    rates = _ours(optim, 80, 0.1, phases)
    assert rates[:30] == pytest.approx([0.3] * 10 + [0.05] * 20)
    assert rates[30:] == _ours(optim, 50, 0.1)


PHASES = (PhaseConfig(epochs=1, lr_scale=3.0),)
COURSES = [
    OptimConfig(),
    OptimConfig(schedule="step", step_epochs=2.0, warmup_epochs=0.0),
    OptimConfig(schedule="onecycle"),
]


def _extended(optim: OptimConfig, epochs: int, *extensions: tuple[int, Any]) -> list[float]:
    records = tuple(ExtensionConfig(after=after, schedule=schedule) for after, schedule in extensions)
    return [learning_rate(step, 0.1, optim, PHASES, 10, epochs, records) for step in range(10 * epochs)]


@pytest.mark.parametrize("optim", COURSES)
def test_extended_run_keeps_its_rates_and_goes_on_as_its_policy_says(optim: OptimConfig) -> None:
    planned = _ours(optim, 50, 0.1, PHASES)
    stretched = _extended(optim, 10, (5, "stretch"))
    assert stretched == [*planned, *_ours(optim, 100, 0.1, PHASES)[50:]]
    assert _extended(optim, 10, (5, "restart")) == [*planned, *_ours(optim, 50, 0.1)]
    assert _extended(optim, 10, (5, "hold")) == [*planned, *[planned[-1]] * 50]


def test_a_run_that_is_extended_again_keeps_what_the_first_extension_gave_it() -> None:
    first = _extended(OptimConfig(), 8, (5, "restart"))
    assert _extended(OptimConfig(), 12, (5, "restart"), (8, "hold")) == [*first, *[first[-1]] * 40]
    assert _extended(OptimConfig(), 12, (5, "restart"), (8, "restart"))[80:] == _ours(OptimConfig(), 40, 0.1)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_state_survives_a_file_and_training_goes_on_bit_equal(name: str, tmp_path: Path) -> None:
    """Some parameters have no state yet: they were frozen, as in a phase."""
    optim = OptimConfig(name=name)  # type: ignore[arg-type]
    unbroken = _model()
    optimizer = create_optimizer(unbroken, optim, 0.01)
    trainable(unbroken, "head")
    for step in range(2):
        _give_gradients(unbroken, step)
        optimizer.step()
    tensors = optimizer_tensors(optimizer, unbroken)
    assert {key.partition(".")[2] for key in tensors} == {"fc.weight", "fc.bias"}
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "optim.safetensors")

    resumed = _model(seed=1)
    resumed.load_state_dict(unbroken.state_dict())
    other = create_optimizer(resumed, optim, 0.01)
    load_optimizer_tensors(other, resumed, load_file(tmp_path / "optim.safetensors"))
    for model, optimiser in ((unbroken, optimizer), (resumed, other)):
        trainable(model, "*")
        for step in range(2, 5):
            _give_gradients(model, step)
            optimiser.step()
    assert _equal(_bits(unbroken), _bits(resumed))
    after, again = optimizer_tensors(optimizer, unbroken), optimizer_tensors(other, resumed)
    assert after.keys() == again.keys()
    assert all(torch.equal(after[key], again[key]) for key in after)


def test_loading_replaces_the_state_of_a_used_optimiser() -> None:
    model = _model()
    optimizer = create_optimizer(model, OptimConfig(), 0.01)
    _give_gradients(model, 0)
    optimizer.step()
    load_optimizer_tensors(optimizer, model, {})
    assert optimizer_tensors(optimizer, model) == {}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("unknown", "exp_avg.nowhere"),
        ("missing", "only exp_avg, exp_avg_sq of fc.bias"),
        ("shape", r"exp_avg.fc.bias \(3,\)"),
        ("step", "step.fc.bias .* float32 scalar"),
    ],
)
def test_state_of_another_run_is_refused_and_nothing_changes(damage: str, message: str) -> None:
    model = _model()
    optimizer = create_optimizer(model, OptimConfig(), 0.01)
    _give_gradients(model, 0)
    optimizer.step()
    before = {key: value.clone() for key, value in optimizer_tensors(optimizer, model).items()}
    tensors = dict(before)
    if damage == "unknown":
        tensors["exp_avg.nowhere"] = torch.zeros(1)
    elif damage == "missing":
        del tensors["step.fc.bias"]
    elif damage == "shape":
        tensors["exp_avg.fc.bias"] = torch.zeros(3)
    else:
        tensors["step.fc.bias"] = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(RunError, match=message):
        load_optimizer_tensors(optimizer, model, tensors)
    after = optimizer_tensors(optimizer, model)
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_moments_keep_the_weights_memory_layout() -> None:
    model = _model()
    optimizer = create_optimizer(model, OptimConfig(), 0.01)
    _give_gradients(model, 0)
    optimizer.step()
    strides = {key: value.stride() for key, value in optimizer_tensors(optimizer, model).items()}
    load_optimizer_tensors(
        optimizer, model, {k: v.contiguous() for k, v in optimizer_tensors(optimizer, model).items()}
    )
    assert {key: value.stride() for key, value in optimizer_tensors(optimizer, model).items()} == strides
