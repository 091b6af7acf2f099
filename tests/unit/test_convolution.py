"""Convolutions with the fast gradients: the same function, the same gradient, the same names of parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from sports_ray.model import convolution
from sports_ray.model.convolution import (
    CHUNK,
    DepthwiseConv2d,
    PointwiseConv2d,
    WeightGradient,
    depthwise_gradient,
    has_avx2_alone,
    pointwise_gradient,
    speed_up,
)
from sports_ray.model.eager_timm import timm


@pytest.mark.parametrize("kernel", [(5, 5), (7, 7), (5, 7)])
@pytest.mark.parametrize("padding", [(0, 0), (2, 2), (3, 3)])
@pytest.mark.parametrize(("images", "channels", "side"), [(1, 2, 7), (6, 40, 8), (5, 3, 13)])
def test_gradient_of_a_depthwise_kernel_is_that_of_torch(
    images: int, channels: int, side: int, kernel: tuple[int, int], padding: tuple[int, int]
) -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(images, channels, side, side, generator=draw).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, 1, *kernel, generator=draw, requires_grad=True)
    y = nn.functional.conv2d(x, weight, padding=padding, groups=channels)
    gradient = torch.randn(y.shape, generator=draw)
    (expected,) = torch.autograd.grad(y, weight, gradient)
    torch.testing.assert_close(depthwise_gradient(x, gradient, padding), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [(5, 5), (7, 7), (5, 7)])
@pytest.mark.parametrize("padding", [(0, 0), (2, 2), (3, 3), (7, 4)])
def test_gradient_of_the_images_is_that_of_torch(kernel: tuple[int, int], padding: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(3, 40, 8, 9, generator=draw).contiguous(memory_format=torch.channels_last).requires_grad_()
    model = DepthwiseConv2d(40, 40, kernel, padding=padding, groups=40)
    y = nn.functional.conv2d(x, model.weight, model.bias, padding=padding, groups=40)
    gradient = torch.randn(y.shape, generator=draw)
    (expected,) = torch.autograd.grad(y, x, gradient)
    found = convolution._image_gradient(x.shape, model.weight, gradient, padding, 40)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("images", "channels", "kernels", "side"), [(1, 2, 5, 7), (6, 40, 8, 8), (3, 5, 1, 1)])
def test_gradient_of_a_pointwise_kernel_is_that_of_torch(images: int, channels: int, kernels: int, side: int) -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(images, channels, side, side, generator=draw).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(images, kernels, side, side, generator=draw)
    expected = torch.nn.grad.conv2d_weight(x, (kernels, channels, 1, 1), gradient)
    torch.testing.assert_close(pointwise_gradient(x, gradient), expected, rtol=1e-4, atol=1e-4)


def test_large_batches_are_worked_on_in_parts() -> None:
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(5, 64, 150, 150, generator=draw)
    assert x.numel() > 2 * CHUNK
    gradient = torch.randn(x.shape, generator=draw)
    expected = torch.nn.grad.conv2d_weight(x, (64, 1, 5, 5), gradient, padding=2, groups=64)
    torch.testing.assert_close(depthwise_gradient(x, gradient, (2, 2)), expected, rtol=1e-3, atol=1e-2)


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
    has_avx2_alone.cache_clear()
    yield request.param
    has_avx2_alone.cache_clear()


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("name", ["test_convnext", "tf_efficientnet_lite0"])
def test_model_learns_alike_and_its_weights_fit_both(
    name: str, mixed: bool, processor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = timm.create_model(name, num_classes=3, drop_rate=0.0, drop_path_rate=0.0)
    fast = timm.create_model(name, num_classes=3, drop_rate=0.0, drop_path_rate=0.0)
    speed_up(fast)
    kinds = {type(module) for module in fast.modules()}
    assert DepthwiseConv2d in kinds and (PointwiseConv2d in kinds) == (name != "test_convnext"), "it has linear layers"
    assert fast.load_state_dict(plain.state_dict()) == plain.load_state_dict(fast.state_dict())
    for model in (plain, fast):
        model.to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    images = images.contiguous(memory_format=torch.channels_last)
    calls: dict[str, int] = {"depthwise_gradient": 0, "pointwise_gradient": 0}
    for function in (depthwise_gradient, pointwise_gradient):

        def counted(*parts: Any, function: WeightGradient = function) -> torch.Tensor:
            calls[function.__name__] += 1
            return function(*parts)

        monkeypatch.setattr(convolution, function.__name__, counted)
    expected, found = gradients(plain, images, mixed), gradients(fast, images, mixed)
    assert bool(calls["depthwise_gradient"]) == (mixed or processor == "AVX2")
    assert bool(calls["pointwise_gradient"]) == (not mixed and processor == "AVX2" and PointwiseConv2d in kinds)
    assert expected.keys() == found.keys()
    whole = torch.cat([value.flatten() for value in expected.values()]).norm()
    for key, value in expected.items():
        # bfloat16 has eight bits, and both sides round on many ways; batch norm passes on what is left of differences.
        least = (0.05 if mixed else 1e-3) * value.norm() + 1e-6 * whole
        assert (found[key] - value).norm() <= least, key
    plain.eval(), fast.eval()
    with torch.inference_mode():
        assert torch.equal(plain(images), fast(images))


def test_only_what_profits_is_changed() -> None:
    kept: list[nn.Module] = [
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 7, stride=2, groups=8),
        nn.Conv2d(8, 8, 7, groups=4),
    ]
    kept += [nn.Conv2d(8, 16, 7, groups=8), nn.Conv2d(8, 8, 7, groups=8, padding="same"), nn.Conv2d(1, 1, 7)]
    kept += [nn.Conv2d(8, 8, 7, groups=8, padding=3, padding_mode="reflect"), nn.Conv2d(8, 8, 5, dilation=2, groups=8)]
    kept += [nn.Conv2d(8, 8, 1, stride=2), nn.Conv2d(8, 8, 1, padding=1), nn.Conv2d(8, 8, 1, groups=2), nn.Linear(8, 8)]
    model = nn.Sequential(*kept, nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.Conv2d(8, 4, 1))
    speed_up(model)
    assert [type(module) for module in model] == [*map(type, kept), DepthwiseConv2d, PointwiseConv2d]


def test_a_kernel_that_rests_and_planes_are_left_to_torch(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_convolve", lambda *parts: pytest.fail("not left to torch"))
    model = nn.Sequential(nn.Conv2d(8, 4, 1))
    speed_up(model)
    model(torch.randn(2, 8, 5, 5))
    with torch.no_grad():
        model(torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last))
    model.requires_grad_(False)
    model(torch.randn(2, 8, 5, 5, requires_grad=True).contiguous(memory_format=torch.channels_last))
