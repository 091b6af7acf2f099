"""Convolutions whose weights learn faster on a CPU than with oneDNN's own gradient.

Depthwise: oneDNN sums the gradient of a depthwise kernel at a hundredth of the speed of its forward pass: of a step of
convnext_atto at 128 px it is a third. But this gradient is itself a depthwise convolution: of the images, each image and
channel a group of its own, with the output's gradient as the kernel. Measured for kernels of 5 and 7 px at sides from 4 to
56, on two cores with AMX: 2 to 6 times as fast in bfloat16. In float32 it is so (1.9 to 13 times) on two cores that have AVX2
alone. Where there is AVX-512, and for 3 px everywhere, oneDNN's own way is better in float32 and is left in place.

Pointwise (1 px): the gradient is a product of two matrices, with the pixels of all images as rows. On two cores with AVX2
alone MKL multiplies them in float32 at 91 to 169 billion operations a second where oneDNN does 84 to 129. In turns, a whole
step is 1.04 times as fast for convnext_atto and resnet50 and 1.01 times for efficientnet_b0. Nothing else was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

LEAST_KERNEL = 5
CHUNK = 2_500_000
"""Elements of images and gradient that are worked on at once: they stay in the processor's cache."""

WeightGradient = Callable[[Tensor, Tensor, tuple[int, int]], Tensor]
"""(images, gradient of the output, padding) -> float32 gradient of the weight."""


class DepthwiseConv2d(nn.Conv2d):
    """nn.Conv2d in every respect but the speed of its gradient; see `speed_up`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        dtype = _dtype(input)
        if dtype not in faster_types() or not _learns(self, input):
            return super().forward(input)
        return _convolve(self, input, dtype, depthwise_gradient)


class PointwiseConv2d(nn.Conv2d):
    """nn.Conv2d in every respect but the speed of its gradient; see `speed_up`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        pixels_are_rows = input.is_contiguous(memory_format=torch.channels_last)
        if _dtype(input) != torch.float32 or not has_avx2_alone() or not pixels_are_rows or not _learns(self, input):
            return super().forward(input)
        return _convolve(self, input, torch.float32, pointwise_gradient)


def _dtype(images: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype


def _learns(module: nn.Conv2d, images: Tensor) -> bool:
    return torch.is_grad_enabled() and module.weight.requires_grad and images.device.type == "cpu"


def _convolve(module: nn.Conv2d, images: Tensor, dtype: torch.dtype, weight_gradient: WeightGradient) -> Tensor:
    bias = None if module.bias is None else module.bias.to(dtype)
    how = (module.padding, module.groups, weight_gradient)
    return _Convolution.apply(images.to(dtype), module.weight.to(dtype), bias, *how)  # type: ignore[no-any-return]


@cache
def has_avx2_alone() -> bool:
    return bool(torch.backends.cpu.get_cpu_capability() == "AVX2")


def faster_types() -> tuple[torch.dtype, ...]:
    """The types in which this processor is faster with `depthwise_gradient` than with oneDNN's."""
    return (torch.bfloat16, torch.float32) if has_avx2_alone() else (torch.bfloat16,)


def speed_up(model: nn.Module) -> None:
    """Gives the convolutions of a model that profit from it a class of this module; parameters stay as they are."""
    for module in model.modules():
        if type(module) is nn.Conv2d and (faster := _faster_class(module)):
            module.__class__ = faster


def _faster_class(module: nn.Conv2d) -> type[nn.Conv2d] | None:
    plain = (module.stride, module.dilation) == ((1, 1), (1, 1)) and module.padding_mode == "zeros"
    if not plain or isinstance(module.padding, str):
        return None
    if module.groups == module.in_channels == module.out_channels > 1 and min(module.kernel_size) >= LEAST_KERNEL:
        return DepthwiseConv2d
    pointwise = (module.kernel_size, module.padding, module.groups) == ((1, 1), (0, 0), 1)
    return PointwiseConv2d if pointwise else None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        padding: tuple[int, int],
        groups: int,
        weight_gradient: WeightGradient,
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.padding, ctx.groups, ctx.weight_gradient = padding, groups, weight_gradient
        return functional.conv2d(images, weight, bias, padding=padding, groups=groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        images, weight = ctx.saved_tensors
        for_images, for_weight, for_bias, *_ = ctx.needs_input_grad
        found: list[Tensor | None] = [None] * 6
        if for_images:
            found[0] = _image_gradient(images.shape, weight, gradient, ctx.padding, ctx.groups)
        if for_weight:
            found[1] = ctx.weight_gradient(images, gradient, ctx.padding).to(weight.dtype)
        if for_bias:
            found[2] = gradient.sum((0, 2, 3))
        return tuple(found)


def _image_gradient(
    shape: torch.Size, weight: Tensor, gradient: Tensor, padding: tuple[int, int], groups: int
) -> Tensor:
    """Gradient of the images [n, c, H, W]: of a depthwise convolution one with its kernel turned round, in float32.

    1.15 to 2.6 times as fast there as oneDNN's own on two cores that have AVX2 alone; not measured in bfloat16."""
    turned = tuple(size - 1 - pad for size, pad in zip(weight.shape[2:], padding, strict=True))
    if groups == 1 or weight.dtype != torch.float32 or min(turned) < 0:
        return conv2d_input(shape, weight, gradient, padding=padding, groups=groups)
    return functional.conv2d(gradient, weight.flip(2, 3), padding=turned, groups=groups)


def pointwise_gradient(images: Tensor, gradient: Tensor, padding: tuple[int, int] = (0, 0)) -> Tensor:
    """Gradient of a kernel of 1 px: images [n, c, H, W] and gradient [n, k, H, W] of the output -> [k, c, 1, 1].

    sum over pixels of gradient times image, as one product of matrices; `padding` is always none."""
    rows, columns = (part.permute(0, 2, 3, 1).flatten(0, 2) for part in (gradient, images))
    return (rows.t() @ columns)[:, :, None, None]


def depthwise_gradient(images: Tensor, gradient: Tensor, padding: tuple[int, int]) -> Tensor:
    """Gradient of a depthwise kernel: images [n, c, H, W] and gradient [n, c, h, w] of the output -> float32 [c, 1, kh, kw].

    sum over n of the correlation of image and gradient, as one depthwise convolution with n * c groups. Each image's part is
    rounded to the images' dtype, the sum over images is taken in float32."""
    count, channels, height, width = images.shape
    size = max(1, CHUNK // (channels * height * width))
    total: Tensor | None = None
    for part, other in zip(images.split(size), gradient.split(size), strict=True):
        groups = len(part) * channels
        kernels = other.contiguous().view(groups, 1, *other.shape[2:])
        planes = part.contiguous().view(1, groups, height, width)
        found = functional.conv2d(planes, kernels, padding=padding, groups=groups)
        found = found.reshape(len(part), channels, 1, *found.shape[2:]).sum(0, dtype=torch.float32)
        total = found if total is None else total.add_(found)
    assert total is not None
    return total
