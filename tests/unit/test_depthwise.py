"""Depthwise convolutions with the fast gradient: the same function, the same gradient, the same names of parameters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import timm
import torch
from torch import nn

from sports_ray.model import depthwise
from sports_ray.model.depthwise import CHUNK, DepthwiseConv2d, faster_types, speed_up, weight_gradient


@pytest.mark.parametrize("kernel", [(5, 5), (7, 7), (5, 7)])
@pytest.mark.parametrize("padding", [(0, 0), (2, 2), (3, 3)])
@pytest.mark.parametrize(("images", "channels", "side"), [(1, 2, 7), (6, 40, 8), (5, 3, 13)])
def test_gradient_of_the_kernel_is_that_of_torch(
    images: int, channels: int, side: int, kernel: tuple[int, int], padding: tuple[int, int]
) -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(images, channels, side, side, generator=draw).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, 1, *kernel, generator=draw, requires_grad=True)
    y = nn.functional.conv2d(x, weight, padding=padding, groups=channels)
    gradient = torch.randn(y.shape, generator=draw)
    (expected,) = torch.autograd.grad(y, weight, gradient)
    torch.testing.assert_close(weight_gradient(x, gradient, padding), expected, rtol=1e-4, atol=1e-4)


def test_large_batches_are_worked_on_in_parts() -> None:
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(5, 64, 150, 150, generator=draw)
    assert x.numel() > 2 * CHUNK
    gradient = torch.randn(x.shape, generator=draw)
    expected = torch.nn.grad.conv2d_weight(x, (64, 1, 5, 5), gradient, padding=2, groups=64)
    torch.testing.assert_close(weight_gradient(x, gradient, (2, 2)), expected, rtol=1e-3, atol=1e-2)


def gradients(model: nn.Module, images: torch.Tensor, mixed: bool) -> dict[str, torch.Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        loss = model(images).float().square().mean()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.fixture(params=["AVX2", "AVX512"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """As torch would name it; what is computed is the same on any."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    faster_types.cache_clear()
    yield request.param
    faster_types.cache_clear()


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("name", ["test_convnext", "tf_efficientnet_lite0"])
def test_model_learns_alike_and_its_weights_fit_both(
    name: str, mixed: bool, processor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = timm.create_model(name, num_classes=3, drop_rate=0.0, drop_path_rate=0.0)
    fast = timm.create_model(name, num_classes=3, drop_rate=0.0, drop_path_rate=0.0)
    speed_up(fast)
    assert any(isinstance(module, DepthwiseConv2d) for module in fast.modules())
    assert fast.load_state_dict(plain.state_dict()) == plain.load_state_dict(fast.state_dict())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    calls = []
    monkeypatch.setattr(depthwise, "weight_gradient", lambda *parts: calls.append(1) or weight_gradient(*parts))
    expected, found = gradients(plain, images, mixed), gradients(fast, images, mixed)
    assert bool(calls) == (mixed or processor == "AVX2")
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        # bfloat16 has eight bits, and both sides round on many ways.
        assert (found[key] - value).norm() <= (0.05 if mixed else 1e-4) * value.norm() + 1e-6, key
    plain.eval(), fast.eval()
    with torch.inference_mode():
        assert torch.equal(plain(images), fast(images))


def test_only_what_profits_is_changed() -> None:
    kept = [
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 7, stride=2, groups=8),
        nn.Conv2d(8, 8, 7, groups=4),
    ]
    kept += [nn.Conv2d(8, 16, 7, groups=8), nn.Conv2d(8, 8, 7, groups=8, padding="same"), nn.Conv2d(1, 1, 7)]
    kept += [nn.Conv2d(8, 8, 7, groups=8, padding=3, padding_mode="reflect"), nn.Conv2d(8, 8, 5, dilation=2, groups=8)]
    model = nn.Sequential(*kept, nn.Conv2d(8, 8, 7, padding=3, groups=8))
    speed_up(model)
    assert [type(module) for module in model] == [nn.Conv2d] * len(kept) + [DepthwiseConv2d]
