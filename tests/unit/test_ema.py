"""The moving average against its closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from sports_ray.config import ModelConfig
from sports_ray.errors import RunError
from sports_ray.model.build import create
from sports_ray.model.ema import Ema


def _advance(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator), alpha=0.1)
            else:
                tensor.add_(1)


@pytest.mark.parametrize(("decay", "warmup"), [(0.9, False), (0.9, True), (0.0, False)])
def test_average_equals_the_closed_form(decay: float, warmup: bool) -> None:
    """Each weight counts (1 - d) times the product of all later d, the start the product of all."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    history = [{name: tensor.clone().double() for name, tensor in model.state_dict().items()}]
    ema = Ema(model, decay, warmup)
    decays = [min(decay, (1 + t) / (10 + t)) if warmup else decay for t in range(20)]
    for step in range(20):
        _advance(model, step)
        ema.update(model, step)
        history.append({name: tensor.clone().double() for name, tensor in model.state_dict().items()})
    for name, value in ema.tensors().items():
        if value.is_floating_point():
            wanted = history[0][name]
            for d, weights in zip(decays, history[1:], strict=True):
                wanted = d * wanted + (1 - d) * weights[name]
            torch.testing.assert_close(value.double(), wanted, atol=1e-5, rtol=1e-5)
        else:
            assert value == 20


def test_warm_up_takes_most_of_the_first_weights() -> None:
    ema = Ema(nn.Linear(2, 2), 0.999)
    assert [ema.decay_at(step) for step in (0, 10)] == [0.1, 0.55]
    assert ema.decay_at(100_000) == 0.999


def test_shadow_starts_as_a_copy_and_not_a_view() -> None:
    model = nn.Linear(2, 2)
    ema = Ema(model, 0.9)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    assert torch.equal(ema.tensors()["weight"], before)


def test_bf16_weights_are_averaged_in_float32() -> None:
    """In bf16 an update of 1/1000 of the difference would vanish."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    ema = Ema(model, 0.999, warmup=False)
    nn.init.constant_(model.weight, 2.0)
    for step in range(1000):
        ema.update(model, step)
    assert ema.tensors()["weight"].item() == pytest.approx(2 - 0.999**1000, abs=1e-4)


def test_saved_average_comes_back_bit_equal_and_goes_on_the_same() -> None:
    torch.manual_seed(0)
    model = create(ModelConfig(name="test_resnet"), 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    first, second = Ema(model, 0.9), Ema(create(ModelConfig(name="test_resnet"), 3), 0.9)
    _advance(model, 0)
    first.update(model, 0)
    second.load({name: tensor.contiguous() for name, tensor in first.tensors().items()})
    for ema in (first, second):
        ema.update(model, 1)
    assert all(torch.equal(value, second.tensors()[name]) for name, value in first.tensors().items())


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "dtype"])
def test_other_tensors_are_refused(damage: str) -> None:
    ema = Ema(nn.Linear(2, 2), 0.9)
    tensors = ema.tensors()
    bad = {"shape": torch.zeros(3), "dtype": torch.zeros(2, dtype=torch.float64), "unknown": torch.zeros(2)}
    if damage == "missing":
        del tensors["bias"]
    else:
        tensors["extra" if damage == "unknown" else "bias"] = bad[damage]
    with pytest.raises(RunError, match="extra" if damage == "unknown" else "bias"):
        ema.load(tensors)


def test_evaluating_the_average_leaves_the_model_alone() -> None:
    torch.manual_seed(0)
    model = create(ModelConfig(name="test_resnet"), 3).eval()
    ema = Ema(model, 0.5, warmup=False)
    images = torch.randn(2, 3, 64, 64)
    start = model(images)
    _advance(model, 0)
    moved = model(images)
    torch.testing.assert_close(functional_call(model, ema.tensors(), (images,)), start)
    assert torch.equal(model(images), moved)
    assert not torch.allclose(moved, start)
