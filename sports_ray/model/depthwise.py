"""Depthwise convolutions whose weights learn faster on a CPU.

oneDNN sums the gradient of a depthwise kernel at a hundredth of the speed of its forward pass: of a step of convnext_atto
at 128 px it is a third. But this gradient is itself a depthwise convolution: of the images, each image and channel a group
of its own, with the output's gradient as the kernel. Measured for kernels of 5 and 7 px at sides from 4 to 56, on two cores
with AMX: 2 to 6 times as fast in bfloat16. In float32 it is so (2 to 8 times) on two cores that have AVX2 alone. Where
there is AVX-512, and for 3 px everywhere, oneDNN's own way is better in float32 and is left in place.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

LEAST_KERNEL = 5
CHUNK = 2_500_000
"""Elements of images and gradient that are worked on at once: they stay in the processor's cache."""


class DepthwiseConv2d(nn.Conv2d):
    """nn.Conv2d in every respect but the speed of its gradient; see `speed_up`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        learns = torch.is_grad_enabled() and self.weight.requires_grad
        if dtype not in faster_types() or not learns or input.device.type != "cpu":
            return super().forward(input)
        bias = None if self.bias is None else self.bias.to(dtype)
        return _Depthwise.apply(input.to(dtype), self.weight.to(dtype), bias, self.padding)  # type: ignore[no-any-return]


@cache
def faster_types() -> tuple[torch.dtype, ...]:
    """The types in which this processor is faster with the gradient of this module than with oneDNN's."""
    plain = (torch.float32,) if torch.backends.cpu.get_cpu_capability() == "AVX2" else ()
    return (torch.bfloat16, *plain)


def speed_up(model: nn.Module) -> None:
    """Turns the depthwise convolutions of a model that profit from it into `DepthwiseConv2d`; parameters stay as they are."""
    for module in model.modules():
        if type(module) is nn.Conv2d and _fits(module):
            module.__class__ = DepthwiseConv2d


def _fits(module: nn.Conv2d) -> bool:
    depthwise = module.groups == module.in_channels == module.out_channels > 1
    plain = (module.stride, module.dilation) == ((1, 1), (1, 1)) and module.padding_mode == "zeros"
    return depthwise and plain and not isinstance(module.padding, str) and min(module.kernel_size) >= LEAST_KERNEL


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.padding = padding
        return functional.conv2d(images, weight, bias, padding=padding, groups=images.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        images, weight = ctx.saved_tensors
        for_images, for_weight, for_bias, _ = ctx.needs_input_grad
        found: list[Tensor | None] = [None, None, None, None]
        if for_images:
            found[0] = conv2d_input(images.shape, weight, gradient, padding=ctx.padding, groups=images.shape[1])
        if for_weight:
            found[1] = weight_gradient(images, gradient, ctx.padding).to(weight.dtype)
        if for_bias:
            found[2] = gradient.sum((0, 2, 3))
        return tuple(found)


def weight_gradient(images: Tensor, gradient: Tensor, padding: tuple[int, int]) -> Tensor:
    """Gradient of a depthwise kernel: images [n, c, H, W] and gradient [n, c, h, w] of the output -> float32 [c, 1, kh, kw].

    sum over n of the correlation of image and gradient, as one depthwise convolution with n * c groups. Each image's part is
    rounded to the images' dtype, the sum over images is taken in float32."""
    count, channels, height, width = images.shape
    size = max(1, CHUNK // (channels * height * width))
    total: Tensor | None = None
    for part, other in zip(images.split(size), gradient.split(size), strict=True):
        groups = len(part) * channels
        kernels = _pixels_first(other).view(*other.shape[2:], groups).permute(2, 0, 1)[:, None]
        pixels = _pixels_first(part).view(height, width, groups).permute(2, 0, 1)[None]
        found = functional.conv2d(pixels, kernels, padding=padding, groups=groups)
        found = found.reshape(len(part), channels, 1, *found.shape[2:]).sum(0, dtype=torch.float32)
        total = found if total is None else total.add_(found)
    assert total is not None
    return total


def _pixels_first(images: Tensor) -> Tensor:
    """[n, c, H, W] -> [H, W, n, c], contiguous."""
    return images.permute(2, 3, 0, 1).contiguous()
